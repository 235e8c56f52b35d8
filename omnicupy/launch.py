"""attention() on CuPy arrays: what shapes, strides and mask decide is planned once, the rest is a launch.

A plan is found by what it depends on, through a dictionary kept on the mask (so it is freed with the mask and
its device arrays). A warm call builds the key, allocates the outputs, writes five addresses into a copy of the
parameter struct and launches; whatever can change under an equal key (addresses) is checked there. torch.py finds
and launches the same plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import cupy
import numpy as np

from omnicupy import cache, check, tune
from omnicupy.check import Problem
from omnicupy.loading import DeviceInfo, device_info, kernel
from omnicupy.masks import Mask
from omnicupy.plan import PLANS, Launched, Plan, check_strides, crew_of, grid_of, in_tiles, pack_params
from omnicupy.spec import AttnSpec
from omnicupy.tma import can_map
from omnicupy.upload import DeviceBlocks, cache_of, device_blocks, find_cache, foreign_stream

__all__ = ["Plan", "attention", "device_info", "grid_of", "kernel", "pack_params", "plan_of", "section_of"]

MAX_PLANS = 256  # a mask's plans (shapes, strides, options); the oldest goes first
MAX_EXTERNAL = 256  # streams of other libraries that are kept
_LOG2E = math.log2(math.e)

_T = TypeVar("_T")

_runtime = cupy.cuda.runtime
_current_stream = cupy.cuda.get_current_stream
_unmasked: dict[Any, Plan] = {}  # plans of calls without a mask; their keys hold the shapes
_external: dict[tuple[int, int], Any] = {}  # (device, handle) -> stream


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any = None,
    return_lse: bool = False,
    out: Any = None,
    config: Any = None,
) -> Any:
    """omnicupy.attention for CuPy arrays; also words the error when q, k and v are no arrays at all."""
    plan = plan_of(q, k, v, mask, scale=scale, out=out, config=config)
    found = on_device(plan.device, _launched, plan, (q, k, v), out, return_lse)
    return found if return_lse else found[0]


def plan_of(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, out: Any, config: Any) -> Plan:
    """The plan that was made for such CuPy arrays, or a new one: the kernel loaded, the block lists on their way to
    the device. Raises every argument error.
    """
    words: Any = None
    plan = None
    try:
        x, y, z, target = q.data, k.data, v.data, None if out is None else out.data
        words = (
            (q.shape, q.strides, k.shape, k.strides, v.shape, v.strides, q.dtype, k.dtype, v.dtype),
            (x.device_id, y.device_id, z.device_id),
            None if target is None else (out.shape, out.strides, out.dtype, target.device_id),
        )
        addresses = (x.ptr, y.ptr, z.ptr, None if target is None else target.ptr)
    except AttributeError:  # not CuPy arrays: the checks say so
        pass
    else:
        plan = find_plan(words, addresses, mask, scale, config)
    return plan or make_plan(words, (q, k, v, out), mask, scale=scale, config=config, stream=None)


def find_plan(
    words: Any, addresses: tuple[int, int, int, int | None], mask: Any, scale: Any, config: Any
) -> Plan | None:
    """The plan that `make_plan` kept for such arguments; None where it has to look at them.

    words: all that a plan depends on of q, k, v and `out`, in words that equal no other library's for other arrays.
    addresses: of q, k, v and `out`, None for no `out`.
    """
    plan = _kept(_key(words, mask, scale, config), mask)
    return plan if plan is not None and plan.takes(*addresses) else None


def make_plan(
    words: Any, arrays: tuple[Any, Any, Any, Any], mask: Any, *, scale: Any, config: Any, stream: Any
) -> Plan:
    """Checks all arguments, then as `find_plan`, or a new plan, which is kept under these words unless they are None.

    arrays: q, k, v and `out` or None.  stream: uploads the mask, of their device; None for CuPy's current one.
    Raises every argument error.
    """
    q, k, v, out = arrays
    problem = check.problem(q, k, v, mask, scale=scale, out=out, config=config)
    key = _key(words, mask, scale, config)
    plan = None if words is None else _kept(key, mask)
    if plan is None:
        with cupy.cuda.Device(q.data.device_id), stream or nullcontext():
            plan = _new_plan(problem, arrays, mask, scale=scale, config=config)
        if words is not None:
            _keep(plan, key, mask)
    return plan


def on_device(device: int, call: Callable[..., _T], *arguments: Any) -> _T:
    """call(*arguments) while `device` is current."""
    current = _runtime.getDevice()
    if current == device:
        return call(*arguments)
    _runtime.setDevice(device)
    try:
        return call(*arguments)
    finally:
        _runtime.setDevice(current)


def external_stream(device: int, handle: int) -> Any:
    """The CuPy stream for a stream of another library; kept, so that a warm call makes none."""
    found = _external.get((device, handle))
    if found is None:
        if len(_external) >= MAX_EXTERNAL:
            _external.clear()
        found = _external[device, handle] = foreign_stream(handle)
    return found


def section_of(problem: Problem, mask_batch: int, parts: int, sm_count: int, l2_bytes: int) -> int:
    """Query heads worked on side by side: whole groups, as many as give each multiprocessor a part of their block rows;
    heads that share a tile count as one.

    More of them would ask for K and V of many heads at once, which come from memory in one rush (docs/kernels.md).
    Never more than have their K and V, under all masks, in half of the L2.  parts: of the block rows of one head, under
    all masks.
    """
    heads = problem.q_heads * (problem.batch // mask_batch)
    head_bytes = 2 * 2 * problem.k_len * problem.head_dim  # K and V of one key head, 2 bytes an element
    enough = -(-max(1, round(sm_count / max(1, parts))) // problem.group)
    return min(heads, problem.group * max(1, min(enough, l2_bytes // 2 // (mask_batch * head_bytes))))


def _launched(plan: Plan, inputs: tuple[Any, Any, Any], out: Any, return_lse: bool) -> tuple[Any, Any]:
    """out and lse, None unless it is wanted, of a launch on CuPy's current stream; the plan's device is current."""
    q, k, v = inputs
    stream = _current_stream(plan.device)
    if out is None:
        out = cupy.ndarray(plan.shape, plan.dtype)
    lse = cupy.ndarray(plan.shape[:3], np.float32) if return_lse else None
    plan.launch(q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, 0 if lse is None else lse.data.ptr, stream)
    return out, lse


def _key(words: Any, mask: Any, scale: Any, config: Any) -> Any:
    """What a plan is kept under. A list of one shares the mask's cache, but is right for a batch of one alone."""
    return words, scale, config, cache.generation, isinstance(mask, (list, tuple))


