"""A kernel that does nothing for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

SPIN = """
extern "C" __global__ void spin(long long clocks) {
  long long const start = clock64();
  while (clock64() - start < clocks) {}
}
"""


def spinner(cupy: Any) -> Callable[[], None]:
    """A call that keeps CuPy's current stream busy for about half a second."""
    kernel = cupy.RawKernel(SPIN, "spin")
    kernel((1,), (1,), (np.int64(1),))  # compiled before it has to be quick
    return lambda: kernel((1,), (1,), (np.int64(800_000_000),))


HALF = """
extern "C" __global__ void hold(long long clocks, int *ended) {
  extern __shared__ int kept[];
  long long const start = clock64();
  while (clock64() - start < clocks) {}
  kept[0] = 1;
  atomicAdd(ended, kept[0]);
}
"""
HELD_SMEM_BYTES = 160 << 10  # beside it no thread block of a Hopper kernel fits


class HalfHeld:
    """A call that keeps half of the multiprocessors, and their shared memory, from all other kernels for about a
    quarter of a second.
    """

    def __init__(self, cupy: Any) -> None:
        self.kernel = cupy.RawKernel(HALF, "hold")
        self.kernel.max_dynamic_shared_size_bytes = HELD_SMEM_BYTES
        self.blocks = cupy.cuda.Device().attributes["MultiProcessorCount"] // 2
        self.ended = cupy.zeros((), np.int32)
        self._launch(1)

    def __call__(self) -> None:
        """Enqueue it on CuPy's current stream."""
        self._launch(400_000_000)

    def _launch(self, clocks: int) -> None:
        self.kernel((self.blocks,), (1,), (np.int64(clocks), self.ended), shared_mem=HELD_SMEM_BYTES)
