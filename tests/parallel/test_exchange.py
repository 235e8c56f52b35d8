"""What travels, both ways of finding it, and what is expected to before a plan is chosen."""

from __future__ import annotations

import mask_cases
import numpy as np
import parallel_cases
import pytest

import omnicupy as oc
from omnicupy.parallel import exchange, plan, seen
from omnicupy.parallel import owners as owners_of_tokens
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.prediction import Flows, Heads, Setting, Speeds, near_and_far
from omnicupy.parallel.runs import offsets_within, spread


def test_long_ranges_of_rows_are_counted_as_short_ones_are_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    for kind in parallel_cases.KINDS:
        mask = parallel_cases.case(rng, kind).mask
        made = parallel_cases.made(rng, mask)
        short = exchange.needs_of([seen.Shown.of(mask)], made.rows, made.keys)
        with monkeypatch.context() as patch:
            patch.setattr(exchange, "MOST_PAIRS", 0)
            counted = exchange.needs_of([seen.Shown.of(mask)], made.rows, made.keys)
        assert np.array_equal(short.need, counted.need)
        assert np.array_equal(short.edges, counted.edges)


def _matrix(flows: Flows) -> np.ndarray:
    """Keys from each rank (first axis) to each other one (second axis)."""
    sent = np.zeros((flows.ranks, flows.ranks))
    np.add.at(sent, (flows.source, flows.target), flows.keys)
    return sent


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_expected_traffic_is_never_less_than_what_travels(chunk: int) -> None:
    """And exactly that where runs of keys are single keys and rows lie next to each other."""
    rng = np.random.default_rng(chunk)
    for kind in parallel_cases.KINDS:
        mask = parallel_cases.case(rng, kind).mask
        made = parallel_cases.made(rng, mask)
        edges = seen.chunk_edges(np.array([0, mask.shape[1]]), chunk)
        found = seen.rectangles(seen.Shown.of(mask), edges)
        expected = _matrix(exchange.expected_traffic(found, made.rows, made.keys))
        exact = made.needs((0,)).traffic(made.ranks)
        assert (expected >= exact).all(), kind
        if chunk == 1 and mask.intervals is not None:
            assert np.array_equal(expected, exact)
        assert not np.diag(expected).any()


def test_expected_traffic_is_the_same_where_pairs_are_sorted_and_where_they_are_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    for kind in parallel_cases.KINDS:
        mask = parallel_cases.case(rng, kind).mask
        made = parallel_cases.made(rng, mask)
        found = seen.rectangles(seen.Shown.of(mask), np.append(np.arange(0, mask.shape[1], 3), mask.shape[1]))
        pairs = [exchange.expected_traffic(found, made.rows, made.keys)]
        with monkeypatch.context() as patch:
            patch.setattr(exchange, "FEW_PAIRS", -1)
            patch.setattr(exchange, "SPARSE", 1 << 30)
            pairs.append(exchange.expected_traffic(found, made.rows, made.keys))
        assert np.array_equal(_matrix(pairs[0]), _matrix(pairs[1]))


