"""Compiling many kernels at once, and what their resource reports say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from omnicupy import cache, tune
from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.spec import AttnSpec

# Wraps an iterable for display: track(iterable, label, length) yields its items and shows how far it is.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def silent(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The display that shows nothing."""
    return items


@dataclass(frozen=True)
class Compiled:
    """One kernel. problem: "" where it compiled without spills and warnings, else what is wrong."""

    spec: AttnSpec
    registers: int
    problem: str


def compile_all(specs: Sequence[AttnSpec], track: Track = silent) -> list[Compiled]:
    """Compile (or find in the cache) every spec, on all cores; NVRTC runs without the interpreter lock.

    Raises UnsupportedError without NVRTC; a kernel that does not compile is reported instead.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = [pool.submit(_one, spec) for spec in specs]
        done = track(as_completed(futures), "compiling", len(futures))
        try:
            return [future.result() for future in done]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one(spec: AttnSpec) -> Compiled:
    try:
        entry = cache.entry(spec)
    except CompileError as error:
        return Compiled(spec, 0, str(error))
    flaws = [f"{entry.spill_bytes} bytes of spills"] if entry.spill_bytes else []
    flaws += entry.warnings
    return Compiled(spec, entry.registers, "; ".join(flaws))


def every_spec() -> Iterator[AttnSpec]:
    """The full product of tune.py: each row at each head_dim, architecture and dtype that it serves."""
    seen: set[AttnSpec] = set()
    for row in tune.TABLE:
        least, greatest = row.head_dims
        for head_dim in range(least, greatest + 1, 16):
            for arch in row.archs:
                for dtype in row.dtypes:
                    spec = row.spec(arch, dtype, head_dim)
                    if spec not in seen:
                        seen.add(spec)
                        yield spec


def has_nvrtc() -> str:
    """The version of NVRTC as "12.9", or "" without one."""
    from omnicupy import nvrtc

    try:
        return ".".join(map(str, nvrtc.version()))
    except UnsupportedError:
        return ""
