"""The call inside torch.compile: operators, to which a mask's handle is an integer input."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from omnicupy.call import check_scores
from omnicupy.errors import UnsupportedError
from omnicupy.masks.handles import of_handle
from omnicupy.masks.mask import Mask
from omnicupy.torch import backward, tensors
from omnicupy.torch.backward import Scores
from omnicupy.torch.eager import run_eagerly
from omnicupy.torch.held import hold
from omnicupy.torch.state import PLAIN, is_exporting

# No mask's handles: every row sees every key; what follows is a list of masks, one a batch element.
_LIST, _FULL = 0, 1


def through_operator(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any,
    return_lse: bool,
    out: Any,
    config: Any,
    split: Any = None,
    deterministic: bool = True,
    tokens_first: bool = False,
    sink_logits: Any = None,
    softcap: Any = None,
) -> Any:
    """The call as an operator. Traced by torch.compile, to which a mask's handle is an integer input.

    tokens_first: as `new_out`, where `out` is None.
    """
    for name, value in (("config", config), ("split", split)):
        if value is not None:
            raise UnsupportedError(f"{name} must be None inside torch.compile; call attention outside of it")
    check_scores.check_kinds(scale, softcap)  # of other kinds the dispatcher would make numbers
    handles = handles_for(mask)
    if out is None:
        keep_lse = return_lse or may_need_gradients(q, k, v, sink_logits)
        rest = (deterministic, tokens_first, sink_logits, softcap)
        out, lse = forward_operator(q, k, v, handles, scale, keep_lse, *rest)
    else:
        lse = forward_operator_out(q, k, v, out, handles, scale, return_lse, sink_logits, softcap)
    return (out, lse) if return_lse else out


def gradients_through_operator(
    grads: Any, saved: Any, mask: Any, scores: Scores, wanted: Any, deterministic: bool
) -> tuple[Any, ...]:
    """dq, dk, dv and dsink_logits as an operator gives them, None for those that are not wanted; arguments as in
    `gradients`.
    """
    return _gradients(grads, saved, handles_for(mask), scores, wanted, deterministic)


def _gradients(
    grads: Any, saved: Any, handles: Any, scores: Scores, wanted: Any, deterministic: bool
) -> tuple[Any, ...]:
    if not any(wanted) or (grads[0] is None and grads[1] is None):
        return None, None, None, None
    *saved, sink_logits = saved
    (scale, softcap), rest = scores, (list(wanted), deterministic)
    found = backward_operator(*grads, *saved, handles, scale, *rest, sink_logits, softcap)
    return tuple(one if asked else None for one, asked in zip(found, wanted, strict=True))


def may_need_gradients(q: Any, k: Any, v: Any, sink_logits: Any = None) -> bool:
    """Whether the backward pass may be asked for, which reads lse."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() and not is_exporting():  # guards on what requires a gradient
        return tensors.need_gradients(q, k, v, sink_logits)
    return True  # a stored program may be trained, and tensors inside of vmap do not say what those outside require


def handles_for(mask: Any) -> list[int]:
    """What operators take for the `mask` of attention. Raises TypeError where it is none."""
    if mask is None:
        return [_FULL]  # no empty list: AOTInductor passes None for one
    if isinstance(mask, Mask):
        return handles_of([mask])
    if isinstance(mask, (list, tuple)) and all(isinstance(one, Mask) for one in mask):
        return [_LIST, *handles_of(mask)]
    raise TypeError(
        "mask must be a Mask, a list of one Mask per batch element, or None (full); "
        "a boolean array becomes one with from_dense"
    )


def handles_of(masks: Sequence[Mask]) -> list[int]:
    """The masks as operators take them. Raises UnsupportedError in torch.export, whose programs outlive masks."""
    if is_exporting():
        raise UnsupportedError(
            "mask must be None in torch.export: a stored program would name a mask of this process; use torch.compile"
        )
    return [mask.handle for mask in masks]


