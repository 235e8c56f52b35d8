"""Which rows and heads are computed while keys travel: the steps of each rank cover its mask, and fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import parallel_cases
import pytest

import omnicupy as oc
from omnicupy.parallel import Plan, Speeds, overlap, plan
from omnicupy.parallel.overlap import partitions, steps_of
from omnicupy.parallel.prediction import Heads
from omnicupy.tools.workloads.workload import by_name

HEADS = Heads(8, 4, 64)


@pytest.mark.parametrize(
    "kind", ["segments", "ranges", "documents", "sliding_window", "from_dense", "causal"]
)
@pytest.mark.parametrize("how", [True, None, False])
def test_pieces_are_the_local_mask(kind: str, how: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BLOCK", 4)
    rng = np.random.default_rng(3)
    for _ in range(12):
        made = parallel_cases.made(rng, parallel_cases.case(rng, kind).mask, 6)
        steps = [steps_of(made, rank, 0, 2, HEADS, how) for rank in range(made.ranks)]
        for rank, one in enumerate(steps):
            assert one.groups == steps[0].groups  # or ranks would wait for others
            assert sum(one.groups) == HEADS.kv_heads
            _check(made, rank, one)
            if how is False:
                assert len(one.pieces) <= 1
                assert one.groups == (HEADS.kv_heads,)


def _check(made: Plan, rank: int, steps: overlap.Steps) -> None:
    """Each row once, and every pair of the local mask in its place."""
    local, own = made.local(rank), int(made.keys.counts[rank])
    if local is None:
        assert not steps.pieces
        return
    expected, found = local.to_dense(), np.zeros(local.shape, np.bool_)
    rows = [row for piece in steps.pieces for row in range(piece.first, piece.stop)]
    assert sorted(rows) == list(range(local.shape[0]))
    for piece in steps.pieces:
        (mask,) = piece.masks
        keys = np.r_[piece.low : piece.high, own : local.shape[1] if piece.waits else own]
        found[piece.first : piece.stop, keys] = mask.to_dense()
    assert np.array_equal(found, expected)
    assert [piece.waits for piece in steps.pieces] == sorted(piece.waits for piece in steps.pieces)
    assert sum(piece.waits for piece in steps.pieces) <= 1


def _of_workload(name: str, rows: str | None = None, **options: Any) -> list[overlap.Steps]:
    workload = by_name(name)
    made = plan(workload.mask(), 2, heads=workload.sizes, rows=rows, **options)
    return [steps_of(made, rank, 0, workload.batch, Heads(*workload.sizes), None) for rank in range(2)]


def test_what_overlaps() -> None:
    """Rows where most need not wait, heads where most have to, nothing where a launch costs more than it hides."""
    for name, rows in (("W1", "two_ended"), ("W12", "two_ended"), ("W7", None)):
        for steps in _of_workload(name, rows):
            assert len(steps.groups) == 1
            assert [piece.waits for piece in steps.pieces][-2:] == [False, True]
            assert steps.pieces[-1].first % overlap.BLOCK == 0
            assert "rows first" in str(steps)
    for steps in _of_workload("W10"):
        assert steps.groups == (1, 3, 8)
        assert len(steps.pieces) == 1
        assert str(steps) == "heads 1+3+8"
    for name in ("W1", "W10"):
        dear = replace(Speeds(), split_s=1.0)
        assert {str(steps) for steps in _of_workload(name, "two_ended", speeds=dear)} == {"none"}
    assert {str(steps) for steps in _of_workload("W12", "contiguous")} == {
        "16384 rows first",
        "13056 rows first",
    }


def test_ranks_beyond_count_only_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_LOOKED_AT", 1)
    for steps in _of_workload("W10"):
        assert len(steps.groups) == 1


def test_a_batch_waits_for_what_any_element_needs() -> None:
    masks = [oc.documents([256, 256]), oc.documents([300, 212])]
    made = plan(masks, 2, rows="contiguous")
    first = [steps_of(made, 1, [one, one], 2, HEADS, True).pieces for one in (0, 1)]
    both = steps_of(made, 1, [0, 1], 2, HEADS, True).pieces
    assert [piece.waits for piece in first[0]] == [False]
    assert [piece.waits for piece in first[1]] != [False]
    assert len(both[-1].masks) == 2
    assert both[-1].waits


def test_first_groups_are_small() -> None:
    assert partitions(1) == []
    for heads in range(2, 65):
        for sizes in partitions(heads):
            assert sum(sizes) == heads
            assert list(sizes) == sorted(sizes)
            assert len(sizes) in (2, 3)


@pytest.mark.parametrize("how", [True, None, "rows"])
def test_a_rank_without_keys_has_one_launch(how: bool | str | None) -> None:
    """Its rows that see no key of another rank see none at all."""
    mask = oc.ranges([(0, 512, 0, 512), (768, 1024, 0, 512)], 1024)
    made = plan(mask, 2, rows="contiguous", keys=np.zeros(1024, np.int64))
    steps = steps_of(made, 1, 0, 1, HEADS, how)
    assert [(piece.first, piece.stop) for piece in steps.pieces] == [(0, 512)]
    _check(made, 1, steps)
