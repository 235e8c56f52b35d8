"""attention(), plan() and prepare() with a CachedKV or PagedKV of CuPy arrays, planned on the host once for shapes and
rule.

What depends on lengths is worked out on the device, by a small kernel ahead of the call or of a step's calls
(cached_plan.py): the host plans nothing anew while sequences grow.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from omnicupy.call import check_cached
from omnicupy.gpu.cached_plan import CachedPlan, MadeLists
from omnicupy.gpu.cached_planning import new_plan
from omnicupy.gpu.streams import on_device
from omnicupy.jit import cache
from omnicupy.serving.caches import AnyKV, pools_of
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep

MAX_PLANS = 256  # shapes, rules, options; the oldest goes first
_current_stream = cupy.cuda.get_current_stream
_plans: dict[Any, CachedPlan] = {}


def attention(
    q: Any,
    kv: AnyKV,
    v: Any,
    mask: Any,
    *,
    scale: Any = None,
    return_lse: bool = False,
    out: Any = None,
    config: Any = None,
) -> Any:
    """omnicupy.attention with a CachedKV of CuPy arrays. mask: a rule, or a step."""
    step = mask if isinstance(mask, CachedStep) else None
    rule = mask
    if step is not None:
        check_cached.fits_step(q, kv, step)
        rule, config = step.rule, config or step.config
    plan = plan_of(q, kv, v, rule, scale=scale, out=out, config=config)
    made = None if step is None else lists_of(step, plan)
    found = on_device(plan.kernel.device, _launched, plan, (q, kv), out, return_lse, made)
    return found if return_lse else found[0]


def plan(q: Any, kv: AnyKV, mask: Any, *, config: Any = None) -> CachedStep:
    """omnicupy.plan with a CachedKV of CuPy arrays."""
    found = plan_of(q, kv, None, mask, scale=None, out=None, config=config)
    device = found.kernel.device

    def make() -> MadeLists:
        return found.make_lists(kv.lengths.data.ptr, _current_stream(device))

    return CachedStep(mask, kv.lengths, check_cached.step_shapes(q, kv), on_device(device, make), config)


def prepare(
    q: Any, kv: AnyKV, v: Any, mask: Any, *, scale: Any, out: Any, config: Any, max_length: Any
) -> None:
    """omnicupy.prepare with a CachedKV of CuPy arrays."""
    if max_length is not None:
        check_cached.call(q, kv, v, mask, scale=scale, out=out, config=config, max_length=max_length)
    plan_of(q, kv, v, mask, scale=scale, out=out, config=config)


def plan_of(q: Any, kv: AnyKV, v: Any, rule: Any, *, scale: Any, out: Any, config: Any) -> CachedPlan:
    """The plan that was made for such CuPy arrays, or a new one. Raises every argument error."""
    array_key: Any = None
    (k, values, table), lengths = pools_of(kv), kv.lengths
    try:
        x, y, z, w = q.data, k.data, values.data, lengths.data
        target = None if out is None else out.data
        array_key = (
            (
                q.shape,
                q.strides,
                k.shape,
                k.strides,
                values.shape,
                values.strides,
                q.dtype,
                k.dtype,
                values.dtype,
            ),
            (lengths.shape, lengths.dtype, lengths.strides),
            (x.device_id, y.device_id, z.device_id, w.device_id),
            None if target is None else (out.shape, out.strides, out.dtype, target.device_id),
            v is None,
            None if table is None else (table.shape, table.strides, table.dtype, table.data.device_id),
        )
        addresses = (
            *(x.ptr, y.ptr, z.ptr, None if target is None else target.ptr, w.ptr),
            None if table is None else table.data.ptr,
        )
    except AttributeError:  # not CuPy arrays: the checks say so
        pass
    else:
        found = find_plan(array_key, addresses, rule, scale, config)
        if found is not None:
            return found
    return make_plan(array_key, (q, kv, v, out), rule, scale=scale, config=config)


def find_plan(
    array_key: Any, addresses: tuple[int | None, ...], rule: Any, scale: Any, config: Any
) -> CachedPlan | None:
    """The plan that `make_plan` kept for such arguments; None where it has to look at them.

    array_key: all that a plan depends on of q, the caches, lengths and `out`; equals no other library's for other
    arrays.  addresses: of q, k, v, `out` or None, lengths, and the table of pages or None.
    """
    plan = _kept(array_key, rule, scale, config)
    return plan if plan is not None and plan.fits_addresses(*addresses) else None  # type: ignore[arg-type]


def make_plan(
    array_key: Any,
    arrays: tuple[Any, AnyKV, Any, Any],
    rule: Any,
    *,
    scale: Any,
    config: Any,
    stream: Any = None,
) -> CachedPlan:
    """Checks all arguments, then as `find_plan`, or a new plan, which is kept unless `array_key` is None.

    arrays: q, the caches, v and `out` or None.  stream: uploads a tail; None for CuPy's current one.
    """
    q, kv, v, out = arrays
    call = check_cached.call(q, kv, v, rule, scale=scale, out=out, config=config)
    plan = None if array_key is None else _kept(array_key, rule, scale, config)
    if plan is None:
        with cupy.cuda.Device(q.data.device_id):
            plan = new_plan(call, q, kv, out, config=config, stream=stream)
        if array_key is not None:
            while len(_plans) >= MAX_PLANS:
                _plans.pop(next(iter(_plans)), None)
            _plans[array_key, rule, scale, config, cache.epoch] = plan
    return plan


def lists_of(step: CachedStep, plan: CachedPlan) -> MadeLists:
    """The lists of a step, for a layer's plan. Raises ValueError where that has other tiles, TypeError for a step of
    the CPU.
    """
    made = step.lists
    if not isinstance(made, MadeLists):
        raise TypeError(
            "mask: the step was made of NumPy arrays; make it with oc.plan of arrays on this device"
        )
    of = made.plan
    if of is not plan and (of.lists != plan.lists or of.kernel.device != plan.kernel.device):
        raise ValueError(
            "mask: the step was made for another kernel or device than this call's; make it with oc.plan of the same "
            "dtype, strides and config"
        )
    return made


def _kept(array_key: Any, rule: Any, scale: Any, config: Any) -> CachedPlan | None:
    if not isinstance(rule, CachedRule):
        return None
    try:
        return _plans.get((array_key, rule, scale, config, cache.epoch))
    except TypeError:  # no scale or config: the checks say so
        return None


def _launched(
    plan: CachedPlan, inputs: tuple[Any, AnyKV], out: Any, return_lse: bool, made: MadeLists | None
) -> tuple[Any, Any]:
    """out and lse, None unless it is wanted, of a launch on CuPy's current stream; the plan's device is current."""
    q, kv = inputs
    kernel = plan.kernel
    stream = _current_stream(kernel.device)
    if out is None:
        out = cupy.ndarray(kernel.shape, kernel.dtype)
    lse = cupy.ndarray(kernel.shape[:3], np.float32) if return_lse else None
    k, v, table = pools_of(kv)
    addresses = (q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, 0 if lse is None else lse.data.ptr)
    of_table = None if table is None else table.data.ptr
    plan.launch(addresses, kv.lengths.data.ptr, stream, made, of_table)
    return out, lse
