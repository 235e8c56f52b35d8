"""attention_backward() on CuPy arrays: planned once for shapes, strides and mask, as gpu/attention.py does."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from omnicupy.call import check, check_backward
from omnicupy.call.check_backward import GRADIENTS, BackwardCall
from omnicupy.gpu.attention import MAX_PLANS
from omnicupy.gpu.backward_plan import Addresses, BackwardPlan
from omnicupy.gpu.backward_planning import Layouts, new_plan
from omnicupy.gpu.mask_cache import cache_for, existing_cache
from omnicupy.gpu.plan import ALIGN_MASK
from omnicupy.gpu.planning import contiguous_strides
from omnicupy.gpu.streams import on_device
from omnicupy.jit import cache

_unmasked: dict[Any, BackwardPlan] = {}  # plans of calls without a mask; their keys hold the shapes


def attention_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *, mask: Any = None, **options: Any
) -> tuple[Any, Any, Any]:
    """omnicupy.attention_backward for CuPy arrays. options: its keywords."""
    given = (dout, q, k, v, out, lse)
    key, plan = _found(given, mask, options)
    if plan is None:
        plan = _made(key, given, mask, options)
    return on_device(plan.device, _launched, plan, given, options)


def prepare_backward(q: Any, k: Any, v: Any, mask: Any, *, scale: Any = None, config: Any = None) -> None:
    """What the first backward pass of such a call does before its launches, where out, dout and lse are contiguous."""
    call = check.call(q, k, v, mask, scale=scale)
    with cupy.cuda.Device(q.data.device_id):
        checked = BackwardCall(call.problem, call.masks, call.scale, (True, True, True))
        like_q, like_k, like_v = (
            (array.shape, contiguous_strides(array.shape, array.dtype.itemsize)) for array in (q, k, v)
        )
        layouts = Layouts(
            q=(q.shape, q.strides),
            k=(k.shape, k.strides),
            v=(v.shape, v.strides),
            out=like_q,
            dout=like_q,
            dq=like_q,
            dk=like_k,
            dv=like_v,
        )
        new_plan(checked, layouts, q.data.device_id, config, deterministic=True)


def _found(given: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> tuple[Any, BackwardPlan | None]:
    """What a plan for such arguments is kept under, and the plan; None where the checks have to look at them."""
    if options.get("out_grads") is not None or options.get("sink_logits") or options.get("softcap"):
        return None, None
    try:
        dlse = options.get("dlse")
        addresses = [array.data.ptr for array in given]
        key = (
            "backward",
            tuple((array.shape, array.strides, array.dtype, array.data.device_id) for array in given),
            None if dlse is None else (dlse.shape, dlse.dtype, dlse.data.device_id),
            not addresses[0] & ALIGN_MASK,
            tuple(options.get("wanted", GRADIENTS)),
            (options.get("scale"), options.get("deterministic", True), options.get("config"), cache.epoch),
            isinstance(mask, (list, tuple)),
        )
        if (addresses[1] | addresses[2] | addresses[3] | addresses[4]) & ALIGN_MASK:
            return key, None
        if mask is None:
            return key, _unmasked.get(key)
        kept = existing_cache(mask)
        return key, None if kept is None else kept.plans.get(key)
    except (AttributeError, TypeError):  # no arrays, mask, scale or names: the checks say so
        return None, None


def _made(key: Any, given: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> BackwardPlan:
    """Checks all arguments, then a new plan, which is kept unless `key` is None."""
    call = check_backward.call(*given, mask=mask, **options)
    dout, q, k, v, out, _ = given
    targets = options.get("out_grads") or (None, None, None)
    written = {
        f"d{name}": (of.shape, contiguous_strides(of.shape, of.dtype.itemsize) if to is None else to.strides)
        for name, of, to in zip(GRADIENTS, (q, k, v), targets, strict=True)
    }
    layouts = Layouts(
        **{
            name: (of.shape, of.strides)
            for name, of in (("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout))
        },
        **written,
        dout_aligned=not dout.data.ptr & ALIGN_MASK,
    )
    plans = None
    if key is not None:
        plans = (
            _unmasked
            if mask is None
            else cache_for((mask,) if not isinstance(mask, (list, tuple)) else mask).plans
        )
    with cupy.cuda.Device(q.data.device_id):
        plan = new_plan(
            call,
            layouts,
            q.data.device_id,
            options.get("config"),
            deterministic=options.get("deterministic", True),
        )
    if plans is not None:
        while len(plans) >= MAX_PLANS:
            plans.pop(next(iter(plans), None), None)
        plans[key] = plan
    return plan


def _launched(plan: BackwardPlan, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """dq, dk and dv of a launch on CuPy's current stream; the plan's device is current."""
    dout, q, k, v, out, lse = given
    stream = cupy.cuda.get_current_stream(plan.device)
    dlse = options.get("dlse")
    # Small; work on the stream, as the launches that read them.
    lse = lse if lse.flags.c_contiguous else cupy.ascontiguousarray(lse)
    if dlse is not None and not dlse.flags.c_contiguous:
        dlse = cupy.ascontiguousarray(dlse)
    wanted = options.get("wanted", GRADIENTS)
    targets = options.get("out_grads") or (None, None, None)
    made = tuple(
        None if name not in wanted else to if to is not None else cupy.ndarray(of.shape, np.dtype(of.dtype))
        for name, of, to in zip(GRADIENTS, (q, k, v), targets, strict=True)
    )
    at = Addresses(
        q.data.ptr,
        k.data.ptr,
        v.data.ptr,
        out.data.ptr,
        lse.data.ptr,
        dout.data.ptr,
        0 if dlse is None else dlse.data.ptr,
        *(0 if array is None else array.data.ptr for array in made),
    )
    plan.launch(at, stream)
    return made  # type: ignore[return-value]
