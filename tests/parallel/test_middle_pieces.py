"""Long causal documents that two ranks share: a middle piece, and two ends."""

from __future__ import annotations

import numpy as np
import pytest
from preset_oracles import block_diagonal

import omnicupy as oc
from omnicupy.parallel import make, nodes, plan
from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.line import Part
from omnicupy.parallel.seen import Shown, chunk_edges, chunk_work

LENGTHS = [2500, 2400, 1700, 1592]  # of 4 ranks with 2,048 tokens each


def _chunks(mask: oc.Mask, bounds: np.ndarray) -> Chunks:
    edges = chunk_edges(bounds, 128)
    return Chunks.of(edges, chunk_work(Shown.of(mask), edges).astype(np.float64), bounds)


def test_two_ranks_fetch_alike() -> None:
    mask = oc.presets.packed(LENGTHS)
    halves, middles = (plan(mask, 4, rows=rows) for rows in ("groups_of_1", "middle_pieces"))
    most = [int(one.needs((0,)).traffic(4).sum(axis=0).max()) for one in (halves, middles)]
    assert most == [2272, 1444]
    assert middles.rows.counts.tolist() == [2048] * 4
    first, middle, last = middles.rows.owner[:3].tolist()
    assert first == last != middle
    assert middles.rows.edges[:4].tolist() == [0, 896, 1792, 2500]
    assert plan(mask, 4).name == "middle_pieces"
    assert plan(mask, 4).digest == middles.digest
    sums = middles.stats()
    assert sums.pairs.sum() == mask.pairs
    assert sums.balance > halves.stats().balance


@pytest.mark.parametrize(("mask", "ranks"), [("full", 4), ("causal", 16), ("causal", 2)])
def test_others_are_shared_as_they_were(mask: str, ranks: int) -> None:
    """Documents that are not light in front, of more ranks than two, or of one."""
    parts = [oc.full(n) if mask == "full" else oc.causal(n) for n in LENGTHS]
    whole = oc.from_dense(block_diagonal([one.to_dense() for one in parts]))
    bounds = np.cumsum([0, *LENGTHS])
    assert not nodes.cuts_middles(_chunks(whole, bounds), ranks)
    assert "middle_pieces" not in make._tried(_chunks(whole, bounds), plan(whole, ranks).setting)
    found = [plan(whole, ranks, rows=rows) for rows in ("groups_of_1", "middle_pieces")]
    assert found[0].digest == found[1].digest


def test_short_documents_and_masks_without_pairs_have_no_middle() -> None:
    bounds = np.array([0, 600])
    causal = _chunks(oc.causal(600), bounds)
    assert [nodes._middle(one, causal.line) for one in causal.texts] == [256]
    short = _chunks(oc.causal(100), np.array([0, 100]))
    assert nodes._middle(Part([(0, 100)], 100, 5050.0), short.line) == 0
    assert not nodes.cuts_middles(_chunks(~oc.full(600), bounds), 2)


def test_plans_of_many_ranks_do_not_try_them() -> None:
    lengths = [1000, *([700] * 8)]
    whole, bounds = oc.documents(lengths), np.cumsum([0, *lengths])
    chunks = _chunks(whole, bounds)
    for ranks in (4, 8):
        tried = list(make._tried(chunks, plan(whole, ranks).setting))
        assert ("middle_pieces" in tried) == (
            ranks <= make.MIDDLE_RANKS and nodes.cuts_middles(chunks, ranks)
        )
    assert nodes.cuts_middles(chunks, 8)
