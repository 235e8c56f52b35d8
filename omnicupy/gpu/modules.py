"""Cubins to functions on a device."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import cupy

from omnicupy.gpu.launcher import COOPERATIVE, LEAST_DRIVER, OVERLAPPING, Launcher
from omnicupy.gpu.streams import allowing_unsafe_calls
from omnicupy.jit import cache
from omnicupy.jit.spec import AttnSpec, KernelSpec

WHOLE = 100  # percent of the memory that shared memory and L1 have together
# Parameter structs of forward kernels for Hopper all of which wait by themselves for the kernel ahead. Those of e4m3,
# and of few rows in pages or with rows of their own, take the second.
_WAITING = ("sm90", "sm90_fp8")

_kernels: dict[tuple[KernelSpec, int, int], Kernel] = {}
_kernels_lock = threading.Lock()


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel. raw: the cupy.RawKernel (resource attributes).  function: what launches it."""

    raw: Any
    function: Any


def kernel(spec: KernelSpec, device: int) -> Kernel:
    """The kernel of `spec`, loaded on `device` (which must be current); compiled where the cache lacks it.

    Raises CompileError, UnsupportedError (no NVRTC), cupy's CUDA errors when the driver refuses it.
    """
    key = (spec, device, cache.epoch)
    found = _kernels.get(key)
    if found is None:
        with _kernels_lock:
            found = _kernels.get(key)
            if found is None:
                path = str(cache.cubin(spec))
                with (
                    allowing_unsafe_calls()
                ):  # a plan may be made, and its kernel loaded, while a stream is captured
                    raw = cupy.RawModule(path=path).get_function(spec.entry)
                    raw.max_dynamic_shared_size_bytes = spec.smem_bytes
                    if type(spec) is AttnSpec and spec.blocks > 1:  # or L1 might take what the others need
                        raw.preferred_shared_memory_carveout = WHOLE
                found = _kernels[key] = Kernel(raw, _launcher(spec, raw.kernel))
    return found


def launcher_behind(found: Kernel) -> Any:
    """What launches a kernel that waits by itself for what is ahead of it, as far as it must."""
    return Launcher(found.raw.kernel, (OVERLAPPING,)) if _can_overlap() else found.function


def together(found: Kernel) -> Any:
    """What launches a kernel whose thread blocks wait for each other: it begins when all of them find a place."""
    return Launcher(found.raw.kernel, (COOPERATIVE,))


def _launcher(spec: KernelSpec, function: Any) -> Any:
    """What launches a kernel. Some for Hopper wait by themselves for what is ahead of them; others must be made to."""
    overlaps = spec.kernel == "sm90" and spec.params in _WAITING and _can_overlap()
    return Launcher(function, (OVERLAPPING,) if overlaps else ())


def _can_overlap() -> bool:
    return bool(cupy.cuda.runtime.driverGetVersion() >= LEAST_DRIVER)
