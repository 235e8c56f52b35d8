"""Argument checks of `attention_backward`: the only module that words its argument errors.

What q, k, v, mask and scale must be is check.py's; here is what gradients add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call import check
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.check_config import check_config
from omnicupy.call.check_widths import out_shape
from omnicupy.call.problem import Problem, type_name
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.arguments import flag
from omnicupy.masks.mask import Mask

GRADIENTS = ("q", "k", "v")
SINK = "sink_logits"  # what `wanted` may name beside them
READ_WHILE_WRITTEN = "inputs are read while gradients are written"
FROM_FORWARD = "pass what attention(..., return_lse=True) gave"


@dataclass(frozen=True, slots=True)
class BackwardCall:
    """A call of `attention_backward` that was checked.

    masks: one for all batch elements, or one for each.  scale: the factor of the scores.  wanted: whether dq, dk
    and dv are to be computed.  sink_wanted: whether the gradient of sink_logits is; at least one of these four.
    softcap: the bound of scores, or None.  has_sink: are there sink_logits?
    """

    problem: Problem
    masks: tuple[Mask, ...]
    scale: float
    wanted: tuple[bool, bool, bool]
    sink_wanted: bool = False
    softcap: float | None = None
    has_sink: bool = False


def call(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    mask: Mask | Sequence[Mask] | None = None,
    scale: float | None = None,
    dlse: Any = None,
    wanted: Any = GRADIENTS,
    out_grads: Any = None,
    deterministic: Any = True,
    sink_logits: Any = None,
    softcap: Any = None,
    config: BackwardSpec | None = None,
) -> BackwardCall:
    """Check the arguments of `attention_backward` before any work, once: what they come to is all that engines need.

    Arguments as in `attention_backward`; arrays are not read. On a GPU q, k, v, out and given gradients have a
    contiguous last axis and rows that are 16-byte aligned; dout, lse and dlse any strides in whole elements, zero and
    negative ones included, on the last axis too.
    Raises TypeError for an argument of a wrong type or dtype, ValueError for a wrong shape, value or layout.
    """
    found = check.call(q, k, v, mask, scale=scale, sink_logits=sink_logits, softcap=softcap)
    if type(deterministic) is not bool:
        flag("attention_backward", "deterministic", deterministic)
    chosen, sink_wanted = wanted_of(wanted, sink_logits)
    shape = out_shape(found.problem)
    _check_read("dout", dout, q, shape)
    _check_read("out", out, q, shape)
    if is_on_gpu(q):
        check.check_layout("out", out)
    if lse is None:
        raise TypeError(
            "lse must be the second result of attention(..., return_lse=True), got None; call attention with "
            "return_lse=True and pass both results"
        )
    _check_rows("lse", lse, q, FROM_FORWARD)
    if dlse is not None:
        _check_rows("dlse", dlse, q, "pass the gradient of lse, or None where it has none")
    inputs = [("dout", dout), ("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)]
    inputs += [(name, one) for name, one in (("dlse", dlse), (SINK, sink_logits)) if one is not None]
    _check_out_grads(out_grads, chosen, inputs)
    if config is not None:
        _check_config(config, found.problem, is_on_gpu(q))
    return BackwardCall(
        found.problem, found.masks, found.scale, chosen, sink_wanted, found.softcap, sink_logits is not None
    )


def wanted_of(wanted: Any, sink_logits: Any) -> tuple[tuple[bool, bool, bool], bool]:
    """Whether dq, dk and dv are wanted, and whether dsink_logits is. Raises TypeError or ValueError for other names."""
    names = (*GRADIENTS, SINK)
    if not isinstance(wanted, (list, tuple)):
        raise TypeError(
            f"wanted must be a list or tuple of names among {', '.join(names)}, got {type_name(wanted)}; "
            'write for example ("q", "k", "v")'
        )
    for i, name in enumerate(wanted):
        if not isinstance(name, str) or name not in names:
            raise ValueError(
                f"wanted[{i}] must be one of {', '.join(names)}, got {name!r}; name one of these"
            )
        if name in wanted[:i]:
            raise ValueError(f"wanted must name each gradient once, got {name!r} twice; drop one")
    if not wanted:
        raise ValueError(
            f"wanted must name at least one of {', '.join(names)}, got none; skip the call when it is empty"
        )
    of_q, of_k, of_v, of_sink = (name in wanted for name in names)
    if of_sink and sink_logits is None:
        raise ValueError(
            "wanted must not name sink_logits where sink_logits is None; leave the name out, or pass what attention "
            "was called with"
        )
    return (of_q, of_k, of_v), of_sink


def _check_read(name: str, array: Any, q: Any, shape: tuple[int, ...]) -> None:
    """dout and out: arrays like q, as wide as v."""
    check.check_place(name, array, q)
    if array.dtype != q.dtype:
        raise TypeError(f"{name} must have the dtype of q ({q.dtype}), got {array.dtype}; cast it")
    check.check_shape(name, array, ("q", q), shape)
    _check_elements(name, array)


def _check_rows(name: str, array: Any, q: Any, hint: str) -> None:
    """lse and dlse: a number for each row of q."""
    check.check_place(name, array, q)
    dtype = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} where q is {q.dtype}, got {array.dtype}; {hint}")
    if array.shape != q.shape[:3]:
        raise ValueError(
            f"{name} must have the shape (batch, q heads, q tokens) = {q.shape[:3]}, got {array.shape}; {hint}"
        )
    _check_elements(name, array)


def _check_elements(name: str, array: Any) -> None:
    # Kernels count strides in elements.
    size = array.dtype.itemsize
    if is_on_gpu(array) and (array.data.ptr % size or any(stride % size for stride in array.strides)):
        copy_with = getattr(array, "copy_with", "cupy.ascontiguousarray")
        raise ValueError(
            f"{name} must have an address and strides that are multiples of its element's {size} bytes, got "
            f"address {array.data.ptr:#x} and strides {array.strides}; copy it with {copy_with}"
        )


def _check_out_grads(out_grads: Any, wanted: tuple[bool, bool, bool], inputs: list[tuple[str, Any]]) -> None:
    if out_grads is None:
        return
    if not isinstance(out_grads, (list, tuple)):
        raise TypeError(
            f"out_grads must be None or a tuple of three, dq, dk and dv (each an array or None), got "
            f"{type_name(out_grads)}; write for example (dq, None, None)"
        )
    if len(out_grads) != 3:
        raise ValueError(
            f"out_grads must hold three, dq, dk and dv (each an array or None), got {len(out_grads)}; "
            "give None where a new array is to be made"
        )
    like = dict(inputs)
    taken = list(inputs)
    for i, (letter, target) in enumerate(zip(GRADIENTS, out_grads, strict=True)):
        if target is None:
            continue
        name = f"out_grads[{i}]"
        if not wanted[i]:
            raise ValueError(
                f"{name} must be None, got {type_name(target)}: wanted leaves {letter} out, so it would not be "
                "written; name it in wanted or pass None"
            )
        check.check_target(name, target, (letter, like[letter]), taken, READ_WHILE_WRITTEN)
        taken.append((name, target))


def _check_config(config: Any, found: Problem, on_gpu: bool) -> None:
    is_spec = isinstance(config, BackwardSpec)
    check_config(config, "a BackwardSpec", found, is_kind=is_spec, on_gpu=on_gpu)
    if config.value_dim != (wanted := kernel_widths(found.head_dim, found.value_dim)[1]):
        raise ValueError(
            f"config must have value_dim {wanted} (for v of {found.value_dim} columns beside {found.head_dim} of q), "
            f"got {config.value_dim}"
        )