def masks_of(handles: Sequence[int]) -> Mask | list[Mask] | None:
    """The masks that an operator was given. Raises ValueError where one is gone."""
    if not handles or handles[0] == _FULL:
        return None
    if handles[0] == _LIST:
        return [of_handle(handle) for handle in handles[1:]]
    found: Mask = of_handle(handles[0])
    return found


def new_out(q: Any, v: Any, tokens_first: bool) -> Any:
    """Memory for the output, of q's shape with the width of v: C-contiguous, or, where tokens_first says so, with
    memory (batch, q_len, q_heads, value_dim), as models read it.
    """
    shape = (*q.shape[:-1], v.shape[-1])
    if not tokens_first:
        return torch.empty(shape, dtype=q.dtype, device=q.device)
    _, heads, rows, value_dim = shape
    strides = (rows * heads * value_dim, value_dim, heads * value_dim, 1)
    return torch.empty_strided(shape, strides, dtype=q.dtype, device=q.device)


def empty_lse(q: Any, wanted: bool) -> Any:
    """Memory for lse, without elements where it is not wanted."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape[:3] if wanted else (0,), dtype=dtype, device=q.device)


def _with_defaults(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    # The dispatcher leaves out arguments that equal their defaults, from the last one on.
    return arguments + (True, False, None, None)[len(arguments) - 6 :]


def _forward(*arguments: Any) -> Any:
    """(q, k, v, handles, scale, return_lse, deterministic, tokens_first, sink_logits, softcap) -> (out, lse); lse has
    no elements when it is not wanted.
    """
    q, k, v, handles, scale, return_lse, _, tokens_first, sink_logits, softcap = _with_defaults(arguments)
    tensors.check_tangents(q=q, k=k, v=v, sink_logits=sink_logits)
    masks = masks_of(handles)
    target = new_out(q, v, True) if tokens_first else None
    how = {"scale": scale, "softcap": softcap, "sink_logits": sink_logits, "config": None}
    found = run_eagerly(q, k, v, masks, return_lse=return_lse, out=target, **how)
    if not return_lse:
        return found, empty_lse(q, False)
    hold(masks, found[1])
    return found


def _forward_fake(*arguments: Any) -> Any:
    q, _, v, *_, return_lse, _, tokens_first, _, _ = _with_defaults(arguments)
    return new_out(q, v, tokens_first), empty_lse(q, return_lse)


def _forward_out(*arguments: Any) -> Any:
    """(q, k, v, out, handles, scale, return_lse, sink_logits, softcap) -> lse."""
    q, k, v, out, handles, scale, return_lse, sink_logits, softcap = _with_changes(arguments)
    tensors.check_tangents(q=q, k=k, v=v, out=out, sink_logits=sink_logits)
    how = {"scale": scale, "softcap": softcap, "sink_logits": sink_logits, "config": None}
    found = run_eagerly(q, k, v, masks_of(handles), return_lse=return_lse, out=out, **how)
    return found[1] if return_lse else empty_lse(q, False)


def _with_changes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments + (None, None)[len(arguments) - 7 :]


def _forward_out_fake(*arguments: Any) -> Any:
    return empty_lse(arguments[0], _with_changes(arguments)[-3])


def _backward(*arguments: Any) -> Any:
    """(dout, dlse, q, k, v, out, lse, handles, scale, wanted, deterministic, sink_logits, softcap) -> (dq, dk, dv,
    dsink_logits), without elements where they are not wanted.
    """
    arguments += (None, None)[len(arguments) - 11 :]
    *given, handles, scale, wanted, deterministic, sink_logits, softcap = arguments
    names = ("dout", "dlse", "q", "k", "v", "out", "lse", "sink_logits")
    tensors.check_tangents(**dict(zip(names, (*given, sink_logits), strict=True)))
    refuse_graph_of_gradients()
    dout, dlse, *saved = given
    found = backward.gradients(
        (dout, dlse), (*saved, sink_logits), masks_of(handles), (scale, softcap), wanted, deterministic
    )
    return with_empty_ones(found, saved, sink_logits)


def with_empty_ones(found: Sequence[Any], saved: Sequence[Any], sink_logits: Any) -> tuple[Any, ...]:
    """dq, dk, dv and dsink_logits, without elements where there are none. saved: begins with q, k and v."""
    like = (*saved[:3], saved[0] if sink_logits is None else sink_logits)
    return tuple(one.new_empty(0) if made is None else made for one, made in zip(like, found, strict=True))


def _backward_fake(*arguments: Any) -> Any:
    sink_logits = arguments[11] if len(arguments) > 11 else None
    return gradients_fake((*arguments[2:5], sink_logits), arguments[9])


def gradients_fake(inputs: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    """Memory for the gradients of q, k, v and sink_logits (or None): C-contiguous, without elements where they are not
    wanted.
    """
    like = [inputs[0] if one is None else one for one in inputs]
    shapes = (one.shape if asked else (0,) for one, asked in zip(like, wanted, strict=True))
    return tuple(
        torch.empty(shape, dtype=one.dtype, device=one.device)
        for one, shape in zip(like, shapes, strict=True)
    )


def save(ctx: Any, inputs: Any, lse: Any, out: Any, sink_logits: Any) -> None:
    """What autograd keeps of a call for its backward pass. inputs: begin with q, k and v."""
    if not lse.numel():
        raise UnsupportedError(
            "return_lse must be True where q, k, v or sink_logits requires a gradient: the backward pass reads lse"
        )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, out, lse, sink_logits)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, handles, scale, _, deterministic, _, sink_logits, softcap = inputs
    save(ctx, arrays, output[1], output[0], sink_logits)
    ctx.options = handles, (scale, softcap), deterministic
    if type(output[1]) in PLAIN:  # what traces keeps such a node with the graph
        ctx.masks = masks_of(handles)


def _formula(ctx: Any, dout: Any, dlse: Any) -> Any:
    handles, scores, deterministic = ctx.options
    # Arguments that equal their defaults, from the last one on, are none of autograd's either.
    wanted = (*ctx.needs_input_grad[:3], any(ctx.needs_input_grad[8:9]))
    *found, of_sink = _gradients((dout, dlse), ctx.saved_tensors, handles, scores, wanted, deterministic)
    return *found, None, None, None, None, None, of_sink, None


def refuse_second(ctx: Any, *grads: Any) -> Any:
    """The gradient of a gradient. Raises UnsupportedError."""
    raise UnsupportedError(
        "attention has no second derivative: a gradient of its gradient is asked for (create_graph=True, or two "
        "transforms of torch.func); take torch.nn.functional.scaled_dot_product_attention there"
    )


def refuse_graph_of_gradients() -> None:
    """Raises UnsupportedError in a backward pass of torch.compile's with create_graph=True. Its node does not lead from
    the gradients to what was saved on the way, so a second derivative would leave attention out without a word, and
    nothing but the stack tells: gradients are off inside of that node.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_double_backward":
            refuse_second(None)
        frame = frame.f_back


_REST = "SymInt[] masks, float? scale, bool return_lse"
CHANGES = "Tensor? sink_logits=None, float? softcap=None"
forward_operator = torch.library.custom_op(
    "omnicupy::attention",
    _forward,
    mutates_args=(),
    schema=(
        f"(Tensor q, Tensor k, Tensor v, {_REST}, bool deterministic=True, bool tokens_first=False, {CHANGES}) "
        "-> (Tensor, Tensor)"
    ),
)
forward_operator.register_fake(_forward_fake)
forward_operator.register_autograd(_formula, setup_context=_setup)
forward_operator_out = torch.library.custom_op(
    "omnicupy::attention_out",
    _forward_out,
    mutates_args=("out",),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor(a!) out, {_REST}, {CHANGES}) -> Tensor",
)
forward_operator_out.register_fake(_forward_out_fake)
backward_operator = torch.library.custom_op(
    "omnicupy::attention_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor? dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, SymInt[] masks, "
        f"float? scale, bool[] wanted, bool deterministic, {CHANGES}) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
backward_operator.register_fake(_backward_fake)
backward_operator.register_autograd(refuse_second)
