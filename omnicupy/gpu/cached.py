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
from omnicupy.serving.caches import AnyKV, pools_of, scale_addresses, scales_key
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
    return_lse: bool,
    **given: Any,
) -> Any:
    """omnicupy.attention with a CachedKV of CuPy arrays. mask: a rule, or a step.  given: its other options."""
    step = mask if isinstance(mask, CachedStep) else None
    rule = mask
    if step is not None:
        check_cached.fits_step(q, kv, step, given["rows"], given["max_rows"])
        rule, given = step.rule, check_cached.behind_step(step, given)
    plan = plan_of(q, kv, v, rule, **given)
    made = None if step is None else lists_of(step, plan)
    inputs = q, kv, given["sink_logits"], given["rows"]
    found = on_device(plan.kernel.device, _launched, plan, inputs, given["out"], return_lse, made)
    return found if return_lse else found[0]


def plan(q: Any, kv: AnyKV, mask: Any, *, rows: Any, max_rows: Any, **given: Any) -> CachedStep:
    """omnicupy.plan with a CachedKV of CuPy arrays. given: its other options."""
    found = plan_of(q, kv, None, mask, rows=rows, max_rows=max_rows, **given)
    device = found.kernel.device

    def make() -> MadeLists:
        return found.make_lists(kv.lengths.data.ptr, _current_stream(device), _address(rows))

    shapes, own = (
        check_cached.step_shapes(q, kv, max_rows),
        {name: given[name] for name in ("config", "split")},
    )
    return CachedStep(mask, kv.lengths, shapes, on_device(device, make), rows=rows, **own)


def prepare(q: Any, kv: AnyKV, v: Any, mask: Any, *, max_length: Any, **given: Any) -> None:
    """omnicupy.prepare with a CachedKV of CuPy arrays. given: the options of attention."""
    if max_length is not None:
        check_cached.call(q, kv, v, mask, max_length=max_length, **given)
    plan_of(q, kv, v, mask, **given)


def plan_of(
    q: Any,
    kv: AnyKV,
    v: Any,
    rule: Any,
    *,
    scale: Any = None,
    sink_logits: Any = None,
    softcap: Any = None,
    out: Any = None,
    config: Any = None,
    split: Any = None,
    rows: Any = None,
    max_rows: Any = None,
) -> CachedPlan:
    """The plan that was made for such CuPy arrays, or a new one. Raises every argument error."""
    options = scale, softcap, config, split
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
            None if table is None else _key_of(table),
            None if sink_logits is None else _key_of(sink_logits),
            scales_key(kv, _key_of),
            None if rows is None else (*_key_of(rows), max_rows, type(max_rows)),
        )
        addresses = (
            *(x.ptr, y.ptr, z.ptr, None if target is None else target.ptr, w.ptr | _address(rows)),
            None if table is None else table.data.ptr,
        )
        sinks = None if sink_logits is None else sink_logits.data.ptr
        scales = scale_addresses(kv, _address)
    except AttributeError:  # not CuPy arrays: the checks say so
        pass
    else:
        found = None
        if (rows is None) == (max_rows is None):  # one alone is refused
            found = find_plan(array_key, addresses, rule, options, sinks, scales)
        if found is not None:
            return found
    ragged = {} if rows is None and max_rows is None else {"rows": rows, "max_rows": max_rows}
    return make_plan(array_key, (q, kv, v, out, sink_logits), rule, options, ragged=ragged)


def find_plan(
    array_key: Any,
    addresses: tuple[int, int, int, int | None, int, int | None],
    rule: Any,
    options: tuple[Any, Any, Any, Any],
    sinks: int | None,
    scales: tuple[int, int],
) -> CachedPlan | None:
    """The plan that `make_plan` kept for such arguments; None where it has to look at them.

    array_key: all that a plan depends on of q, the caches, lengths, `out` and sink_logits; equals no other library's
    for other arrays.  addresses: of q, k, v, `out` or None, lengths (with the bits of rows'), and the table of pages or
    None.  options: scale,
    softcap, config and split.  sinks: address of sink_logits, or None.  scales: addresses of those of keys and values,
    0 for numbers.
    """
    plan = _kept(array_key, rule, options)
    if plan is None or not plan.fits_addresses(*addresses):
        return None
    k_scale, v_scale = scales
    if (k_scale or v_scale) and not plan.fits_scales(k_scale, v_scale, addresses[3]):
        return None
    return plan if sinks is None or plan.kernel.fits_sink(sinks, addresses[3]) else None


