"""attention_backward() on CuPy arrays: planned once for shapes, strides and mask, as gpu/attention.py does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from omnicupy.call import check_backward
from omnicupy.call.arrays import DeviceArray
from omnicupy.call.check_backward import GRADIENTS, SINK
from omnicupy.errors import UnsupportedError
from omnicupy.gpu.attention import MAX_PLANS
from omnicupy.gpu.backward_plan import Addresses, BackwardPlan
from omnicupy.gpu.backward_planning import Layouts, new_plan
from omnicupy.gpu.mask_cache import cache_for, existing_cache
from omnicupy.gpu.plan import ALIGN_MASK
from omnicupy.gpu.planning import contiguous_strides
from omnicupy.gpu.ranges import byte_range
from omnicupy.gpu.streams import is_capturing, on_device
from omnicupy.jit import cache
from omnicupy.masks.mask import Mask

_NO_TARGETS = (None, None, None)
_LSE_BYTES = 4  # of an element of lse, dlse and sink_logits
_reach = lru_cache(maxsize=1024)(byte_range)
_unmasked: dict[Any, BackwardPlan] = {}  # plans of calls without a mask; their keys hold the shapes


def attention_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *, mask: Any = None, **options: Any
) -> tuple[Any, ...]:
    """omnicupy.attention_backward for CuPy arrays. options: its keywords."""
    given = (dout, q, k, v, out, lse)
    plan = _plan_of(given, mask, options)
    return on_device(plan.device, _launched, plan, given, options)


def prepare_backward(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any = None,
    config: Any = None,
    deterministic: Any = True,
    sink_logits: Any = None,
    softcap: Any = None,
) -> None:
    """What the first backward pass of such a call does before its launches: that with all gradients, but for that
    of sink_logits, where out, dout and lse are contiguous, then finds its plan. Others plan anew, but find kernels,
    block lists and memory ready. Raises the argument errors of attention_backward.
    """
    dout = out = lse = None
    try:
        shape, dtype, device = q.shape, q.dtype, q.data.device_id
        dout = out = _stand_in((*shape[:3], *v.shape[3:]), dtype, device)
        lse = _stand_in(shape[:3], np.dtype(np.float32), device)
    except AttributeError:  # q or v is no array: the checks say so
        pass
    options = {"scale": scale, "config": config, "deterministic": deterministic}
    _plan_of((dout, q, k, v, out, lse), mask, options | {"sink_logits": sink_logits, "softcap": softcap})


def _stand_in(shape: tuple[int, ...], dtype: Any, device: int) -> DeviceArray:
    """A C-contiguous array for checks and plans, which never look into its memory."""
    return DeviceArray(dtype, ALIGN_MASK + 1, device, shape, contiguous_strides(shape, dtype.itemsize))


def _plan_of(given: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> BackwardPlan:
    """The plan that was made for such arrays and options, or a new one. Raises every argument error.

    given: dout, q, k, v, out, lse.
    """
    key = _key(given, mask, options)
    plan = find_plan(key, mask)
    return plan if plan is not None and _fits(given, options) else make_plan(key, given, mask, options)


def make_plan(key: Any, given: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> BackwardPlan:
    """Checks all arguments, then as `find_plan`, or a new plan, which is kept unless `key` is None.

    key: all that a plan depends on, which equals no other library's for other arrays.  given: dout, q, k, v, out, lse.
    Raises every argument error.
    """
    call = check_backward.call(*given, mask=mask, **options)
    plan = find_plan(key, mask)
    if plan is None:
        q = given[1]
        with cupy.cuda.Device(q.data.device_id):
            plan = new_plan(
                call,
                _layouts(given, options),
                q.data.device_id,
                options.get("config"),
                deterministic=options.get("deterministic", True),
            )
        if key is not None:
            _keep(plan, key, mask)
    return plan


def _key(given: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> Any:
    """What a plan is kept under: all that it depends on, and what the checks ask for. None: let them look each time."""
    wanted, deterministic = options.get("wanted", GRADIENTS), options.get("deterministic", True)
    if not isinstance(wanted, (list, tuple)) or type(deterministic) is not bool:
        return None
    sinks, scale, softcap = options.get(SINK), options.get("scale"), options.get("softcap")
    if sinks is None and SINK in wanted:
        return None
    try:
        return (
            "backward",
            tuple((array.shape, array.strides, array.dtype, array.data.device_id) for array in given),
            _targets_key(given[1:4], options.get("out_grads")),
            not given[0].data.ptr & ALIGN_MASK,
            tuple(wanted),
            # With the types of numbers: True equals 1, and is refused.
            (scale, type(scale), softcap, type(softcap), deterministic, options.get("config"), cache.epoch),
            None if sinks is None else (sinks.shape, sinks.strides, sinks.dtype, sinks.data.device_id),
            isinstance(mask, (list, tuple)),
        )
    except (AttributeError, TypeError, ValueError):  # no arrays, or not three targets: the checks say so
        return None


def _targets_key(inputs: tuple[Any, ...], targets: Any) -> Any:
    """Of each array in out_grads what is unlike one that would be made; None where nothing is."""
    if targets is None:
        return _NO_TARGETS
    found = []
    for of, to in zip(inputs, targets, strict=True):
        like = (of.shape, contiguous_strides(of.shape, of.dtype.itemsize), of.dtype, of.data.device_id)
        layout = like if to is None else (to.shape, to.strides, to.dtype, to.data.device_id)
        found.append(None if layout == like else layout)
    return tuple(found)


def find_plan(key: Any, mask: Any) -> BackwardPlan | None:
    """The plan that `make_plan` kept under an equal key; None where it has to look at the arguments."""
    if key is None:
        return None
    try:
        if mask is None:
            return _unmasked.get(key)
        found = mask._device.get(()) if type(mask) is Mask else existing_cache(mask)
        return None if found is None else found.plans.get(key)
    except (AttributeError, TypeError):  # no mask, scale, config or names: the checks say so
        return None


def _keep(plan: BackwardPlan, key: Any, mask: Any) -> None:
    masks = (mask,) if isinstance(mask, Mask) else mask
    plans = _unmasked if mask is None else cache_for(masks).plans
    while len(plans) >= MAX_PLANS:
        plans.pop(next(iter(plans), None), None)
    plans[key] = plan


def _fits(given: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Is all right that an equal key leaves open: addresses, dlse, and that out_grads lie apart? False: check all."""
    dout, q, k, v, out, lse = given
    dlse, targets, sinks = options.get("dlse"), options.get("out_grads"), options.get(SINK)
    if (q.data.ptr | k.data.ptr | v.data.ptr | out.data.ptr) & ALIGN_MASK:
        return False
    if dout.data.ptr % dout.dtype.itemsize or lse.data.ptr % _LSE_BYTES:
        return False
    if sinks is not None and sinks.data.ptr % _LSE_BYTES:
        return False
    if dlse is not None:
        try:
            like = dlse.shape == lse.shape and dlse.dtype == lse.dtype
            if not like or dlse.data.device_id != lse.data.device_id or not dlse.flags.c_contiguous:
                return False
            if dlse.data.ptr % _LSE_BYTES:
                return False
        except AttributeError:
            return False
    read = [*given, *(one for one in (dlse, sinks) if one is not None)]
    return targets is None or _are_apart(read, targets, options)


