"""A call on caches becomes a plan: variant, kernels, bounds of the block lists, parameter structs."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.call import check_fp8, check_ragged
from omnicupy.call.arrays import DeviceArray
from omnicupy.call.check_cached import CachedCall
from omnicupy.choose import paged, pick
from omnicupy.errors import UnsupportedError
from omnicupy.gpu import pages
from omnicupy.gpu.cached_plan import CachedPlan, Planner
from omnicupy.gpu.device import DeviceInfo, device_info
from omnicupy.gpu.device_blocks import DeviceCopy
from omnicupy.gpu.modules import kernel
from omnicupy.gpu.plan import PLANS, KernelCall
from omnicupy.gpu.planning import check_runs, check_strides, contiguous_strides, score_fields, struct_of
from omnicupy.gpu.ranges import Range, byte_range, meeting
from omnicupy.gpu.streams import using
from omnicupy.gpu.tensor_maps import can_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit import archs
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.schedule.cached_lists import MOST_BYTES, CachedLists, grid_of, tail_arrays
from omnicupy.schedule.grid import MOST_PARTIAL_BYTES, Grid, part_bytes
from omnicupy.serving.caches import AnyKV
from omnicupy.serving.rule import CachedRule

_ALIGN = 256
FEW_ROWS_PARTS = 32  # of a row that the kernel for few rows works on: a lane each, where they are merged
_SLOTS_OF_ALL = 3  # parts of split rows a multiprocessor, of all heads: more are hardly worth what they cost


def new_plan(
    call: CachedCall, q: Any, kv: AnyKV, out: Any, *, config: AttnSpec | None, stream: Any
) -> CachedPlan:
    """The plan of a checked call; the arrays' device is current. out: None where it is not given.  stream: uploads a
    tail.
    """
    k, v = pages.tensors_of(kv)
    arrays = (q, k, v, out) if call.total_rows is None else _of_all_rows(q, k, v, out)
    q, *_, out_like = arrays
    device = q.data.device_id
    info = device_info(device)
    spec = config or _spec_of(call, arrays, info, kv)
    check_runs(spec, info)
    check_strides(spec, **({"q": q} if check_fp8.is_fp8(kv) else {"q": q, "k": k, "v": v}))
    problem, total = call.problem, call.total_rows
    spec = pages.spec_of(spec, kv, ragged=total is not None)
    if total is not None:
        _check_split(spec, call.split)
    grid = grid_of(spec, problem, sm_count=info.sm_count, l2_bytes=info.l2_bytes, split=call.split)
    lists = lists_of(grid, call.rule, total)
    need, partials = _need_of(grid, lists)
    layouts = ((q.shape, q.strides), (k.shape, k.strides), (v.shape, v.strides))
    of_out = None if out is None else (out.shape, out.strides)
    parts = lists.most_parts if spec.kernel == "sm90" else lists.rows
    blocks = grid.thread_blocks(parts)
    if total is not None and spec.kernel == "naive":
        blocks = (total * problem.q_heads, 1, 1)
    launched = KernelCall(kernel(spec, device).function, blocks, layouts, of_out, need)
    planner = _planner_of(lists, device, info, stream)
    fields = _fields_of(grid, lists) | pages.fields_of(kv) | pages.scale_fields(kv)
    template = struct_of(grid, score_fields(call.scale, call.softcap), fields, (q, k, v, out_like))
    of_kernel = PLANS[spec.kernel](spec, problem, NoBlocks(device), template, launched)  # type: ignore[arg-type]
    return CachedPlan(of_kernel, planner, need, partials, _near_scales(kv, out))


def _near_scales(kv: AnyKV, out: Any) -> tuple[Range | None, Range | None]:
    """As CachedPlan takes it."""
    if out is None:
        return None, None
    written = byte_range((out.shape, out.strides), out.dtype.itemsize)
    k, v = (None if one is None else meeting(one, written) for one in pages.scale_ranges(kv))
    return k, v


def _of_all_rows(q: Any, k: Any, v: Any, out: Any) -> tuple[Any, Any, Any, Any]:
    """The arrays of a call whose sequences have numbers of rows of their own, as kernels have them: q and out of one
    batch element. out: None for a new C-contiguous one.
    """
    if out is None:
        shape = (*q.shape[:2], v.shape[3])
        steps = contiguous_strides(shape, q.dtype.itemsize)
        out = DeviceArray(q.dtype, 0, q.data.device_id, shape, steps)
    return check_ragged.as_tensor(q), k, v, check_ragged.as_tensor(out)


def _check_split(spec: AttnSpec, split: int | None) -> None:
    """Raises UnsupportedError where the bits of a row would depend on the rows behind it in its tile, which may be
    another sequence's.
    """
    if split is not None and not spec.pack:
        raise UnsupportedError(
            f"split goes with rows of up to 64 a sequence whose heads are packed (kernel 'sm90', pack=True), got "
            f"{spec}; leave split out, or give fewer rows at a time"
        )


class NoBlocks:
    """Stands for the device copy of a mask's block lists where a planner writes them."""

    def __init__(self, device: int) -> None:
        self.device = device


