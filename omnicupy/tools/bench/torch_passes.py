"""Passes of a call on tensors: its result, with gradients or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _leaves(arrays: list[Any]) -> list[Any]:
    return [one.detach().requires_grad_() for one in arrays]


def gradients(call: Callable[..., Any], arrays: list[Any], dout: Any) -> list[Any]:
    """out and the gradients of q, k and v."""
    import torch

    leaves = _leaves(arrays)
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def forward(call: Callable[..., Any], arrays: list[Any], dout: Any) -> Callable[[], Any]:
    return lambda: call(*arrays)


def forward_and_backward(call: Callable[..., Any], arrays: list[Any], dout: Any) -> Callable[[], Any]:
    return lambda: gradients(call, arrays, dout)
