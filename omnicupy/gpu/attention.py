"""attention() on CuPy arrays: what shapes, strides and mask decide is planned once, the rest is a launch.

A plan is found by what it depends on, through a dictionary kept on the mask (so it is freed with the mask and
its device arrays). A warm call builds the key, allocates the outputs, writes its addresses into the stream's copy of
the parameter struct and launches; whatever can change under an equal key (addresses) is checked there. torch/eager.py
finds and launches the same plans.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cupy
import numpy as np

from omnicupy.call import check
from omnicupy.gpu.mask_cache import cache_for, existing_cache
from omnicupy.gpu.plan import Plan
from omnicupy.gpu.planning import new_plan
from omnicupy.gpu.streams import on_device, using
from omnicupy.jit import cache
from omnicupy.masks.mask import Mask

MAX_PLANS = 256  # a mask's plans (shapes, strides, options); the oldest goes first
_current_stream = cupy.cuda.get_current_stream
_unmasked: dict[Any, Plan] = {}  # plans of calls without a mask; their keys hold the shapes
Options: TypeAlias = tuple[Any, Any, Any, Any]  # scale, softcap, config and split, as in omnicupy.attention


def attention(q: Any, k: Any, v: Any, mask: Any, return_lse: bool, given: dict[str, Any]) -> Any:
    """omnicupy.attention for CuPy arrays; also raises the error where q, k and v are no arrays at all. given: its
    other options.
    """
    plan = plan_of(q, k, v, mask, given)
    inputs = (q, k, v, given["sink_logits"])
    found = on_device(plan.device, _launched, plan, inputs, given["out"], return_lse)
    return found if return_lse else found[0]


def plan_of(q: Any, k: Any, v: Any, mask: Any, given: dict[str, Any]) -> Plan:
    """The plan that was made for such CuPy arrays, or a new one: the kernel loaded, the block lists on their way to
    the device. Raises every argument error. given: the other options of omnicupy.attention.
    """
    out, sink_logits = given["out"], given["sink_logits"]
    options = given["scale"], given["softcap"], given["config"], given["split"]
    array_key: Any = None
    plan = None
    try:
        x, y, z, target = q.data, k.data, v.data, None if out is None else out.data
        array_key = (
            (q.shape, q.strides, k.shape, k.strides, v.shape, v.strides, q.dtype, k.dtype, v.dtype),
            (x.device_id, y.device_id, z.device_id),
            None if target is None else (out.shape, out.strides, out.dtype, target.device_id),
            None if sink_logits is None else _sink_key(sink_logits),
        )
        addresses = (x.ptr, y.ptr, z.ptr, None if target is None else target.ptr)
    except AttributeError:  # not CuPy arrays: the checks say so
        pass
    else:
        plan = find_plan(array_key, addresses, mask, options)
        if plan is not None and sink_logits is not None:
            plan = plan if plan.fits_sink(sink_logits.data.ptr, addresses[3]) else None
    return plan or make_plan(array_key, (q, k, v, out), mask, options, sink_logits=sink_logits)


def _sink_key(sink_logits: Any) -> Any:
    return sink_logits.shape, sink_logits.strides, sink_logits.dtype, sink_logits.data.device_id


def find_plan(
    array_key: Any, addresses: tuple[int, int, int, int | None], mask: Any, options: Options
) -> Plan | None:
    """The plan that `make_plan` kept for such arguments; None where it has to look at them.

    array_key: all that a plan depends on of q, k, v, `out` and sink_logits; equals no other library's for other arrays.
    addresses: of q, k, v and `out`, None for no `out`; that of sink_logits is the caller's to look at (fits_sink).
    """
    plan = _kept(_key(array_key, mask, options), mask)
    if plan is None:
        return None
    q, k, v, out = addresses
    return plan if plan.fits_addresses(q, k, v, out) else None


def make_plan(
    array_key: Any,
    arrays: tuple[Any, Any, Any, Any],
    mask: Any,
    options: Options,
    *,
    sink_logits: Any,
    stream: Any = None,
) -> Plan:
    """Checks all arguments, then as `find_plan`, or a new plan, which is kept unless `array_key` is None.

    arrays: q, k, v and `out` or None.  stream: uploads the mask, of their device; None for CuPy's current one.
    Raises every argument error.
    """
    q, k, v, out = arrays
    scale, softcap, config, split = options
    changes = {"sink_logits": sink_logits, "softcap": softcap}
    call = check.call(q, k, v, mask, scale=scale, out=out, config=config, split=split, **changes)
    key = _key(array_key, mask, options)
    plan = None if array_key is None else _kept(key, mask)
    if plan is None:
        with cupy.cuda.Device(q.data.device_id), using(stream):
            plan = new_plan(call, arrays, config)
        if array_key is not None:
            _keep(plan, key, mask)
    return plan


def _launched(plan: Plan, inputs: tuple[Any, Any, Any, Any], out: Any, return_lse: bool) -> tuple[Any, Any]:
    """out and lse, None unless it is wanted, of a launch on CuPy's current stream; the plan's device is current."""
    q, k, v, sink_logits = inputs
    stream = _current_stream(plan.device)
    if out is None:
        out = cupy.ndarray(plan.shape, plan.dtype)
    lse = cupy.ndarray(plan.shape[:3], np.float32) if return_lse else None
    sinks = 0 if sink_logits is None else sink_logits.data.ptr
    at_lse = 0 if lse is None else lse.data.ptr
    plan.launch(q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, at_lse, stream, sink_logits=sinks)
    return out, lse


def _key(array_key: Any, mask: Any, options: Options) -> Any:
    """What a plan is kept under. A list of one shares the mask's cache, but is right for a batch of one alone. With the
    types of numbers: True equals 1, and is refused.
    """
    scale, softcap, config, split = options
    numbers = scale, type(scale), softcap, type(softcap), split, type(split)
    return array_key, numbers, config, cache.epoch, isinstance(mask, (list, tuple))


def _kept(key: Any, mask: Any) -> Plan | None:
    try:
        if mask is None:
            return _unmasked.get(key)
        found = mask._device.get(()) if type(mask) is Mask else existing_cache(mask)
        return None if found is None else found.plans.get(key)
    except (AttributeError, TypeError):  # no mask, scale or config: the checks say so
        return None


def _keep(plan: Plan, key: Any, mask: Any) -> None:
    # A list that repeats one mask is looked up as a list, but shares that mask's device arrays.
    masks = (mask,) if isinstance(mask, Mask) else mask
    plans = _unmasked if mask is None else cache_for(masks).plans
    while len(plans) >= MAX_PLANS:
        plans.pop(next(iter(plans), None), None)
    plans[key] = plan
