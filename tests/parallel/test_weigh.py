"""Assignments weighed all at once, and chunks as lists, beside what is found one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import parallel_cases
import pytest

import omnicupy as oc
from omnicupy.parallel import assign, nodes, plan, weigh
from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.line import Line
from omnicupy.parallel.plan import Plan


def _same(a: Plan, b: Plan) -> bool:
    return a.name == b.name and a.digest == b.digest


@pytest.mark.parametrize("kind", parallel_cases.KINDS)
def test_all_at_once_and_one_by_one_give_the_same_plan(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(parallel_cases.KINDS.index(kind))
    for ranks in (2, 3, 8):
        mask = parallel_cases.case(rng, kind, 400).mask
        masks = [mask, oc.full(*mask.shape)] if ranks == 3 else mask
        monkeypatch.setattr(weigh, "MOST", 1 << 30)
        together = plan(masks, ranks)
        monkeypatch.setattr(weigh, "MOST", 0)
        assert _same(plan(masks, ranks), together)


def test_several_nodes_and_many_numbers_are_weighed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(weigh, "seconds", none)
    assert plan(oc.causal(512), 8, node=4).ranks == 8
    assert plan(oc.documents([16] * 4096), 8).ranks == 8
    with pytest.raises(AssertionError):
        plan(oc.causal(512), 8)


def test_few_and_many_nodes_are_filled_alike() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 16, 40):
        amounts, share = rng.random((50, 2)), rng.choice([1.0, 1.5], count) / count
        assert nodes._few(amounts, share) == nodes._many(amounts, share)


def test_work_of_ranges_of_tokens() -> None:
    """Beside the work of each token, which is that of its chunk over the chunk's tokens."""
    rng = np.random.default_rng(1)
    edges = np.cumsum([0, *rng.integers(1, 9, 20)])
    chunks = Chunks(edges[:-1], edges[1:], rng.integers(0, 100, 20).astype(float), np.array([0, 20]))
    line: Line = chunks.line
    each = np.repeat(chunks.work / np.diff(edges), np.diff(edges))
    for _ in range(200):
        places = np.sort(rng.choice(edges[-1] + 1, 4, replace=False)).tolist()
        ranges = [(a, b) for a, b in list(pairwise(places))[::2]]
        chosen = np.concatenate([each[a:b] for a, b in ranges])
        assert line.work_of(ranges) == pytest.approx(chosen.sum())
        assert line.most(ranges) == pytest.approx(chosen.max())


@pytest.mark.parametrize("from_tail", [False, True])
def test_ends_of_a_document_in_two_ranges(from_tail: bool) -> None:
    ranges = [(3, 7), (10, 15)]
    tokens = [*range(3, 7), *range(10, 15)]
    for count in range(1, 10):
        end = sorted(nodes._end(ranges, count, from_tail))
        found = [token for a, b in end for token in range(a, b)]
        assert found == (tokens[-count:] if from_tail else tokens[:count])


@pytest.mark.parametrize("kind", parallel_cases.KINDS)
def test_few_and_many_documents_are_dealt_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(parallel_cases.KINDS.index(kind))
    for ranks, rows in ((3, "two_ended"), (8, "groups_of_2"), (7, "nodes_first")):
        mask = parallel_cases.case(rng, kind, 400).mask
        found = []
        for most in (0, 1 << 30):
            monkeypatch.setattr(assign, "FEW", most)
            monkeypatch.setattr(nodes, "FEW", most)
            found.append(plan(mask, ranks, node=4, rows=rows))
        assert _same(*found)
