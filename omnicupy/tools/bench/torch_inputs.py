"""Our arrays as torch tensors, and optional libraries that may be missing."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from omnicupy.call.arrays import BFLOAT16
from omnicupy.masks.mask import Mask
from omnicupy.tools.workloads.workload import Workload


def library(name: str) -> Any:
    """An optional library, by its module's name. Raises ImportError where it is missing."""
    return importlib.import_module(name)


def free_memory() -> None:
    """Give the device what pools hold and nothing uses, that of PyTorch, too, where it is loaded."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if sys.modules.get("torch") is not None:
        library("torch").cuda.empty_cache()


def timed_ms(build: Callable[[], Any]) -> float:
    """Milliseconds of building something on the GPU, the second time: median of three."""
    torch = library("torch")
    took = []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        build()
        torch.cuda.synchronize()
        took.append(1e3 * (time.perf_counter() - begin))
    return sorted(took)[1]


class Shared:
    """The inputs of a workload as torch tensors over the memory of CuPy arrays.

    dout: the gradient of the output, for which q, k and v require gradients; None where nothing does.
    """

    def __init__(
        self, workload: Workload, mask: Mask, arrays: tuple[Any, Any, Any], dout: Any = None
    ) -> None:
        self.workload = workload
        self.mask = mask
        self.dout = None if dout is None else as_torch(dout)
        self.q, self.k, self.v = (self.leaf(as_torch(array)) for array in arrays)

    @cached_property
    def bshd(self) -> tuple[Any, Any, Any]:
        """q, k, v as contiguous (batch, tokens, heads, head_dim)."""
        q, k, v = (self.leaf(tensor.transpose(1, 2).contiguous()) for tensor in (self.q, self.k, self.v))
        return q, k, v

    def leaf(self, tensor: Any) -> Any:
        """The tensor as an input of its own, which requires a gradient where the workload has a dout."""
        return tensor if self.dout is None else tensor.detach().requires_grad_()

    @cached_property
    def kind(self) -> str:
        """ "full" or "causal" for masks that are so everywhere, else "other"."""
        q_len, k_len = self.mask.shape
        if self.mask.pairs == q_len * k_len:
            return "full"
        from omnicupy.masks.constructors import causal

        return "causal" if q_len == k_len and self.mask == causal(q_len) else "other"


def as_torch(array: Any) -> Any:
    """A torch tensor over a CuPy array's memory; bfloat16 travels as int16, which DLPack always knows."""
    torch = library("torch")
    if array.dtype == np.float16:
        return torch.from_dlpack(array)
    return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)


def as_cupy(tensor: Any) -> Any:
    """A CuPy array over a torch tensor's memory (of a contiguous copy, where it is not contiguous)."""
    import cupy

    torch = library("torch")
    tensor = tensor.detach().contiguous()
    if tensor.dtype != torch.bfloat16:
        return cupy.from_dlpack(tensor)
    return cupy.from_dlpack(tensor.view(torch.int16)).view(BFLOAT16)
