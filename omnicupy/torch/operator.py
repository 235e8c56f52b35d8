"""The call inside torch.compile: operators, to which a mask's handle is an integer input."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from omnicupy.errors import UnsupportedError
from omnicupy.masks.handles import of_handle
from omnicupy.masks.mask import Mask
from omnicupy.torch import backward, tensors
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
) -> Any:
    """The call as an operator. Traced by torch.compile, to which a mask's handle is an integer input.

    tokens_first: as `new_out`, where `out` is None.
    """
    for name, value in (("config", config), ("split", split)):
        if value is not None:
            raise UnsupportedError(f"{name} must be None inside torch.compile; call attention outside of it")
    handles = handles_for(mask)
    if out is None:
        keep_lse = return_lse or may_need_gradients(q, k, v)
        out, lse = forward_operator(q, k, v, handles, scale, keep_lse, deterministic, tokens_first)
    else:
        lse = forward_operator_out(q, k, v, out, handles, scale, return_lse)
    return (out, lse) if return_lse else out


def gradients_through_operator(
    grads: Any, saved: Any, mask: Any, scale: Any, wanted: Any, deterministic: bool
) -> tuple[Any, Any, Any]:
    """dq, dk and dv as an operator gives them, None for those that are not wanted; arguments as in `gradients`."""
    return _gradients(grads, saved, handles_for(mask), scale, wanted, deterministic)


def _gradients(
    grads: Any, saved: Any, handles: Any, scale: Any, wanted: Any, deterministic: bool
) -> tuple[Any, Any, Any]:
    if not any(wanted) or (grads[0] is None and grads[1] is None):
        return None, None, None
    found = backward_operator(*grads, *saved, handles, scale, list(wanted), deterministic)
    dq, dk, dv = (one if asked else None for one, asked in zip(found, wanted, strict=True))
    return dq, dk, dv


def may_need_gradients(q: Any, k: Any, v: Any) -> bool:
    """Whether the backward pass may be asked for, which reads lse."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() and not is_exporting():  # guards on what requires a gradient
        return bool(q.requires_grad or k.requires_grad or v.requires_grad)
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


def new_out(q: Any, tokens_first: bool) -> Any:
    """Memory for the output, of q's shape: C-contiguous, or, where tokens_first says so, with memory
    (batch, q_len, q_heads, head_dim), as models read it.
    """
    if not tokens_first:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _, heads, rows, head_dim = q.shape
    strides = (rows * heads * head_dim, head_dim, heads * head_dim, 1)
    return torch.empty_strided(q.shape, strides, dtype=q.dtype, device=q.device)


def empty_lse(q: Any, wanted: bool) -> Any:
    """Memory for lse, without elements where it is not wanted."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape[:3] if wanted else (0,), dtype=dtype, device=q.device)


def _with_defaults(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    # The dispatcher leaves out arguments that equal their defaults, from the last one on.
    return arguments + (True, False)[len(arguments) - 6 :]


def _forward(*arguments: Any) -> Any:
    """(q, k, v, handles, scale, return_lse, deterministic, tokens_first) -> (out, lse); lse has no elements when it is
    not wanted.
    """
    q, k, v, handles, scale, return_lse, _, tokens_first = _with_defaults(arguments)
    tensors.check_tangents(q=q, k=k, v=v)
    masks = masks_of(handles)
    target = new_out(q, True) if tokens_first else None
    found = run_eagerly(q, k, v, masks, scale=scale, return_lse=return_lse, out=target, config=None)
    if not return_lse:
        return found, empty_lse(q, False)
    hold(masks, found[1])
    return found


def _forward_fake(*arguments: Any) -> Any:
    q, *_, return_lse, _, tokens_first = _with_defaults(arguments)
    return new_out(q, tokens_first), empty_lse(q, return_lse)


def _forward_out(*arguments: Any) -> Any:
    """(q, k, v, out, handles, scale, return_lse) -> lse."""
    q, k, v, out, handles, scale, return_lse = arguments
    tensors.check_tangents(q=q, k=k, v=v, out=out)
    found = run_eagerly(q, k, v, masks_of(handles), scale=scale, return_lse=return_lse, out=out, config=None)
    return found[1] if return_lse else empty_lse(q, False)


def _forward_out_fake(*arguments: Any) -> Any:
    return empty_lse(arguments[0], arguments[-1])


def _backward(*arguments: Any) -> Any:
    """(dout, dlse, q, k, v, out, lse, handles, scale, wanted, deterministic) -> (dq, dk, dv), without elements
    where they are not wanted.
    """
    *given, handles, scale, wanted, deterministic = arguments
    names = ("dout", "dlse", "q", "k", "v", "out", "lse")
    tensors.check_tangents(**dict(zip(names, given, strict=True)))
    refuse_graph_of_gradients()
    dout, dlse, *saved = given
    found = backward.gradients((dout, dlse), tuple(saved), masks_of(handles), scale, wanted, deterministic)
    return tuple(one.new_empty(0) if made is None else made for one, made in zip(saved, found, strict=False))


def _backward_fake(*arguments: Any) -> Any:
    return gradients_fake(arguments[2:5], arguments[9])


def gradients_fake(inputs: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    """Memory for dq, dk and dv of q, k and v: C-contiguous, without elements where they are not wanted."""
    shapes = (one.shape if asked else (0,) for one, asked in zip(inputs, wanted, strict=True))
    return tuple(
        torch.empty(shape, dtype=one.dtype, device=one.device)
        for one, shape in zip(inputs, shapes, strict=True)
    )


def save(ctx: Any, inputs: Any, lse: Any, out: Any) -> None:
    """What autograd keeps of a call for its backward pass. inputs: q, k and v."""
    if not lse.numel():
        raise UnsupportedError(
            "return_lse must be True where q, k or v requires a gradient: the backward pass reads lse"
        )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, out, lse)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, handles, scale, _, deterministic, _ = inputs
    save(ctx, arrays, output[1], output[0])
    ctx.options = handles, scale, deterministic
    if type(output[1]) in PLAIN:  # what traces keeps such a node with the graph
        ctx.masks = masks_of(handles)


def _formula(ctx: Any, dout: Any, dlse: Any) -> Any:
    handles, scale, deterministic = ctx.options
    found = _gradients(
        (dout, dlse), ctx.saved_tensors, handles, scale, ctx.needs_input_grad[:3], deterministic
    )
    return *found, None, None, None, None, None


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
forward_operator = torch.library.custom_op(
    "omnicupy::attention",
    _forward,
    mutates_args=(),
    schema=(
        f"(Tensor q, Tensor k, Tensor v, {_REST}, bool deterministic=True, bool tokens_first=False) -> (Tensor, Tensor)"
    ),
)
forward_operator.register_fake(_forward_fake)
forward_operator.register_autograd(_formula, setup_context=_setup)
forward_operator_out = torch.library.custom_op(
    "omnicupy::attention_out",
    _forward_out,
    mutates_args=("out",),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor(a!) out, {_REST}) -> Tensor",
)
forward_operator_out.register_fake(_forward_out_fake)
backward_operator = torch.library.custom_op(
    "omnicupy::attention_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor? dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, SymInt[] masks, "
        "float? scale, bool[] wanted, bool deterministic) -> (Tensor, Tensor, Tensor)"
    ),
)
backward_operator.register_fake(_backward_fake)
backward_operator.register_autograd(refuse_second)
