"""The call inside of torch.compile, whose graph holds the tensors that say the mask: they are read when it runs."""

from __future__ import annotations

from typing import Any

import torch

from omnicupy.call import check_scores
from omnicupy.masks.handles import of_handle
from omnicupy.torch import backward, held, tensors
from omnicupy.torch.eager import run_eagerly
from omnicupy.torch.operator import (
    CHANGES,
    empty_lse,
    gradients_fake,
    handles_of,
    may_need_gradients,
    new_out,
    refuse_graph_of_gradients,
    refuse_second,
    save,
    with_empty_ones,
)
from omnicupy.torch.state import PLAIN
from omnicupy.transformers.call_masks import Masks, masks_for, one_or_all

_READ = ("cu_seq_lens_q", "cu_seq_lens_k", "sliding_window", "is_causal")


def through_operator(
    inputs: tuple[Any, Any, Any, Any],
    masks: Masks,
    tensor: Any,
    scores: tuple[Any, Any],
    read: dict[str, Any],
) -> Any:
    """The output (batch, rows, heads, value_dim) for query, key, value and sinks or None. tensor: the mask that is one,
    or None.  scores: scale and softcap.
    """
    handles = None if masks is None else handles_of(masks)
    keep_lse = may_need_gradients(*inputs)
    *arrays, sinks = inputs
    scale, softcap = scores
    check_scores.check_kinds(scale, softcap)
    said = (tensor, handles, scale, *(read[name] for name in _READ))
    return _operator(*arrays, *said, keep_lse, sinks, softcap)[0]


def _masks(query: Any, key: Any, said: Any) -> Any:
    """The masks that tensors, handles and numbers say, as `attention` takes them, and those of the handles alone."""
    tensor, handles, _, *rest = said
    given = None if handles is None else [of_handle(handle) for handle in handles]
    shape = (*query.shape[:3], key.shape[2])
    return one_or_all(masks_for(shape, given, tensor, dict(zip(_READ, rest, strict=True)))), given


def _forward(*arguments: Any) -> Any:
    query, key, value, *said, return_lse, sinks, softcap = _complete(arguments)
    tensors.check_tangents(query=query, key=key, value=value, s_aux=sinks)
    masks, given = _masks(query, key, said)
    out = new_out(query, value, True)
    options = {"scale": said[2], "return_lse": return_lse, "out": out, "config": None}
    options |= {"sink_logits": sinks, "softcap": softcap}
    found = run_eagerly(query, key, value, masks, **options)
    if return_lse:
        held.hold(masks, found[1])
        held.keep(given or ())
    return out.transpose(1, 2), found[1] if return_lse else empty_lse(query, False)


def _complete(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments + (False, None, None)[len(arguments) - 10 :]  # the dispatcher leaves out defaults


def _forward_fake(*arguments: Any) -> Any:
    query, _, value, *_, return_lse, _, _ = _complete(arguments)
    return new_out(query, value, True).transpose(1, 2), empty_lse(query, return_lse)


def _backward(*arguments: Any) -> Any:
    """(dout, dlse, query, key, value, out, lse, what says the masks, wanted, sinks, softcap) -> (dq, dk, dv, dsinks);
    out and dout as the forward pass has them.
    """
    arguments += (None, None)[len(arguments) - 15 :]
    dout, dlse, query, key, value, out, lse, *said, wanted, sinks, softcap = arguments
    names = ("dout", "dlse", "query", "key", "value", "out", "lse")
    tensors.check_tangents(s_aux=sinks, **dict(zip(names, arguments, strict=False)))
    refuse_graph_of_gradients()
    masks = held.held(lse)
    # Elsewhere they are read again: autograd raises where a tensor has changed since.
    masks = _masks(query, key, said)[0] if masks is None else one_or_all(masks)
    saved = (query, key, value, out.transpose(1, 2), lse, sinks)
    grads = (None if dout is None else dout.transpose(1, 2), dlse)
    found = backward.gradients(grads, saved, masks, (said[2], softcap), wanted, True)
    return with_empty_ones(found, saved, sinks)


def _backward_fake(*arguments: Any) -> Any:
    sinks = arguments[15] if len(arguments) > 15 else None
    return gradients_fake((*arguments[2:5], sinks), arguments[14])


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, tensor, handles, scaling, *bounds, window, is_causal, _, sinks, softcap = inputs
    save(ctx, (query, key, value, tensor, *bounds), output[1], output[0], sinks)
    ctx.rest = handles, scaling, window, is_causal, softcap
    if handles is not None and type(output[1]) in PLAIN:  # what traces keeps such a node with the graph
        ctx.masks = [of_handle(handle) for handle in handles]


def _formula(ctx: Any, dout: Any, dlse: Any) -> Any:
    query, key, value, tensor, *bounds, out, lse, sinks = ctx.saved_tensors
    handles, scaling, window, is_causal, softcap = ctx.rest
    # Arguments that equal their defaults, from the last one on, are none of autograd's either.
    wanted = [*ctx.needs_input_grad[:3], any(ctx.needs_input_grad[11:12])]
    nothing = [None] * 8
    if dout is None and dlse is None:
        return None, None, None, *nothing, None, None
    said = tensor, handles, scaling, *bounds, window, is_causal
    found = _backward_operator(dout, dlse, query, key, value, out, lse, *said, wanted, sinks, softcap)
    *found, of_sinks = (one if asked else None for one, asked in zip(found, wanted, strict=True))
    return *found, *nothing, of_sinks, None


_SAID = (
    "Tensor? mask, SymInt[]? masks, float? scale, Tensor? bounds, Tensor? key_bounds, SymInt? window, "
    "bool is_causal"
)
_TAGS = [tag] if (tag := getattr(torch.Tag, "cudagraph_unsafe", None)) else None  # the host reads the mask
_operator = torch.library.custom_op(
    "omnicupy::attention_of_tensors",
    _forward,
    mutates_args=(),
    schema=(
        f"(Tensor query, Tensor key, Tensor value, {_SAID}, bool return_lse=False, {CHANGES}) -> (Tensor, Tensor)"
    ),
    tags=_TAGS,
)
_operator.register_fake(_forward_fake)
_operator.register_autograd(_formula, setup_context=_setup)
_backward_operator = torch.library.custom_op(
    "omnicupy::attention_of_tensors_backward",
    _backward,
    mutates_args=(),
    schema=(
        f"(Tensor? dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, {_SAID}, "
        f"bool[] wanted, {CHANGES}) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    tags=_TAGS,
)
_backward_operator.register_fake(_backward_fake)
_backward_operator.register_autograd(refuse_second)
