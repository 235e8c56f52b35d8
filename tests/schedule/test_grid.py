"""schedule/grid.py: thread blocks, sections, heads that share a tile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from omnicupy.call.problem import Problem
from omnicupy.choose.table import Row
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.grid import Grid

HOPPER = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=128, bc=128, stages=2, warps=12
)
PORTABLE = Row(head_dims=(16, 1024), br=64, bc=64, stages=2)


def _grid(spec: AttnSpec, problem: Problem, masks: int = 1, sm_count: int = 132, l2: int = 50 << 20) -> Grid:
    return Grid.of(spec, problem, masks, sm_count=sm_count, l2_bytes=l2)


def test_section() -> None:
    problem = Problem(2, 32, 8, 4096, 4096, 128, "bfloat16")  # groups of 4; 2 MiB of K and V a key head
    assert _grid(HOPPER, problem).section(1) == 4 * 12  # half of the L2
    large = _grid(HOPPER, problem, l2=1 << 40)
    assert large.section(1) == 64  # all heads
    assert _grid(HOPPER, problem, 2, l2=1 << 40).section(1) == 32
    assert large.section(8) == 16  # 8 parts each: 128 of 132 multiprocessors
    assert large.section(7) == 20
    assert large.section(32) == 4
    assert large.section(999) == 4
    assert _grid(HOPPER, problem, l2=1 << 20).section(8) == 4
    assert large.section(0) == 64  # no rows
    assert _grid(HOPPER, problem, 2).section(1) == 4 * 6  # each head's K and V twice


def test_thread_blocks() -> None:
    problem = Problem(2, 32, 8, 100, 4096, 640, "bfloat16")
    tiled = _grid(PORTABLE.spec("sm_80", "bfloat16", 640), problem, sm_count=108)
    assert tiled.thread_blocks(2) == (2 * 64, 3, 1)
    naive = Row(head_dims=(16, 1024), kernel="naive", br=64, bc=64).spec("sm_80", "bfloat16", 640)
    assert _grid(naive, problem).thread_blocks(2) == (100 * 64, 1, 1)
    with pytest.raises(UnsupportedError, match="thread blocks exceed a launch's 2147483647; split the batch"):
        _grid(naive, Problem(2**20, 32, 8, 100, 4096, 640, "bfloat16")).thread_blocks(2)


def test_the_persistent_kernel_has_a_block_a_multiprocessor() -> None:
    grid = _grid(HOPPER, Problem(1, 8, 8, 300, 300, 128, "bfloat16"))
    assert grid.thread_blocks(3) == (24, 1, 1)
    assert grid.thread_blocks(63) == (132, 1, 1)
    with pytest.raises(UnsupportedError) as error:
        grid.thread_blocks(2**28)
    assert str(error.value) == "q: 2147483648 thread blocks exceed a launch's 2147483647; split the batch"


def test_heads_that_do_not_fill_a_tile_are_refused() -> None:
    shared = AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=128, stages=2, warps=12
    )
    assert _grid(shared, Problem(1, 8, 4, 64, 300, 128, "bfloat16")).tile_heads == 4
    with pytest.raises(ValueError, match="puts 2 query heads of one group into a tile, but a group has 3"):
        _grid(shared, Problem(1, 12, 4, 64, 300, 128, "bfloat16"))


PACKED = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=128, stages=2, warps=8, pack=True
)


def test_packed_heads_are_one_item() -> None:
    grid = _grid(PACKED, Problem(3, 28, 4, 5, 9000, 128, "bfloat16"))
    assert (grid.tokens, grid.tile_heads, grid.tile_group, grid.workers.heads) == (9, 4, 1, 12)
    assert grid.packed == {"pack_heads": 7, "pack_tokens": 9, "packs": 1, "part_rows": 36}
    assert grid.partials(10, 2) == (12 * 10 * 36 * (128 + 2) * 4, 12 * 2)
    assert grid.workers.leave < _grid(HOPPER, Problem(3, 28, 4, 5, 9000, 128, "bfloat16")).workers.leave
    of_many = _grid(PACKED, Problem(2, 71, 1, 5, 9000, 128, "bfloat16"))
    assert (of_many.tokens, of_many.tile_heads, of_many.tile_group, of_many.workers.heads) == (1, 2, 2, 4)
    assert of_many.packed == {"pack_heads": 36, "pack_tokens": 1, "packs": 2, "part_rows": 36}


def test_packed_tiles_that_all_run_at_once_have_one_group_a_section() -> None:
    """Tiles of one head of keys are neighbours in the list then, wherever heads or tokens take several."""
    of_tokens = _grid(PACKED, Problem(1, 28, 4, 16, 8192, 128, "bfloat16"))
    assert (of_tokens.tile_group, of_tokens.work_items(33)) == (1, 132)
    assert [of_tokens.section(parts) for parts in (0, 1, 2, 33)] == [1, 1, 1, 1]
    assert of_tokens.section(34) == 4  # a second round, with more heads side by side
    of_heads = _grid(PACKED, Problem(2, 142, 2, 1, 8192, 128, "bfloat16"))
    assert (of_heads.tile_group, of_heads.work_items(16), of_heads.section(16)) == (2, 128, 2)
    assert of_heads.section(17) == 8
    masked = _grid(PACKED, Problem(16, 28, 4, 16, 8192, 128, "bfloat16"), masks=16)
    assert (masked.work_items(33), masked.section(33)) == (132, 1)
    unpacked = replace(PACKED, pack=False, br=128, warps=12)
    assert _grid(unpacked, Problem(1, 28, 4, 16, 8192, 128, "bfloat16")).section(1) == 28


def test_packed_rows_are_counted_in_32_bits() -> None:
    with pytest.raises(ValueError, match="pack=True counts at most 2147483647 rows of heads and tokens"):
        _grid(PACKED, Problem(1, 64, 1, 1, 2**25, 128, "bfloat16"))


def test_a_split_is_whole_tiles() -> None:
    problem = Problem(1, 8, 4, 64, 3000, 128, "bfloat16")
    made = Grid.of(HOPPER, problem, 1, sm_count=132, l2_bytes=50 << 20, split=384)
    assert made.workers.split_tiles == 3
    with pytest.raises(
        ValueError, match=r"^split must be a multiple of 128, the keys of a tile of the kernel"
    ):
        Grid.of(HOPPER, problem, 1, sm_count=132, l2_bytes=50 << 20, split=64)
    portable = PORTABLE.spec("sm_80", "bfloat16", 128)
    assert Grid.of(portable, problem, 1, sm_count=132, l2_bytes=1, split=64).workers.split_tiles == 0
