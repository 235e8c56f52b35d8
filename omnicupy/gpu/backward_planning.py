"""A call of attention_backward becomes a plan: kernels, block lists both ways, copies, parameter structs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnicupy.call.check_backward import BackwardCall
from omnicupy.choose import backward_table
from omnicupy.gpu.backward_plan import BackwardPlan, Launch, Space
from omnicupy.gpu.device import DeviceInfo, device_info
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.key_blocks import device_key_blocks
from omnicupy.gpu.mask_cache import device_blocks
from omnicupy.gpu.modules import kernel, launcher_behind, together
from omnicupy.gpu.plan import ITEM_BYTES
from omnicupy.gpu.planning import check_runs, contiguous_strides, score_fields
from omnicupy.gpu.ranges import Layout
from omnicupy.gpu.tensor_maps import can_map
from omnicupy.jit import archs
from omnicupy.jit.backward_kernel import MAKES_ALL, BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import round_up
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import BackwardGrid, key_lists_of, makes_all_part

_ROW_BYTES = 16  # rows are read in pieces of it
_COPY_ALIGN = 256


@dataclass(frozen=True)
class Layouts:
    """Shape and strides in bytes of the arrays of a call. dq, dk, dv: of given ones, else contiguous.

    dout_aligned: its address is a multiple of 16.
    """

    q: Layout
    k: Layout
    v: Layout
    out: Layout
    dout: Layout
    dq: Layout
    dk: Layout
    dv: Layout
    dout_aligned: bool = True


@dataclass(frozen=True)
class _Setting:
    """A checked call with its distinct masks, on a device."""

    call: BackwardCall
    masks: Sequence[Mask]
    device: int
    info: DeviceInfo

    def grid(self, part: BackwardKernel) -> BackwardGrid:
        return BackwardGrid(part, self.call.problem, len(self.masks), self.info.sm_count, self.info.l2_bytes)

    def blocks(self, part: BackwardKernel) -> DeviceBlocks:
        tile, workers = (part.br, part.bc), self.grid(part).workers
        if part.part == "dq":
            return device_blocks(self.masks, tile, workers, self.device)
        return device_key_blocks(self.masks, tile, workers, self.device, key_lists_of(part))


def new_plan(
    call: BackwardCall, layouts: Layouts, device: int, config: BackwardSpec | None, *, deterministic: bool
) -> BackwardPlan:
    """The plan of a checked call; its device is current."""
    masks = call.masks[:1] if all(one is call.masks[0] for one in call.masks) else call.masks
    on = _Setting(call, masks, device, device_info(device))
    problem = call.problem
    arch = archs.arch_of(on.info.major, on.info.minor)
    spec = config or backward_table.select(
        arch, problem, masks, on.info.sm_count, deterministic=deterministic
    )
    check_runs(spec, on.info)
    parts = spec.kernels()
    keys = parts[_keys_part(on, parts, deterministic=deterministic)]
    of_keys = on.blocks(keys)
    space = _space(call, layouts, on.grid(keys), of_keys)
    read = _read_layouts(layouts, space)
    launches = []
    if _prepares(call, on.grid(keys), of_keys, space):
        keys = replace(keys, prepares=True)
    else:
        launches.append(_launch(on, parts["prepare"], layouts, of_keys, space, ahead_of=keys))
    if call.wanted[1] or call.wanted[2]:
        launches.append(_launch(on, keys, read, of_keys, space, comes_early=keys.kernel == "sm90"))
    if keys.finishes:
        pass
    elif keys.part in MAKES_ALL:
        launches.append(_launch(on, parts["convert"], read, of_keys, space))
    elif call.wanted[0]:
        # For Hopper it takes the places that the kernel of dK and dV leaves. That one waited for the one that prepares.
        early = spec.kernel == "sm90" and len(launches) == 2
        launches.append(_launch(on, parts["dq"], read, on.blocks(parts["dq"]), space, comes_early=early))
    if call.sink_wanted:
        launches.append(_launch(on, parts["sinks"], layouts, of_keys, space))
    return BackwardPlan(spec, device, launches, space)


def _keys_part(on: _Setting, parts: dict[str, BackwardKernel], *, deterministic: bool) -> str:
    """Which kernel makes dK and dV, and dQ too where it makes all."""
    wanted = on.call.wanted
    if not (wanted[0] and (wanted[1] or wanted[2])):  # one gradient alone is made faster by its own kernel
        return "dkdv"
    return makes_all_part(parts, on.call.problem, on.masks, deterministic=deterministic)


def _prepares(call: BackwardCall, grid: BackwardGrid, blocks: DeviceBlocks, space: Space) -> bool:
    """Does the kernel of all gradients make lse2 and delta itself? Copies, and what sinks add, are made by a launch."""
    copied = max(space.q, space.dout, space.k, space.v) >= 0
    background = grid.kernel.finishes == "background"
    return background and not copied and not call.has_sink and grid.prepares_beside(blocks.sizes)


def _space(call: BackwardCall, layouts: Layouts, grid: BackwardGrid, keys: DeviceBlocks) -> Space:
    """Where statistics and copies lie. Copied is what a kernel cannot read as it is: queries, where some see no key,
    and keys of tiles that hold dead ones, as what lies there may be NaN; arrays that no tensor map holds; dout of any
    other layout.
    """
    part, problem, shapes = grid.kernel, call.problem, keys.sizes.shapes
    dead_rows, dead_keys = shapes["dead_rows"][0] > 0, shapes["dead"][0] > 0
    rows = problem.batch * problem.q_heads * padded_rows(problem.q_len)

    def mapped(layout: Layout) -> bool:
        return part.kernel != "sm90" or can_map(*layout)

    dout = layouts.dout
    plain = layouts.dout_aligned and dout[1][3] == ITEM_BYTES
    plain = plain and not any(stride % _ROW_BYTES for stride in dout[1][:3])
    copied = {
        "q": dead_rows or not mapped(layouts.q),
        "dout": dead_rows or not plain or not mapped(dout),
        "k": dead_keys or not mapped(layouts.k),
        "v": dead_keys or not mapped(layouts.v),
    }
    size = round_up(2 * 4 * rows, _COPY_ALIGN)
    places = {}
    for name, is_copied in copied.items():
        places[name] = size if is_copied else -1
        if is_copied:
            shape: tuple[int, ...] = getattr(layouts, name)[0]
            size += round_up(ITEM_BYTES * int(np.prod(shape, dtype=np.int64)), _COPY_ALIGN)
    sinks = sums = -1
    if call.sink_wanted:
        blocks = padded_rows(problem.q_len) // part.prepared_rows + 1  # of a head, that prepare
        sinks = size
        size += round_up(4 * problem.batch * problem.q_heads * blocks, _COPY_ALIGN)
    turns = zeroed = -1
    sum_places = grid.sum_fields(keys.sizes)["places"]
    if part.part in MAKES_ALL:
        sums, size = size, size + sum_places * part.sum_bytes
        zeroed = size if part.finishes else sums
    if part.part == "ordered" or part.finishes:
        turns, size = size, size + round_up(4 * sum_places, _COPY_ALIGN)
    partials, (partial_bytes, arrivals) = size, grid.partials(keys.sizes.n_slots, keys.sizes.n_split_rows)
    places |= {
        "sinks": sinks,
        "sums": sums,
        "turns": turns,
        "zeroed": zeroed,
        "partials": partials,
        "size": size + partial_bytes,
        "arrivals": arrivals,
    }
    return Space(lse2=0, delta=4 * rows, **places)


def _read_layouts(layouts: Layouts, space: Space) -> Layouts:
    """As the kernels read them: the copies are contiguous."""

    def layout(name: str) -> Layout:
        found: Layout = getattr(layouts, name)
        is_copied = getattr(space, name) >= 0
        return (found[0], contiguous_strides(found[0], ITEM_BYTES)) if is_copied else found

    return replace(layouts, q=layout("q"), dout=layout("dout"), k=layout("k"), v=layout("v"))


def _launch(
    on: _Setting,
    part: BackwardKernel,
    layouts: Layouts,
    blocks: DeviceBlocks,
    space: Space,
    *,
    comes_early: bool = False,
    ahead_of: BackwardKernel | None = None,
) -> Launch:
    """comes_early: its thread blocks may come up while the kernel ahead runs; they wait for what they need of it.
    ahead_of: of the launch that prepares, the kernel of dK and dV.
    """
    grid = on.grid(part)
    template = _struct_of(grid, on.call, layouts, blocks, ahead_of)
    shape = grid.thread_blocks(blocks.sizes.n_parts, space.k >= 0 or space.v >= 0)
    maps = (layouts.q, layouts.dout, layouts.k, layouts.v) if part.params == "bwd_sm90" else ()
    loaded = kernel(part, on.device)
    function = launcher_behind(loaded) if comes_early else loaded.function
    if part.part == "ordered" or part.finishes:
        function = together(loaded)
    return Launch(part, function, shape, template, blocks, maps)


def _struct_of(
    grid: BackwardGrid,
    call: BackwardCall,
    layouts: Layouts,
    blocks: DeviceBlocks,
    ahead_of: BackwardKernel | None,
) -> bytes:
    """The parameter struct of a launch, without the addresses of arrays. ahead_of: as of _launch."""
    sizes, problem = blocks.sizes, call.problem
    values: dict[str, Any] = {
        **blocks.pointers,
        **sizes.struct_fields,
        **{
            name: getattr(problem, name)
            for name in ("q_len", "k_len", "head_dim", "value_dim", "batch", "q_heads", "group")
        },
        "kv_heads": problem.kv_heads,
        "work_items": grid.work_items(sizes.n_parts),
        **score_fields(call.scale, call.softcap),
        "scale": call.scale,  # of the gradients
        "section": sizes.section or grid.section(sizes.n_parts),
        "q_padded": padded_rows(problem.q_len),
        "dout_column": layouts.dout[1][3] // ITEM_BYTES,
        **(grid.sum_fields(sizes) if grid.kernel.finishes else {}),  # nobody else reads them
        "zeroes_dead_rows": ahead_of is not None and bool(ahead_of.finishes),
    }
    for name in ("dead", "dead_rows"):
        if not sizes.shapes.get(name, (0,))[0]:
            values[name] = 0
    for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv"):
        values[f"{name}_strides"] = [stride // ITEM_BYTES for stride in getattr(layouts, name)[1][:3]]
    record = np.zeros(1, PARAMS[grid.kernel.params])
    for name in record.dtype.names or ():
        if name in values:  # a kernel's struct has what it reads
            record[name] = values[name]
    return record.tobytes()
