"""schedule/backward_grid.py: thread blocks and sections of the launches of a backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_kernel import PARTS, TileShape
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows
from omnicupy.schedule.backward_grid import BackwardGrid
from omnicupy.schedule.grid import MOST_PARTIAL_BYTES

HOPPER = BackwardSpec(
    arch="sm_90a",
    kernel="sm90",
    dtype="bfloat16",
    head_dim=128,
    dkdv=TileShape(64, 128, 2, 12),
    dq=TileShape(128, 128, 4, 12),
)
PROBLEM = Problem(2, 32, 8, 4096, 4096, 128, "bfloat16")  # groups of 4


def _grid(part: str, spec: BackwardSpec = HOPPER, problem: Problem = PROBLEM, **more: Any) -> BackwardGrid:
    sizes = {"masks": 1, "sm_count": 132, "l2_bytes": 50 << 20} | more
    return BackwardGrid(spec.part(part), problem, **sizes)


def test_heads_are_of_keys_for_dk_and_dv_and_of_queries_for_dq() -> None:
    assert [_grid(part).heads for part in ("dkdv", "dq")] == [8, 32]
    assert [_grid(part).workers.heads for part in ("dkdv", "dq")] == [16, 64]
    assert [_grid(part, masks=2).workers.heads for part in ("dkdv", "dq")] == [8, 32]
    assert [_grid(part).workers.repeats for part in ("dkdv", "dq")] == [4, 1]  # heads of a group
    assert [_grid(part).work_items(5) for part in ("dkdv", "dq")] == [80, 320]
    assert _grid("dkdv", masks=2).work_items(10) == 80


@pytest.mark.parametrize("masks", [1, 2])
def test_every_head_gets_every_part_once(masks: int) -> None:
    """As work_item_among of omni/work.cuh takes a work index apart, with tiers."""
    problem = replace(PROBLEM, batch=2)
    for part in ("dkdv", "dq"):
        grid = _grid(part, problem=problem, masks=masks)
        parts, heads = 7 * masks, grid.workers.heads
        tiers, seen = (2 * masks, 3 * masks, 3 * masks, parts), []
        section = grid.section(parts)
        for index in range(grid.work_items(parts)):
            first, end = 0, tiers[0]
            for i in range(3):
                if index >= heads * tiers[i]:
                    first, end = tiers[i], tiers[i + 1]
            at = index - heads * first
            number = at // ((end - first) * section)
            width = min(section, heads - number * section)
            rank, head = divmod(at - number * (end - first) * section, width)
            seen.append((first + rank, number * section + head))
        assert sorted(seen) == [(part, head) for part in range(parts) for head in range(heads)]


def test_the_hopper_kernel_of_dk_and_dv_may_split_blocks_of_keys() -> None:
    """As far as float32 sums of its parts fit what a stream may use."""
    slot = 2 * 4 * 128 * 128
    assert _grid("dkdv").workers.split_slots == MOST_PARTIAL_BYTES // (16 * slot) > 0
    assert _grid("dkdv", masks=2).workers.split_slots == MOST_PARTIAL_BYTES // (16 * slot)
    assert _grid("dq").workers.split_slots == 0
    for kernel in (
        backward_table.naive("sm_90", "bfloat16", 128),
        backward_table.pick("sm_80", "bfloat16", 128),
    ):
        assert _grid("dkdv", kernel).workers.split_slots == 0
    grid = _grid("dkdv")
    assert grid.partials(0, 0) == (0, 0)
    assert grid.partials(3, 1) == (16 * 3 * slot, 16 * 2 * 128 // 16)
    assert grid.partials(grid.workers.split_slots, 1)[0] <= MOST_PARTIAL_BYTES


@pytest.mark.parametrize(("head_dim", "value_dim"), [(192, 128), (128, 192)])
def test_parts_of_two_widths_have_room_for_the_greater(head_dim: int, value_dim: int) -> None:
    wide = backward_table.pick("sm_90", "bfloat16", head_dim, value_dim=value_dim)
    problem = replace(PROBLEM, head_dim=head_dim, value_dim=value_dim)
    assert _grid("dkdv", wide, problem).partials(3, 1)[0] == 16 * 3 * 2 * 4 * 64 * 192
    narrow = replace(PROBLEM, head_dim=64, value_dim=128)
    spec = backward_table.pick("sm_90", "bfloat16", 64, value_dim=128)
    assert _grid("dkdv", spec, narrow).partials(3, 1)[0] == 16 * 3 * 2 * 4 * 128 * 128


def test_a_section_counts_both_widths() -> None:
    """2 MiB of Q, 1 MiB of dO: 3 of 4096 rows of 256 and of 128 columns for each of a group's 4 heads."""
    problem = replace(PROBLEM, head_dim=256, value_dim=128)
    spec = backward_table.pick("sm_90", "bfloat16", 256, value_dim=128)
    assert _grid("dkdv", spec, problem, l2_bytes=2 * 12 << 20).section(1) == 1
    assert _grid("dkdv", spec, problem, l2_bytes=2 * 24 << 20).section(1) == 2
    assert _grid("dq", spec, problem, l2_bytes=2 * 6 << 20).section(1) == 4 * 2  # 3 MiB of K and V


