"""Tensors that are no plain memory of the dtypes that the library takes, as odd_values.py has them of NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

SHAPE = (1, 1, 4, 8)


class Derived(torch.Tensor):
    """A subclass with torch's own rules."""


def unreadable() -> Iterator[torch.Tensor]:
    """Tensors whose elements are not what lies at their address."""
    numbers = torch.ones(SHAPE)
    yield torch._neg_view(numbers)
    yield torch._neg_view(torch.ones(1))
    yield torch._efficientzerotensor(SHAPE)
    yield from (numbers.to_sparse(), torch.ones(3, dtype=torch.int32).to_sparse(), numbers.to_mkldnn())
    with warnings.catch_warnings():  # torch warns of each use of these
        warnings.simplefilter("ignore")
        yield torch.nested.nested_tensor([torch.ones(2, 4, 8)])
        yield torch.quantize_per_tensor(numbers, 1.0, 0, torch.quint8)


def odd() -> Iterator[Any]:
    """Those, and tensors of other devices, dtypes, axes and layouts."""
    yield from unreadable()
    zeros = torch.zeros
    yield from (zeros(SHAPE, device="meta"), zeros(()), zeros(0), zeros(3), zeros(3, dtype=torch.int32))
    for kind in (torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
        yield zeros(SHAPE, dtype=kind)
    yield from (zeros(SHAPE, dtype=torch.float8_e5m2), zeros(SHAPE, dtype=torch.uint8), zeros((4, 8)))
    yield from (zeros((1, 0, 4, 8)), zeros((0, 1, 4, 8)), zeros((1, 1, 4, 0)), zeros((2, 1, 4, 8)))
    yield from (zeros((1, 3, 4, 8)), zeros((1, 1, 1, 1, 4)), zeros((4, 4), dtype=torch.bool))
    yield from (zeros((1, 1, 8, 4)).mT, zeros((1, 1, 4, 16))[..., ::2], zeros(1, 1, 1, 8).expand(SHAPE))
    yield from (zeros(SHAPE, requires_grad=True), torch.nn.Parameter(zeros(SHAPE)))
    yield from (zeros(SHAPE).as_subclass(Derived), torch.float32, torch.device("cpu"))