def _kept(key: Any, mask: Any) -> Plan | None:
    try:
        if mask is None:
            return _unmasked.get(key)
        found = find_cache(mask)
        return None if found is None else found.plans.get(key)
    except (AttributeError, TypeError):  # no mask, scale or config: the checks say so
        return None


def _keep(plan: Plan, key: Any, mask: Any) -> None:
    # A list that repeats one mask is looked up as a list, but shares that mask's device arrays.
    masks = (mask,) if isinstance(mask, Mask) else mask
    plans = _unmasked if mask is None else cache_of(masks).plans
    while len(plans) >= MAX_PLANS:
        plans.pop(next(iter(plans), None), None)
    plans[key] = plan


def _new_plan(
    problem: Problem, arrays: tuple[Any, Any, Any, Any], mask: Any, *, scale: Any, config: AttnSpec | None
) -> Plan:
    q, k, v, out = arrays
    masks = check.masks_of(mask, problem)
    if all(one is masks[0] for one in masks):
        masks = masks[:1]
    device = q.data.device_id
    info = device_info(device)
    mappable = all(can_map(array.shape, array.strides) for array in (q, k, v))
    spec = _spec_of(problem, masks, info, config, mappable)
    check_strides(spec, q, k, v)
    crew = crew_of(spec, problem, len(masks), info.sm_count)
    function = kernel(spec, device).function
    blocks = device_blocks(masks, (spec.br, spec.bc), crew, device)
    work_items = blocks.sizes.n_parts * crew.heads
    launched = Launched(
        function,
        grid_of(spec, problem, work_items, info.sm_count),
        ((q.shape, q.strides), (k.shape, k.strides), (v.shape, v.strides)),
        None if out is None else (out.shape, out.strides),
    )
    template = _template_of(spec, problem, blocks, arrays, scale=scale, info=info, work_items=work_items)
    return PLANS[spec.kernel](spec, problem, blocks, template, launched)


def _template_of(
    spec: AttnSpec,
    problem: Problem,
    blocks: DeviceBlocks,
    arrays: tuple[Any, Any, Any, Any],
    *,
    scale: Any,
    info: DeviceInfo,
    work_items: int,
) -> bytes:
    q, k, v, out = arrays
    factor = check.scale_of(scale, problem.head_dim)
    sizes = blocks.sizes
    values = {
        **blocks.pointers,
        **{
            name: getattr(sizes, name)
            for name in (
                *("q_blocks", "mask_batch", "diagonal", "n_spans", "k_padded", "tiers"),
                *("n_slots", "n_split_rows"),
            )
        },
        "work_items": work_items,
        "scale": factor,
        "scale_log2": factor * _LOG2E,
        "section": section_of(
            in_tiles(spec, problem), sizes.mask_batch, sizes.n_parts, info.sm_count, info.l2_bytes
        ),
    }
    out_strides = _contiguous_strides(q.shape, q.dtype.itemsize) if out is None else out.strides
    strides = {"q": q.strides, "k": k.strides, "v": v.strides, "out": out_strides}
    return pack_params(spec, problem, strides, values)


def _spec_of(
    problem: Problem, masks: Sequence[Mask], info: DeviceInfo, config: AttnSpec | None, mappable: bool
) -> AttnSpec:
    arch = tune.arch_of(info.major, info.minor)
    if config is None:
        return tune.select(arch, problem, masks, info.sm_count, mappable=mappable)
    if not tune.runs_on(config.arch, info.major, info.minor):
        raise ValueError(
            f"config: code for {config.arch} does not run on this device (compute capability {info.major}."
            f"{info.minor}); use arch={arch!r}"
        )
    return config


def _contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))
