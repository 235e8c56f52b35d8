"""The CUDA driver by cuda-bindings: what CuPy does not offer of it."""

from __future__ import annotations

from functools import cache as cache_forever
from typing import Any

import cupy

from omnicupy.errors import UnsupportedError


@cache_forever
def driver() -> Any:
    """cuda.bindings.driver. Raises UnsupportedError where it is not installed."""
    try:
        from cuda.bindings import driver as found
    except ImportError as error:
        raise UnsupportedError(
            "the GPU path needs cuda-bindings, to ask CUDA for streams, graphs and tensor maps: "
            "in the checkout, pip install '.[cuda12]' or '.[cuda13]'"
        ) from error
    return found


def check(status: Any) -> None:
    """Raises cupy.cuda.driver.CUDADriverError for a status that is not success."""
    if status:
        raise cupy.cuda.driver.CUDADriverError(int(status))
