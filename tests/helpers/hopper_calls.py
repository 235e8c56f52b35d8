"""What the persistent backward kernels for Hopper are given beside arrays and lists, for runs on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cuda_on_cpu import aligned
from host_maps import encoded_for_the_host
from numpy.typing import NDArray

from omnicupy.gpu import tensor_maps
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import LAST_ADDITION, MOST_RANKS

Array = NDArray[Any]


def workers(grid: BackwardGrid) -> Workers:
    """Who works; short blocks of keys, which would not be split, are cut in parts of two tiles, whoever works."""
    return replace(grid.workers, split_tiles=2) if grid.workers.split_slots else grid.workers


def memory(grid: BackwardGrid, lists: BlockLists) -> dict[str, Array]:
    """Counters at zero, and room, poisoned, for what parts of split blocks leave."""
    partial_bytes, arrivals = grid.partials(lists.n_slots, lists.n_split_rows)
    made = {
        "counter": aligned((4,), np.int32),
        "partials": aligned((max(4, partial_bytes // 4),), np.float32),
        "arrivals": aligned((max(1, arrivals),), np.uint32),
        "splits": aligned(lists.array("splits").shape, np.int32),
    }
    made["counter"].fill(0)
    made["partials"].fill(np.nan)
    made["arrivals"].fill(0)
    made["splits"][...] = lists.array("splits")
    return made


def fill(
    params: NDArray[np.void], grid: BackwardGrid, lists: BlockLists, arrays: dict[str, Array]
) -> tuple[int, int]:
    """Tensor maps and sizes, into the struct; the grid of the launch. arrays: q, dout, k and v."""
    part = grid.kernel
    params["work_items"] = grid.work_items(lists.n_parts)
    params["section"] = lists.section or grid.section(lists.n_parts)
    params["n_slots"], params["n_split_rows"] = lists.n_slots, lists.n_split_rows
    with encoded_for_the_host():
        for name in ("q", "dout", "k", "v"):
            array, rows = arrays[name], part.br if name in ("q", "dout") else part.bc
            at = (array.ctypes.data, array.shape, array.strides, part.dtype, (rows, 1))
            params[f"{name}_map"] = np.frombuffer(tensor_maps.tensor_map.__wrapped__(*at), np.uint64)
    return grid.thread_blocks(lists.n_parts)[:2]


def check_turns(turns: Array, lists: BlockLists, part: BackwardKernel, q_heads: int, kv_heads: int) -> None:
    """All additions had their turn. Where the kernel makes dQ of sums, all sums of more than one addition have ended,
    one after the other where they share a place; or in the background, all that have additions. Where it
    `prepares`, each turn is one more: rows of all sums were made. Without an order, all sums that have additions have
    been taken. q_heads, kv_heads: of the whole batch.
    """
    heads = (kv_heads if lists.struct_fields["head_ranks"] else q_heads) // lists.mask_batch
    taken, turns = turns < 0, turns & 2**31 - 1  # to make dQ of it
    if part.prepares:
        assert (turns > 0).all()
        turns = turns - 1
    if part.finishes != "at_once":
        if part.part == "fused":  # nothing is left of what was counted
            assert (turns == np.where(taken, LAST_ADDITION - part.prepares, 0)).all()
            of_head = np.sum(1 / lists.array("ranks")) / (2 if lists.struct_fields["early_heads"] else 1)
            assert np.count_nonzero(taken) == round(of_head) * q_heads // lists.mask_batch
            return
        additions = turns & LAST_ADDITION - 1
        assert (taken == (turns >= LAST_ADDITION)).all()
        assert additions.sum() == lists.array("parts")[: lists.n_parts, 3].sum() * q_heads // lists.mask_batch
        assert ((turns >= LAST_ADDITION) == (additions > 0)).all() or not part.finishes
        ended = np.count_nonzero(lists.array("ranks") >= LAST_ADDITION)
        ended //= 2 if lists.struct_fields["early_heads"] else 1  # the ranks of all sums stand there twice
        assert np.count_nonzero(turns >= LAST_ADDITION) == ended * heads
        return
    assert not (turns & MOST_RANKS - 1).any()
    assert (turns // MOST_RANKS).sum() == np.count_nonzero(lists.array("ranks") > LAST_ADDITION) * heads
