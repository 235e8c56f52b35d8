"""What a schedule may not exceed, and flags of tiles whose keys have unequally many ranges of rows."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.grid import MOST_PARTIAL_BYTES, Grid
from omnicupy.schedule.order import SKIP_SHIFT, ordered
from omnicupy.schedule.parts import Workers, schedule

HOPPER = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=128, bc=128, stages=2, warps=12
)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_there_are_no_more_parts_than_slots(rows: int, slots: int) -> None:
    """Long rows, which so many multiprocessors would have cut into 64 parts each."""
    offsets = np.arange(rows + 1, dtype=np.int32) * 4000
    found = schedule(offsets, np.ones(4000 * rows), Workers(1, 132, slots))
    assert found.n_slots <= slots
    assert len(found.rows) <= rows + slots
    free = schedule(offsets, np.ones(4000 * rows), Workers(1, 132, 10_000))
    assert free.n_slots > 64 or rows == 1


@pytest.mark.parametrize("heads", [1, 8, 64, 300, 1000])
def test_parts_of_all_heads_fit_into_the_workspace(heads: int) -> None:
    problem = Problem(1, heads, heads, 200, 1 << 17, 128, "bfloat16")
    grid = Grid.of(HOPPER, problem, 1, sm_count=132, l2_bytes=50 << 20)
    found = schedule(np.array([0, 1024, 2048], np.int32), np.ones(2048), grid.workers)
    partial_bytes, _ = grid.partials(grid.workers.split_slots, 2)
    assert partial_bytes <= MOST_PARTIAL_BYTES
    assert grid.partials(grid.workers.split_slots + 1, 2)[0] > MOST_PARTIAL_BYTES
    assert found.n_slots <= grid.workers.split_slots


def test_ranges_that_a_key_does_not_have_are_not_looked_at() -> None:
    """One key of a tile has a second range of rows, far from the first one of all: between them no row sees a key."""
    mask = oc.ranges([(130, 140, 0, 64), (250, 260, 0, 1)], 384, 64)
    assert mask.intervals is not None
    assert len(mask.intervals[0]) == 2
    found = ordered(mask.blocks(192, 64))
    rows = np.repeat(np.arange(2), np.diff(found.row_offsets))
    flags = found.entries[:, 0] >> SKIP_SHIFT & 7
    assert list(zip(rows.tolist(), flags.tolist(), strict=True)) == [(0, 3), (1, 4)]
