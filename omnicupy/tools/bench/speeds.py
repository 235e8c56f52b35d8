"""The speed of a large matrix product and of a copy, which records name beside what they measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from omnicupy.tools.bench import timing, torch_inputs
from omnicupy.tools.random_arrays import random_bits

GEMM = 8192
COPY_BYTES = 2**30  # several times any L2 cache


def gemm_tflops(clock: timing.Clock) -> tuple[str, float]:
    """Name and TFLOP/s of an 8192^3 product: bfloat16 through torch, float16 through CuPy where torch is
    missing.
    """
    name, product = _gemm_of_torch() or _gemm_of_cupy()
    found = clock.interleaved({"gemm": product}, 20)["gemm"]
    return name, 2 * GEMM**3 / found.median_ms / 1e9


def copy_tbps(clock: timing.Clock) -> float:
    """Terabytes read and written a second by a copy within device memory."""
    import cupy

    source, target = cupy.zeros(COPY_BYTES, cupy.uint8), cupy.empty(COPY_BYTES, cupy.uint8)
    found = clock.interleaved({"copy": lambda: cupy.copyto(target, source)}, 10)["copy"]
    return 2 * COPY_BYTES / found.median_ms / 1e9


def _gemm_of_torch() -> tuple[str, Callable[[], Any]] | None:
    try:
        torch = torch_inputs.library("torch")
        a, b = (torch.randn(GEMM, GEMM, device="cuda").to(torch.bfloat16) for _ in range(2))
        torch.mm(a, b)
    except Exception:  # any failure of an optional library means: use the other one
        return None
    return "torch bfloat16", lambda: torch.mm(a, b)


def _gemm_of_cupy() -> tuple[str, Callable[[], Any]]:
    import cupy

    a, b = (random_bits((GEMM, GEMM), seed, "float16", 1.0, cupy).view(np.float16) for seed in (1, 2))
    return "CuPy float16", lambda: cupy.matmul(a, b)
