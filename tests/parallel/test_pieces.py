"""Masks as runs of keys: the same counts, documents and rows as from their pairs, however many runs there are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import mask_cases
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.masks.mask import Mask
from omnicupy.parallel import make, pieces, plan, seen
from omnicupy.parallel.pieces import Pieces
from omnicupy.tools.bench import sharing


def _of(mask: Mask) -> Pieces:
    assert mask.intervals is not None
    return Pieces.of(mask.intervals, mask.shape[0])


def _masks(seed: int, square: bool) -> Iterator[tuple[Mask, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for kind in mask_cases.LEAVES:
        for most in (3, 60):
            q_len, k_len = (int(n) for n in rng.integers(1, most, 2, endpoint=True))
            case = mask_cases.random_case(rng, q_len, q_len if square else k_len, kind)
            if case.mask.intervals is not None:
                yield case.mask, case.dense
    size = int(rng.integers(2, 40))
    # Keys that nobody sees before one that the first row sees, and a window of one row.
    holes = [(0, 1, 1, 2), (0, 2, 2, 3), (1, 2, 4, 5), (3, 4, 4, 6)]
    for mask in (oc.ranges(holes, 7), oc.documents([1] * size), oc.sliding_window(size, left=0)):
        yield mask, mask.to_dense()


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 17])
def test_pieces_hold_keys_whose_bounds_stay_or_move_on_by_a_row(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK", block)
    for mask, _ in _masks(block, False):
        edges = _of(mask).edges
        assert edges[0] == 0
        assert edges[-1] == mask.shape[1]
        assert mask.intervals is not None
        for side in (bounds for pair in mask.intervals for bounds in pair):
            for first, stop in pairwise(edges):
                steps = set(np.diff(side[first:stop]).tolist())
                assert steps in (set(), {0}, {1})


def test_a_text_is_one_piece_and_what_nobody_sees_another() -> None:
    assert _of(oc.causal(1000)).edges.tolist() == [0, 1000]
    assert _of(oc.documents([10, 300, 4])).edges.tolist() == [0, 10, 310, 314]
    assert _of(oc.ranges([(0, 5, 2, 4)], 6)).edges.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_before_rows(seed: int) -> None:
    for mask, dense in _masks(seed, False):
        rows = np.unique(np.random.default_rng(seed).integers(0, len(dense) + 1, 9))
        wanted = np.append(0, np.cumsum(dense.sum(axis=1)))[rows].tolist()
        assert _of(mask).pairs_before(rows).tolist() == wanted
        assert seen.pairs_before(seen.Shown.of(mask), rows).tolist() == wanted


def test_pairs_of_many_tokens_are_exact() -> None:
    size = 1 << 23
    assert _of(oc.causal(size)).pairs_before(np.array([0, 1, size])).tolist() == [
        0,
        1,
        size * (size + 1) // 2,
    ]


@pytest.mark.parametrize("seed", range(4))
def test_places_that_no_pair_crosses(seed: int) -> None:
    for mask, dense in _masks(seed, True):
        wanted = [not (dense[:at, at:].any() or dense[at:, :at].any()) for at in range(1, len(dense))]
        assert _of(mask).free().tolist() == wanted


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_see_runs_of_keys(seed: int) -> None:
    """For each slot the least range of the rows that it holds for any key of the run."""
    for mask, _ in _masks(seed, False):
        assert mask.intervals is not None
        inner = np.random.default_rng(seed).integers(0, mask.shape[1], 4)
        keys = np.unique(np.concatenate([[0], inner, [mask.shape[1]]]))
        wanted = []
        for start, stop in zip(*mask.intervals, strict=True):
            for run, (a, b) in enumerate(pairwise(keys)):
                used = stop[a:b] > start[a:b]
                if used.any():
                    wanted.append((run, int(start[a:b][used].min()), int(stop[a:b][used].max())))
        assert list(zip(*(one.tolist() for one in _of(mask).rows_of(keys)), strict=True)) == wanted


@pytest.mark.parametrize("ranks", [2, 8, 24])
def test_assignments_whose_work_alone_takes_longer_would_not_win(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = [sharing.grown(name, 30_000) for name in sharing.PACKS]
    masks = [*packs, oc.causal(30_000), oc.sliding_window(30_000, left=700)]
    found = [plan(mask, ranks).digest for mask in masks]
    seconds = make._seconds

    def none_at_least(pairs: Any, waits: Any, setting: Any) -> float:
        return seconds(pairs, waits, setting) if isinstance(waits[0][0], np.ndarray) else 0.0

    monkeypatch.setattr(make, "_seconds", none_at_least)
    assert [plan(mask, ranks).digest for mask in masks] == found


@pytest.mark.parametrize("seed", range(4))
def test_bounds_stay_in_their_runs_of_rows_between_turns(seed: int) -> None:
    for mask, dense in _masks(seed, False):
        rng = np.random.default_rng(seed)
        rows = np.unique(np.append(rng.integers(0, len(dense) + 1, 5), [0, len(dense)]))
        keys = _of(mask).turns(rows)
        assert keys[0] == 0
        assert (np.diff(keys) > 0).all()
        assert mask.intervals is not None
        start, stop = mask.intervals
        ends = np.concatenate([np.searchsorted(rows, start, "right"), np.searchsorted(rows, stop)])
        others = np.setdiff1d(np.arange(dense.shape[1]), keys)
        assert np.array_equal(ends[:, others], ends[:, others - 1])
    assert _of(oc.causal(512)).turns(np.array([0, 128, 512])).tolist() == [0, 128]