@pytest.mark.parametrize("node", [1, 3, 4, 8])
def test_flows_take_as_long_as_the_exchange_that_they_add_up_to(node: int) -> None:
    source, target = np.nonzero(~np.eye(8, dtype=bool))
    keys = np.random.default_rng(node).integers(0, 3, len(source)) * 1000
    flows = Flows(np.tile(source, 2), np.tile(target, 2), np.concatenate([keys, keys[::-1]]), 8)
    setting = Setting(8, node, Heads(32, 8, 128), Speeds())
    for found, wanted in zip(flows.near_and_far(node), near_and_far(_matrix(flows), node), strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(setting.flows_s(flows), setting.exchange_s(_matrix(flows)))


def test_work_of_rows_and_documents_are_those_of_the_pairs() -> None:
    rng = np.random.default_rng(2)
    for kind in parallel_cases.KINDS:
        size = int(rng.integers(2, 90))
        if kind == "from_tiles":
            continue
        case = mask_cases.random_case(rng, size, size, kind)
        assert np.allclose(seen.row_work(case.mask), case.dense.sum(axis=1))  # strips are single rows here
        crossed = [case.dense[:at, at:].any() or case.dense[at:, :at].any() for at in range(1, size)]
        wanted = [0, *(np.flatnonzero(~np.array(crossed)) + 1).tolist(), size]
        assert seen.documents([seen.Shown.of(case.mask)]).tolist() == wanted


def test_documents_of_several_masks_are_cut_where_none_crosses() -> None:
    masks = [seen.Shown.of(oc.documents(lengths)) for lengths in ([3, 2, 4], [5, 4], [3, 6])]
    assert seen.documents(masks[:2]).tolist() == [0, 5, 9]
    assert seen.documents(masks).tolist() == [0, 9]


def test_chunks_end_with_their_document() -> None:
    assert seen.chunk_edges(np.array([0, 5, 6, 10]), 2).tolist() == [0, 2, 4, 5, 6, 8, 10]


def test_rows_of_masks_without_intervals_are_counted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST_STRIPS", 3)
    dense = np.random.default_rng(0).random((20, 20)) < 0.5
    mask = oc.from_dense(dense)
    assert mask.intervals is None
    work, counts = seen.row_work(mask), dense.sum(axis=1)
    assert work.tolist() == [counts[:7].mean()] * 7 + [counts[7:14].mean()] * 7 + [counts[14:].mean()] * 6
    blocks = oc.from_dense(np.kron(np.eye(2, dtype=np.bool_), dense | np.eye(20, dtype=np.bool_)))
    assert blocks.intervals is None
    for most in (3, 4, 40):  # 20 lies inside of a strip, and at the end of one
        monkeypatch.setattr(seen, "MOST_STRIPS", most)
        assert seen.documents([seen.Shown.of(blocks)]).tolist() == [0, 20, 40]


def test_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = Owners.of_tokens(np.array([1, 1, 0, 2, 2, 1]), 4)
    assert owners.edges.tolist() == [0, 2, 3, 5, 6]
    assert owners.counts.tolist() == [1, 3, 2, 0]
    assert owners.of(1).tolist() == [0, 1, 5]
    assert owners.of(3).tolist() == []
    assert owners.before(1).tolist() == [0, 1, 2, 2, 2, 2, 3]
    for few in (0, 16):
        monkeypatch.setattr(owners_of_tokens, "FEW", few)
        found = owners.below(1, [np.array([6, 0], np.int32), np.array([[1], [4]], np.int32)])
        assert [one.tolist() for one in found] == [[3, 0], [[1], [2]]]
        assert {one.dtype for one in found} == {np.dtype(np.int32)}
    assert owners.at(np.array([0, 2, 4, 5])).tolist() == [1, 0, 2, 1]
    assert offsets_within(owners.owner, np.diff(owners.edges)).tolist() == [0, 0, 0, 2]
    assert spread(np.array([3, 9, 1]), np.array([5, 9, 4])).tolist() == [3, 4, 1, 2, 3]


@pytest.mark.parametrize("ranks", [16, 24])
def test_a_document_longer_than_a_node_is_even_on_all(ranks: int) -> None:
    mask = oc.documents([60_000, 900, 300, 2000, 800])
    for rows in ("two_ended", "nodes_first"):
        stats = plan(mask, ranks, rows=rows).stats()
        assert stats.balance > 0.9, rows
        assert stats.tokens.max() - stats.tokens.min() <= 1


def test_rectangles_are_the_least_rows_of_their_keys() -> None:
    """Keys that nobody sees, and slots that a key does not use, do not count as row 0."""
    mask = oc.ranges([(10, 20, 5, 8), (12, 14, 0, 2), (30, 33, 6, 7)], 40, 32)
    found = seen.rectangles(seen.Shown.of(mask), np.array([0, 4, 16, 32]))
    assert sorted(zip(found.run.tolist(), found.first.tolist(), found.stop.tolist(), strict=True)) == [
        (0, 12, 14),
        (1, 10, 20),
        (1, 30, 33),
    ]


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_both_ends_of_a_text_are_taken_in_whole_runs(ranks: int) -> None:
    """A causal text is dense at its end: a rank has one run there and one at the beginning, whichever way it is cut."""
    for size in (1000, 1003, 4096):
        owners = plan(oc.causal(size), ranks, rows="two_ended").rows
        assert len(owners.owner) <= 2 * ranks - 1
        assert plan(oc.causal(size), ranks, rows="two_ended").stats().balance > 0.98