def _are_apart(read: list[Any], targets: Any, options: dict[str, Any]) -> bool:
    """A cheap test that only the full check can overrule: no address ranges meet."""
    wanted = options.get("wanted", GRADIENTS)
    taken = [_range_of(array) for array in read]
    for name, to in zip(GRADIENTS, targets, strict=True):
        if to is None:
            continue
        first, stop = _range_of(to)
        if name not in wanted or to.data.ptr & ALIGN_MASK:
            return False
        if any(begin < stop and first < end for begin, end in taken):
            return False
        taken.append((first, stop))
    return True


def _range_of(array: Any) -> tuple[int, int]:
    """The address of an array's first byte and the one past its last."""
    first, stop = _reach((array.shape, array.strides), array.dtype.itemsize)
    return array.data.ptr + first, array.data.ptr + stop


def _layouts(given: tuple[Any, ...], options: dict[str, Any]) -> Layouts:
    dout, q, k, v, out, _ = given
    targets = options.get("out_grads") or _NO_TARGETS
    written = {
        f"d{name}": (of.shape, contiguous_strides(of.shape, of.dtype.itemsize) if to is None else to.strides)
        for name, of, to in zip(GRADIENTS, (q, k, v), targets, strict=True)
    }
    read = {"q": q, "k": k, "v": v, "out": out, "dout": dout}
    return Layouts(
        **{name: (array.shape, array.strides) for name, array in read.items()},
        **written,
        dout_aligned=not dout.data.ptr & ALIGN_MASK,
    )


def _launched(plan: BackwardPlan, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """dq, dk and dv, and that of sink_logits where it is wanted, of a launch on CuPy's current stream; the plan's
    device is current.
    """
    dout, q, k, v, out, lse = given
    stream = cupy.cuda.get_current_stream(plan.device)
    lse, dlse = _compact("lse", lse, stream), _compact("dlse", options.get("dlse"), stream)
    wanted = options.get("wanted", GRADIENTS)
    targets = options.get("out_grads") or _NO_TARGETS
    dq, dk, dv = made = [
        None if name not in wanted else cupy.ndarray(of.shape, of.dtype) if to is None else to
        for name, of, to in zip(GRADIENTS, (q, k, v), targets, strict=True)
    ]
    sinks = options.get(SINK)
    of_sinks = None if sinks is None or SINK not in wanted else cupy.ndarray(sinks.shape, np.float32)
    at = Addresses(
        *(q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, lse.data.ptr, dout.data.ptr),
        0 if dlse is None else dlse.data.ptr,
        0 if dq is None else dq.data.ptr,
        0 if dk is None else dk.data.ptr,
        0 if dv is None else dv.data.ptr,
        0 if sinks is None else sinks.data.ptr,
        0 if of_sinks is None else of_sinks.data.ptr,
    )
    # A capture has memory of its own; else it goes back to CuPy's pool for what this stream is given next.
    size = plan.scratch_bytes
    scratch = cupy.ndarray((size,), np.uint8) if size and not is_capturing(stream) else None
    plan.launch(at, stream, 0 if scratch is None else scratch.data.ptr)
    return tuple(made) if of_sinks is None else (*made, of_sinks)


def _compact(name: str, rows: Any, stream: Any) -> Any:
    """lse or dlse as kernels read them, contiguous. A copy is small; it is work on the stream, as the launches are."""
    if rows is None or rows.flags.c_contiguous:
        return rows
    if is_capturing(stream):
        raise UnsupportedError(
            f"{name} must be contiguous while the stream is captured, got strides {rows.strides} (bytes) for shape "
            f"{rows.shape}: a copy would be freed before the graph runs; copy it with cupy.ascontiguousarray"
        )
    return cupy.ascontiguousarray(rows)
