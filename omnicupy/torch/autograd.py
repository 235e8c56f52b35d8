"""Gradients outside of a compiler: a node of autograd's graph around the launch, and one for torch.func."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from omnicupy.call import check_scores
from omnicupy.errors import UnsupportedError
from omnicupy.torch import state
from omnicupy.torch.backward import gradients
from omnicupy.torch.eager import run_eagerly, untraced
from omnicupy.torch.operator import (
    backward_operator,
    forward_operator,
    gradients_through_operator,
    handles_for,
    masks_of,
    new_out,
    refuse_second,
    through_operator,
)
from omnicupy.torch.tensors import no_forward_mode

_has_storage = torch._C._has_storage  # not so tensors that vmap wraps


class Attention(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
    """attention() on plain tensors that nothing wraps or traces.

    One method makes and saves: with `setup_context` torch would look at the signature in each call, which costs more
    than the rest of this node, and lse would have to be a result.
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, sink_logits: Any, options: tuple[Any, ...]) -> Any:
        """options: mask, (scale, softcap, return_lse, config, split, deterministic) and tokens_first; one argument,
        since torch looks at each, on the way there and back.
        """
        mask, (scale, softcap, return_lse, config, split, deterministic), tokens_first = options
        target = new_out(q, v, True) if tokens_first else None
        out, lse = run_eagerly(
            q,
            k,
            v,
            mask,
            scale=scale,
            return_lse=True,
            out=target,
            config=config,
            split=split,
            sink_logits=sink_logits,
            softcap=softcap,
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, sink_logits)
        mask = tuple(mask) if isinstance(mask, list) else mask  # which the caller may drop or change
        ctx.options = mask, (scale, softcap), deterministic
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, dout: Any, dlse: Any = None) -> Any:
        """The gradients of q, k, v and sink_logits that are asked for."""
        mask, scores, deterministic = ctx.options
        call = gradients_of(dout, dlse)
        wanted = ctx.needs_input_grad[:4]
        found = call((dout, dlse), ctx.saved_tensors, mask, scores, wanted, deterministic)
        return *found, None


# Function.apply without its part in Python, a quarter of a node: that asks for transforms of torch.func, which
# with_gradients has done, and looks for a setup_context that there is not.
_apply = super(torch.autograd.Function, Attention).apply
_unwrapped = torch._C._functorch.unwrap_if_dead  # what a transform that has ended left in its wrapper


def as_node(q: Any, k: Any, v: Any, sink_logits: Any, *options: Any) -> Any:
    """Attention.apply, where no transform of torch.func is at work. options: as of Attention.forward."""
    sinks = None if sink_logits is None else _unwrapped(sink_logits)
    return _apply(_unwrapped(q), _unwrapped(k), _unwrapped(v), sinks, options)


def gradients_of(dout: Any, dlse: Any) -> Any:
    """What makes gradients of these: the operator where it has to be seen, or where gradients of them may be asked for,
    so that it refuses these.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or state.is_watched():
        return gradients_through_operator
    for grad in (dout, dlse):
        if grad is not None and not (type(grad) in state.PLAIN and _has_storage(grad)):
            return gradients_through_operator
    return gradients if state.tracer() is None else untraced(gradients)


def through_transforms(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
    """The call where torch.func wraps the tensors; options as in `through_operator`."""
    if options["out"] is not None and state.is_rewritten():
        raise UnsupportedError(
            "out must be None inside of torch.vmap and torch.func.functionalize, which see no tensor being written; "
            "leave it out, and take what attention returns"
        )
    top = torch._C._functorch.peek_interpreter_stack()
    if (
        not torch.is_grad_enabled()
        or options["out"] is not None
        or options["config"] is not None
        or options["split"] is not None
        or top.key() == torch._C._functorch.TransformType.Functionalize
    ):
        return through_operator(q, k, v, mask, **options)
    scores = options["scale"], options.get("softcap")
    check_scores.check_kinds(*scores)
    how = scores, options["deterministic"], options["tokens_first"]
    out, lse = _Transformed.apply(q, k, v, options.get("sink_logits"), handles_for(mask), how)
    return (out, lse) if options["return_lse"] else out


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """attention() inside a transform of torch.func, which unwraps the tensors, level by level."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Any, k: Any, v: Any, sink_logits: Any, handles: Any, options: tuple[Any, ...]) -> Any:
        (scale, softcap), deterministic, tokens_first = options
        return forward_operator(
            q, k, v, handles, scale, True, deterministic, tokens_first, sink_logits, softcap
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        q, k, v, sink_logits, ctx.handles, options = inputs
        ctx.options, ctx.masks, ctx.has_sink = options[:2], masks_of(ctx.handles), sink_logits is not None
        ctx.save_for_backward(q, k, v, *output, sink_logits)

    @staticmethod
    def backward(ctx: Any, dout: Any, dlse: Any) -> Any:
        dq, dk, dv, dsink = _Gradients.apply(dout, dlse, *ctx.saved_tensors, ctx.handles, ctx.options)
        return dq, dk, dv, dsink if ctx.has_sink else None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        no_forward_mode("q, k, v or sink_logits")


class _Gradients(torch.autograd.Function):  # type: ignore[misc]
    """The backward pass of _Transformed, which has no derivative itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        *tensors, sink_logits, handles, ((scale, softcap), deterministic) = arguments
        wanted = [True] * 3 + [sink_logits is not None]
        return backward_operator(*tensors, handles, scale, wanted, deterministic, sink_logits, softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        no_forward_mode("a gradient")

    backward = staticmethod(refuse_second)
