"""attention() on CuPy arrays: what shapes, strides and mask decide is planned once, the rest is a launch.

A plan is found by what it depends on, through a dictionary kept on the mask (so it is freed with the mask and
its device arrays). A warm call builds the key, allocates the outputs, writes five pointers into a copy of the
parameter struct and launches; whatever can change under an equal key (addresses) is checked there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import cupy

from omnicupy import cache, check, tune
from omnicupy.check import Problem
from omnicupy.loading import DeviceInfo, device_info, kernel
from omnicupy.masks import Mask
from omnicupy.plan import PLANS, Launched, Plan, check_strides, crew_of, grid_of, pack_params, reach
from omnicupy.spec import AttnSpec
from omnicupy.tma import can_map
from omnicupy.upload import DeviceBlocks, cache_of, device_blocks, find_cache

__all__ = ["Plan", "attention", "device_info", "grid_of", "kernel", "pack_params", "plan_of", "section_of"]

MAX_PLANS = 256  # a mask's plans (shapes, strides, options); the oldest goes first
MAX_EXTERNAL = 256  # streams of other libraries that are kept
_LOG2E = math.log2(math.e)

_runtime = cupy.cuda.runtime
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
    stream: Any = None,
    empty: Callable[..., Any] | None = None,
) -> Any:
    """omnicupy.attention for arrays on a device; also words the error when q, k and v are no arrays at all.

    stream: a stream of that device, None for CuPy's current one.  empty: called with the shape and dtype of
    an output, returns an array like q, C-contiguous; None is cupy.ndarray.
    """
    plan = plan_of(q, k, v, mask, scale=scale, out=out, config=config, stream=stream)
    current = _runtime.getDevice()
    if current == plan.device:
        return plan.launch(q, k, v, out, return_lse, stream=stream, empty=empty)
    _runtime.setDevice(plan.device)
    try:
        return plan.launch(q, k, v, out, return_lse, stream=stream, empty=empty)
    finally:
        _runtime.setDevice(current)


def plan_of(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, out: Any, config: Any, stream: Any) -> Plan:
    """The plan that was made for such arguments, or a new one: the kernel loaded, the block lists on their way to
    the device. Raises every argument error.
    """
    key = None
    try:
        device = q.data.device_id
        key = (
            *(q.shape, q.strides, k.shape, k.strides, v.shape, v.strides, q.dtype, k.dtype, v.dtype),
            *(device, k.data.device_id, v.data.device_id, scale, config, cache.generation),
            None if out is None else (out.shape, out.strides, out.dtype, out.data.device_id),
        )
        if mask is None:
            plan = _unmasked.get(key)
        else:
            found = find_cache(mask)
            plan = None if found is None else found.plans.get(key)
    except (AttributeError, TypeError):  # not CuPy arrays, or not a mask: the checks below say so
        plan = None
    if plan is None or not plan.takes(q, k, v, out):
        problem = check.problem(q, k, v, mask, scale=scale, out=out, config=config)
        if plan is None:
            with cupy.cuda.Device(q.data.device_id), stream or nullcontext():
                plan = _new_plan(problem, q, k, v, mask, scale=scale, out=out, config=config, key=key)
    return plan


def external_stream(device: int, handle: int) -> Any:
    """The CuPy stream for a stream of another library; kept, so that a warm call makes none."""
    found = _external.get((device, handle))
    if found is None:
        if len(_external) >= MAX_EXTERNAL:
            _external.clear()
        found = _external[device, handle] = cupy.cuda.ExternalStream(handle, device)
    return found


def section_of(problem: Problem, mask_batch: int, parts: int, sm_count: int, l2_bytes: int) -> int:
    """Query heads worked on side by side: whole groups, as many as give each multiprocessor a part of their block rows.

    More of them would ask for K and V of many heads at once, which come from memory in one rush (docs/kernels.md).
    Never more than have their K and V, under all masks, in half of the L2.  parts: of the block rows of one head, under
    all masks.
    """
    heads = problem.q_heads * (problem.batch // mask_batch)
    head_bytes = 2 * 2 * problem.k_len * problem.head_dim  # K and V of one key head, 2 bytes an element
    enough = -(-max(1, round(sm_count / max(1, parts))) // problem.group)
    return min(heads, problem.group * max(1, min(enough, l2_bytes // 2 // (mask_batch * head_bytes))))


def _new_plan(
    problem: Problem,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any,
    out: Any,
    config: AttnSpec | None,
    key: Any,
) -> Plan:
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
    reaches = tuple(reach(array) for array in (q, k, v, out) if array is not None)
    launched = Launched(function, grid_of(spec, problem, work_items, info.sm_count), reaches)
    template = _template_of(
        spec, problem, blocks, (q, k, v, out), scale=scale, info=info, work_items=work_items
    )
    plan = PLANS[spec.kernel](spec, problem, blocks, template, launched)
    plans = _unmasked if mask is None else _plans_of(mask, masks)
    while len(plans) >= MAX_PLANS:
        plans.pop(next(iter(plans), None), None)
    if key is not None:
        plans[key] = plan
    return plan


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
        "section": section_of(problem, sizes.mask_batch, sizes.n_parts, info.sm_count, info.l2_bytes),
    }
    out_strides = _contiguous_strides(q.shape, q.dtype.itemsize) if out is None else out.strides
    strides = {"q": q.strides, "k": k.strides, "v": v.strides, "out": out_strides}
    return pack_params(spec, problem, strides, values)


def _plans_of(mask: Mask | Sequence[Mask], masks: Sequence[Mask]) -> dict[Any, Plan]:
    # A list that repeats one mask is looked up as a list, but shares that mask's device arrays.
    plans: dict[Any, Plan] = cache_of(masks if isinstance(mask, Mask) else tuple(mask)).plans
    return plans


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
