"""A step of decoding in the layers behind its first one: as that layer's call, but for where arrays lie.

A first layer's call checks all and finds its plan. What that depends on is kept with the step; a later layer whose
tensors and options agree with it only has to be launched. A call that differs in anything gives None here, and goes the
whole way, which alone words errors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from omnicupy.jit import cache
from omnicupy.serving.caches import CACHES, AnyKV, pools_of
from omnicupy.serving.step import CachedStep
from omnicupy.torch import eager, memory, state, tensors

NUMBERS = ("scale", "softcap")  # options that are compared by type and value
KINDS = (float, int, type(None))  # their types; a call with others is not kept
LEFT = ("config", "split", "rows", "max_rows")  # what a layer leaves to its step


class Layer(NamedTuple):
    """A layer's call, as far as others may be equal to it.

    gpu: as in cached.py.  at: the device, CuPy's stream for torch's, and its handle.  launched: the plan, and the lists
    of the step.  numbers: scale and softcap.  epoch: of the kernels.
    """

    gpu: Any
    at: tuple[int, Any, int]
    launched: tuple[Any, Any]
    kind: type[AnyKV]
    table: Any
    layout: list[Any]
    numbers: tuple[Any, ...]
    epoch: int


def keep(
    step: CachedStep,
    inputs: tuple[Any, Any],
    options: dict[str, Any],
    gpu: Any,
    at: tuple[int, Any, int],
    launched: tuple[Any, Any],
) -> None:
    """Take note of a layer's call, which was launched. inputs: q and the caches.  options: of attention, as they were
    given.  The others: as in Layer.
    """
    q, kv = inputs
    numbers = tuple(options[name] for name in NUMBERS)
    left = all(options[name] is None for name in LEFT) and kv.k_scale is None and kv.v_scale is None
    if left and type(kv) in CACHES and all(type(number) in KINDS for number in numbers):
        k, v, table = pools_of(kv)
        layout = _layout((q, k, v, options["out"], options["sink_logits"], table))
        step.layer = Layer(gpu, at, launched, type(kv), table, layout, numbers, cache.epoch)


def again(step: CachedStep, q: Any, kv: Any, v: Any, options: dict[str, Any]) -> Any:
    """What attention returns for a layer that is as the one that was kept, but for where its arrays lie; None where it
    is not. options: of attention. Nothing looks at the frames of this thread to compile them.
    """
    kept: Layer | None = step.layer
    if kept is None or not isinstance(kv, kept.kind) or kv.lengths is not step.lengths:
        return None
    if kv.k_scale is not None or kv.v_scale is not None or kept.epoch != cache.epoch:
        return None
    if v is not None or (step.rows is not None and torch.are_deterministic_algorithms_enabled()):
        return None  # torch fills new tensors then, and the kernel writes no row that is of no sequence
    for name in LEFT:  # no any(), which takes three times as long
        if options[name] is not None:
            return None
    for name, other in zip(NUMBERS, kept.numbers, strict=True):
        number = options[name]
        if number is not other and (type(number) is not type(other) or number != other):
            return None
    out, sinks, return_lse = options["out"], options["sink_logits"], options["return_lse"]
    k, v, table = pools_of(kv)
    if table is not kept.table or _is_watched(q, k, v, out, sinks):
        return None
    try:
        if _layout((q, k, v, out, sinks, table)) != kept.layout:
            return None
        at = q.data_ptr(), k.data_ptr(), v.data_ptr()
        of_out, of_sinks, of_table = [0 if one is None else one.data_ptr() for one in (out, sinks, table)]
    except RuntimeError:  # a tensor without strides, or without memory
        return None
    (index, _, handle), plan = kept.at, kept.launched[0]
    where = None if out is None else of_out
    fits = all(at) and plan.fits_addresses(*at, where, 0, of_table) and where != 0
    if sinks is not None:
        fits = fits and of_sinks and plan.kernel.fits_sink(of_sinks, where)
    if not fits or eager.raw_stream(index) != handle:
        return None
    found = kept.gpu.on_device(index, _launched, kept, at, (of_sinks, of_table), (q.dtype, out), return_lse)
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return found


def _layout(given: tuple[Any, ...]) -> list[Any]:
    """What a plan depends on of tensors, None for those that are not there."""
    return [
        None if one is None else (one.shape, one.stride(), one.dtype, one.device, one.is_neg())
        for one in given
    ]


def _is_watched(q: Any, k: Any, v: Any, out: Any, sinks: Any) -> bool:
    """Is more to be looked at than these tensors' layouts: are they of subclasses, or does torch look at calls?"""
    if not state.are_plain(q, k, v, out, sinks) or state.any_autocast():
        return True
    if state.is_watched() or state.jit_traces():
        return True
    return tensors.need_gradients(q, k, v, sinks) or tensors.needs_gradient(out)


def _launched(
    kept: Layer, at: tuple[int, int, int], others: tuple[int, int], to: tuple[Any, Any], return_lse: bool
) -> Any:
    """The launch; the device is current. at, others: addresses of q, k and v, and of sink_logits and the table.  to:
    the dtype of a new output, and `out`.
    """
    plan, made = kept.launched
    dtype, out = to
    if out is None:
        out = memory.new(plan.out_shape, dtype)
    lse = memory.new(plan.lse_shape, torch.float32) if return_lse else None
    addresses = *at, out.data_ptr(), 0 if lse is None else lse.data_ptr()
    sinks, table = others
    plan.launch(addresses, 0, kept.at[1], made, page_table=table, sink_logits=sinks)
    return out if lse is None else (out, lse)
