"""A call becomes a plan: variant, kernel, block lists, parameter struct."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.call.check import Call
from omnicupy.choose import pick
from omnicupy.errors import UnsupportedError
from omnicupy.gpu.device import DeviceInfo, device_info
from omnicupy.gpu.mask_cache import Pack, device_blocks
from omnicupy.gpu.modules import kernel
from omnicupy.gpu.plan import PLANS, KernelCall, Plan
from omnicupy.gpu.tensor_maps import can_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit import archs
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.block_lists import block_lists
from omnicupy.schedule.grid import Grid
from omnicupy.schedule.moved import moved_lists

LOG2E = math.log2(math.e)


def new_plan(call: Call, arrays: tuple[Any, Any, Any, Any], config: AttnSpec | None) -> Plan:
    """The plan of a checked call on q, k, v and `out` or None; their device is current."""
    q, k, v, out = arrays
    masks = call.masks[:1] if all(one is call.masks[0] for one in call.masks) else call.masks
    device = q.data.device_id
    info = device_info(device)
    mappable = all(can_map(array.shape, array.strides) for array in (q, k, v))
    spec = config or pick.select(
        archs.arch_of(info.major, info.minor),
        call.problem,
        masks,
        info.sm_count,
        mappable=mappable,
        split=call.split,
    )
    check_runs(spec, info)
    check_strides(spec, q=q, k=k, v=v)
    grid = Grid.of(
        spec, call.problem, len(masks), sm_count=info.sm_count, l2_bytes=info.l2_bytes, split=call.split
    )
    function = kernel(spec, device).function
    blocks = device_blocks(masks, (grid.tokens, spec.bc), grid.workers, device, lists_of(spec))
    sizes = blocks.sizes
    need = Need(*grid.partials(sizes.n_slots, sizes.n_split_rows)) if sizes.n_split_rows else None
    layouts = ((q.shape, q.strides), (k.shape, k.strides), (v.shape, v.strides))
    of_out = None if out is None else (out.shape, out.strides)
    launched = KernelCall(function, grid.thread_blocks(sizes.n_parts), layouts, of_out, need)
    lists = {**blocks.pointers, **sizes.struct_fields}
    lists |= {"work_items": grid.work_items(sizes.n_parts), "section": grid.section(sizes.n_parts)}
    template = struct_of(grid, score_fields(call.scale, call.softcap), lists, arrays)
    return PLANS[spec.kernel](spec, call.problem, blocks, template, launched)


def lists_of(spec: AttnSpec) -> Pack:
    """What packs the block lists of a variant. Those for short block rows have tiles where the rows' keys begin."""
    return moved_lists if spec.blocks > 1 else block_lists


def score_fields(scale: float, softcap: float | None) -> dict[str, float]:
    """Fields of a parameter struct that turn products of queries and keys into weights. Behind the tanh of a soft cap,
    what scales scores is softcap.
    """
    factor = scale if softcap is None else softcap
    tanh_scale = 0.0 if softcap is None else scale / softcap
    return {"scale": factor, "scale_log2": factor * LOG2E, "tanh_scale": tanh_scale}


def struct_of(
    grid: Grid, scores: dict[str, float], lists: dict[str, Any], arrays: tuple[Any, Any, Any, Any]
) -> bytes:
    """The parameter struct of a launch, with null pointers for q, k, v, out, lse and sink_logits.

    scores: what score_fields gave.  lists: what it takes of block lists and of work items, by its fields' names.
    """
    q, k, v, out = arrays
    values = {**lists, **scores, **grid.packed}
    out_strides = (
        contiguous_strides((*q.shape[:3], v.shape[3]), q.dtype.itemsize) if out is None else out.strides
    )
    strides = {"q": (q.strides, q), "k": (k.strides, k), "v": (v.strides, v), "out": (out_strides, q)}
    record = np.zeros(1, PARAMS[grid.spec.params])
    for name, (steps, like) in strides.items():
        record[f"{name}_strides"] = [step // like.dtype.itemsize for step in steps[:3]]
    for name in ("q_len", "k_len", "head_dim", "value_dim", "batch", "q_heads", "group"):
        record[name] = getattr(grid.problem, name)
    for name in record.dtype.names or ():
        if name in values:  # a kernel's struct has what it reads
            record[name] = values[name]
    return record.tobytes()


def contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """In bytes, of a C-contiguous array."""
    strides = [itemsize]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))


def check_runs(spec: AttnSpec | BackwardSpec, info: DeviceInfo) -> None:
    """Raises ValueError when code for the architecture of `spec` does not run on the device."""
    if not archs.runs_on(spec.arch, info.major, info.minor):
        raise ValueError(
            f"config: code for {spec.arch} does not run on this device (compute capability {info.major}."
            f"{info.minor}); use arch={archs.arch_of(info.major, info.minor)!r}"
        )


def check_strides(spec: AttnSpec, **arrays: Any) -> None:
    """Raises UnsupportedError when `spec` asks for tensor maps of arrays that no map holds. arrays: by their names."""
    for name, array in arrays.items():
        if spec.kernel == "sm90" and not can_map(array.shape, array.strides):
            raise UnsupportedError(
                f"{name}: kernel 'sm90' needs positive strides, got {array.strides} (bytes) for shape "
                f"{array.shape}; copy the array or pass config=AttnSpec(kernel='sm80', ...)"
            )