def lists_of(grid: Grid, rule: CachedRule, total_rows: int | None = None) -> CachedLists:
    """The bounds of the block lists of a launch. total_rows: as in CachedLists.

    Raises UnsupportedError where parts would take too much memory.
    """
    spec, problem = grid.spec, grid.problem
    slots = 0
    if spec.kernel == "sm90" and not grid.workers.split_tiles:
        slots = MOST_PARTIAL_BYTES // (grid.tile_heads * part_bytes(spec, problem))
        slots = min(slots, -(-_SLOTS_OF_ALL * grid.workers.sm_count // grid.tile_heads))
    lists = CachedLists(
        rule,
        problem.batch,
        problem.q_len,
        problem.k_len,
        br=grid.tokens,
        bc=spec.bc,
        heads=grid.tile_heads,
        sm_count=grid.workers.sm_count,
        leave=grid.workers.leave,
        **_costs_of(spec),
        split_slots=slots,
        split_tiles=grid.workers.split_tiles,
        in_order=spec.kernel == "naive",
        total_rows=total_rows,
    )
    if (size := grid.tile_heads * lists.slots * part_bytes(spec, problem)) > MOST_BYTES:
        raise UnsupportedError(
            f"split: parts of {grid.workers.split_tiles * spec.bc} keys of {problem.batch} sequences of up to "
            f"{problem.k_len} may need {size} bytes, more than {MOST_BYTES}; take a larger split"
        )
    return lists


def _costs_of(spec: AttnSpec) -> dict[str, Any]:
    """What a part costs beside its tiles, and how many a row may have, where the kernel differs from others: all warps
    fill their rings and merge what they have, in about the time of a tile each.
    """
    if not isinstance(spec, FewRowsSpec):
        return {}
    return {"item": float(spec.compute_warps), "most_cuts": FEW_ROWS_PARTS}


def _spec_of(call: CachedCall, arrays: tuple[Any, Any, Any, Any], info: DeviceInfo, kv: AnyKV) -> AttnSpec:
    """The variant that serves the call: what a full cache would get, as lengths are not known here."""
    problem = call.problem
    masks = [call.rule.mask(problem.k_len, problem.q_len, problem.k_len)]
    fp8, page_size = check_fp8.is_fp8(kv), pages.size_of(kv)
    by_map = arrays[:1] if fp8 else arrays[:3]
    mappable = all(can_map(array.shape, array.strides) for array in by_map)
    spec = pick.select(
        archs.arch_of(info.major, info.minor),
        problem,
        masks,
        info.sm_count,
        mappable=mappable,
        split=call.split,
        cache=paged.kind_of(page_size),
    )
    if fp8:
        return paged.for_e4m3(spec, problem, info.sm_count, call.split)
    return spec if page_size is None else paged.fitted(spec)


def _need_of(grid: Grid, lists: CachedLists) -> tuple[Need, int]:
    """Memory of a launch: parts of split rows and counters of arrivals, then lists, and where these begin."""
    spec, problem = grid.spec, grid.problem
    _, arrivals = grid.partials(0, lists.q_blocks if lists.slots else 0)
    partials = round_up(grid.tile_heads * lists.slots * part_bytes(spec, problem), _ALIGN)
    return Need(partials + lists.nbytes, arrivals), partials


def _fields_of(grid: Grid, lists: CachedLists) -> dict[str, Any]:
    """What the kernel's struct takes of block lists, but for their addresses. Parts of all rows are one tier.

    Where a head has one block of rows, nothing is read twice, and the heads of a part go side by side: a thread block
    knows which part it works on first without the number of parts (WorkList::prefetch_first).
    """
    side_by_side = grid.spec.pack and lists.q_blocks == 1
    return {
        "q_blocks": lists.q_blocks,
        "mask_batch": lists.batch,
        "diagonal": 0,
        "n_spans": 0,
        "k_padded": lists.k_padded,
        "tiers": (lists.most_parts,) * 4,
        "n_slots": lists.slots,
        "most_entries": lists.most_entries,
        "n_split_rows": lists.q_blocks if lists.slots else 0,
        "work_items": grid.work_items(lists.rows),
        "section": grid.tile_heads if side_by_side else grid.section(lists.rows),
        "q_len": grid.problem.q_len if lists.total_rows is None else lists.total_rows,
    }


def _planner_of(lists: CachedLists, device: int, info: DeviceInfo, stream: Any) -> Planner:
    ragged = lists.total_rows is not None
    spec = PlanSpec(arch=archs.arch_of(info.major, info.minor), ragged=ragged)
    function = kernel(spec, device).function
    if lists.rule.tail is None:
        return Planner(function, lists, spec.threads, spec.smem_bytes)
    arrays = tail_arrays(lists.rule.tail, lists.q_len, lists.br)
    offsets, size = {}, 0
    for name, array in arrays.items():
        offsets[name], size = size, round_up(size + array.nbytes, _ALIGN)
    buffer = np.zeros(size, np.uint8)
    for name, array in arrays.items():
        buffer[offsets[name] : offsets[name] + array.nbytes] = array.view(np.uint8).reshape(-1)
    with using(stream):
        tail = DeviceCopy(buffer, device)
    return Planner(function, lists, spec.threads, spec.smem_bytes, tail, offsets)
