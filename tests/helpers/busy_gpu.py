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
