"""Fixtures of the tests of omnicupy.torch on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def torch_cuda() -> None:
    """Skips where this PyTorch finds no CUDA device, whatever CuPy finds."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")


@pytest.fixture
def compiler() -> Iterator[Any]:
    """torch._dynamo's counters, at zero."""
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield counters
    torch.compiler.reset()