def test_the_launch_that_converts_has_a_block_for_64_queries() -> None:
    spec = replace(HOPPER, fused=TileShape(64, 128, 2, 12))
    problem = Problem(3, 4, 2, 1000, 777, 128, "bfloat16")
    assert _grid("convert", spec, problem).thread_blocks(5) == (3 * 4 * 16, 1, 1)
    fused = _grid("fused", spec, problem)
    assert (fused.heads, fused.workers.side_by_side) == (2, 25)  # of half of the L2 cache
    assert replace(fused.workers, side_by_side=0) == _grid("dkdv", spec, problem).workers
    assert fused.thread_blocks(5) == (min(132, 5 * 6), 1, 1)
    assert fused.section(5) == _grid("dkdv", spec, problem).section(5)


def test_persistent_kernels_have_a_block_a_multiprocessor() -> None:
    for part in ("dkdv", "dq"):
        assert _grid(part).thread_blocks(1000) == (132, 1, 1)
    assert _grid("dkdv").thread_blocks(3) == (48, 1, 1)
    assert _grid("dq").thread_blocks(1) == (64, 1, 1)


@pytest.mark.parametrize("head_dim", [16, 48, 64, 128, 256, 1024])
def test_the_launch_that_prepares_covers_every_padded_row(head_dim: int) -> None:
    spec = backward_table.naive("sm_80", "bfloat16", head_dim)
    problem = Problem(3, 4, 2, 1000, 777, head_dim, "bfloat16")
    rows = spec.part("prepare").prepared_rows
    lanes = min(32, 1 << (-(-head_dim // 8) - 1).bit_length())
    assert rows == 256 // lanes * min(4, lanes)
    of_queries = 3 * 4 * -(-padded_rows(1000) // rows)
    grid = _grid("prepare", spec, problem)
    assert grid.thread_blocks(5) == (of_queries, 1, 1)
    assert grid.thread_blocks(5, copies_keys=True) == (of_queries + 3 * 2 * -(-777 // rows), 1, 1)


def test_plain_kernels_have_a_block_a_row_and_mma_kernels_one_a_part() -> None:
    problem = Problem(2, 4, 2, 100, 300, 640, "bfloat16")
    naive = backward_table.naive("sm_80", "bfloat16", 640)
    assert _grid("dkdv", naive, problem).thread_blocks(9) == (2 * 2 * 300, 1, 1)
    assert _grid("dq", naive, problem).thread_blocks(9) == (2 * 4 * 100, 1, 1)
    tiled = backward_table.pick("sm_80", "bfloat16", 640)
    assert (tiled.kernel, tiled.part("dq").column_blocks) == ("sm80", 10)
    assert _grid("dkdv", tiled, problem).thread_blocks(9) == (2 * 2 * 9, 10, 1)
    assert _grid("dq", tiled, problem).thread_blocks(9) == (2 * 4 * 9, 10, 1)


@pytest.mark.parametrize("part", PARTS)
def test_too_many_thread_blocks(part: str) -> None:
    problem = Problem(2**20, 32, 32, 4096, 4096, 128, "bfloat16")
    with pytest.raises(UnsupportedError) as raised:
        _grid(part, problem=problem).thread_blocks(2**12)
    assert str(raised.value).startswith("attention_backward: ")
    assert str(raised.value).endswith(" thread blocks exceed a launch's 2147483647; split the batch")


def test_a_section_of_heads_of_keys_has_their_q_and_dout_in_l2() -> None:
    """4 MiB of Q and dO a head of keys: groups of 4 heads of 4096 x 128, two arrays, two bytes each -> 8 MiB."""
    assert _grid("dkdv").section(1) == 3  # of half of 50 MiB
    large = {"l2_bytes": 1 << 40}
    assert _grid("dkdv", **large).section(1) == 16
    assert _grid("dkdv", masks=2, **large).section(1) == 8
    assert _grid("dkdv", **large).section(32) == 4  # 128 parts for 132 multiprocessors
    assert _grid("dkdv", **large).section(999) == 1
    assert _grid("dkdv", l2_bytes=1 << 20).section(1) == 1
    assert _grid("dkdv", masks=2).section(1) == 1


def test_a_section_of_heads_of_queries_is_of_whole_groups() -> None:
    large = {"l2_bytes": 1 << 40}
    assert _grid("dq").section(1) == 4 * 12  # 2 MiB of K and V a head of keys, in half of 50 MiB
    assert _grid("dq", **large).section(1) == 64
    assert _grid("dq", **large).section(8) == 16
    assert _grid("dq", **large).section(999) == 4
    assert _grid("dq", l2_bytes=1 << 20).section(8) == 4