def make_plan(
    array_key: Any,
    arrays: tuple[Any, AnyKV, Any, Any, Any],
    rule: Any,
    options: tuple[Any, Any, Any, Any],
    *,
    stream: Any = None,
    ragged: dict[str, Any] | None = None,
) -> CachedPlan:
    """Checks all arguments, then as `find_plan`, or a new plan, which is kept unless `array_key` is None.

    arrays: q, the caches, v, `out` and sink_logits, the last three or None.  options: as in `find_plan`.  stream:
    uploads a tail; None for CuPy's current one.  ragged: rows and max_rows, where they are given.
    """
    q, kv, v, out, sink_logits = arrays
    given: dict[str, Any] = dict(zip(("scale", "softcap", "config", "split"), options, strict=True))
    given |= ragged or {}
    call = check_cached.call(q, kv, v, rule, out=out, sink_logits=sink_logits, **given)
    plan = None if array_key is None else _kept(array_key, rule, options)
    if plan is None:
        with cupy.cuda.Device(q.data.device_id):
            plan = new_plan(call, q, kv, out, config=given["config"], stream=stream)
        if array_key is not None:
            while len(_plans) >= MAX_PLANS:
                _plans.pop(next(iter(_plans)), None)
            _plans[_key(array_key, rule, options)] = plan
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
            "mask: the step was made for another kernel, split or device than this call's; make it with oc.plan of the "
            "same dtype, strides, softcap, config and split"
        )
    return made


def _address(array: Any) -> int:
    """0 for None."""
    return 0 if array is None else int(array.data.ptr)


def _key_of(array: Any) -> Any:
    return array.shape, array.strides, array.dtype, array.data.device_id


def _key(array_key: Any, rule: CachedRule, options: tuple[Any, Any, Any, Any]) -> Any:
    """What a plan is kept under. With the types of numbers: True equals 1, and is refused."""
    scale, softcap, config, split = options
    numbers = scale, type(scale), softcap, type(softcap), split, type(split)
    return array_key, rule, numbers, config, cache.epoch


def _kept(array_key: Any, rule: Any, options: tuple[Any, Any, Any, Any]) -> CachedPlan | None:
    if not isinstance(rule, CachedRule):
        return None
    try:
        return _plans.get(_key(array_key, rule, options))
    except TypeError:  # no scale, softcap, config or split: the checks say so
        return None


def _launched(
    plan: CachedPlan, inputs: tuple[Any, AnyKV, Any, Any], out: Any, return_lse: bool, made: MadeLists | None
) -> tuple[Any, Any]:
    """out and lse, None unless it is wanted, of a launch on CuPy's current stream; the plan's device is current.

    inputs: q, the caches, and sink_logits and rows or None.
    """
    q, kv, sink_logits, rows = inputs
    kernel = plan.kernel
    stream = _current_stream(kernel.device)
    if out is None:
        out = cupy.ndarray(plan.out_shape, kernel.dtype)
    lse = cupy.ndarray(plan.lse_shape, np.float32) if return_lse else None
    k, v, table = pools_of(kv)
    addresses = (q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, 0 if lse is None else lse.data.ptr)
    others: dict[str, Any] = {
        "page_table": _address(table),
        "sink_logits": _address(sink_logits),
        "row_starts": _address(rows),
        "scales": scale_addresses(kv, _address),
    }
    plan.launch(addresses, kv.lengths.data.ptr, stream, made, **others)
    return out, lse
