"""Gradients of the call on plain tensors: a node of autograd's graph around the launch."""

from __future__ import annotations

from typing import Any

import torch

from omnicupy.torch import state
from omnicupy.torch.backward import gradients
from omnicupy.torch.eager import run_eagerly, untraced
from omnicupy.torch.operator import gradients_through_operator, new_out


class Attention(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
    """attention() on plain tensors. What transforms, traces or wraps tensors takes the operator instead.

    One method makes and saves: with `setup_context` torch would look at the signature in each call, which costs more
    than the rest of this node, and lse would have to be a result.
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, options: tuple[Any, ...]) -> Any:
        """options: scale, return_lse, config, deterministic, tokens_first."""
        scale, return_lse, config, deterministic, tokens_first = options
        target = new_out(q, True) if tokens_first else None
        out, lse = run_eagerly(q, k, v, mask, scale=scale, return_lse=True, out=target, config=config)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mask = tuple(mask) if isinstance(mask, list) else mask  # which the caller may drop or change
        ctx.options = scale, deterministic
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, dout: Any, dlse: Any = None) -> Any:
        """The gradients of q, k and v that are asked for."""
        scale, deterministic = ctx.options
        found = _gradients(
            (dout, dlse), ctx.saved_tensors, ctx.mask, scale, ctx.needs_input_grad[:3], deterministic
        )
        return *found, None, None


def _gradients(grads: Any, saved: Any, mask: Any, scale: Any, wanted: Any, deterministic: bool) -> Any:
    # The operator knows what a gradient of a gradient is (an error), what a graph is, and tensors that are no plain ones.
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or state.is_watched()
        or not all(type(one) in state.PLAIN for one in grads if one is not None)
    ):
        return gradients_through_operator(grads, saved, mask, scale, wanted, deterministic)
    run = gradients if state.tracer() is None else untraced(gradients)
    return run(grads, saved, mask, scale, wanted, deterministic)
