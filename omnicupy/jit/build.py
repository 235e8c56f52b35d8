"""Compiling many variants at once, and what their resource reports say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omnicupy.errors import CompileError
from omnicupy.jit import cache
from omnicupy.jit.spec import KernelSpec

Spec = TypeVar("Spec", bound=KernelSpec)

# Wraps an iterable for display: track(iterable, label, length) yields its items and shows how far it is.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def silent(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The display that shows nothing."""
    return items


@dataclass(frozen=True)
class Compiled(Generic[Spec]):
    """One kernel. problem: "" where it compiled without spills and warnings, else what is wrong."""

    spec: Spec
    registers: int
    problem: str


def compile_all(specs: Sequence[Spec], track: Track = silent) -> list[Compiled[Spec]]:
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


def _one(spec: Spec) -> Compiled[Spec]:
    try:
        entry = cache.entry(spec)
    except CompileError as error:
        return Compiled(spec, 0, str(error))
    flaws = [f"{entry.spill_bytes} bytes of spills"] if entry.spill_bytes else []
    flaws += entry.warnings
    return Compiled(spec, entry.registers, "; ".join(flaws))
