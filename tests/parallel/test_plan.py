"""Plans: every pair at one rank, exact local masks and exchanges, shares, the same plan everywhere."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import parallel_cases
import pytest

import omnicupy as oc
import omnicupy.parallel
from omnicupy.parallel import Plan, Speeds, make, plan
from omnicupy.tools.workloads.workload import by_name

CASES = 12  # of each kind of mask


def _check(made: Plan, dense: Any, which: int = 0) -> None:
    """Each pair is computed once, by its row's owner, and exactly the keys that are needed travel."""
    count = np.zeros(dense.shape, np.int64)
    assert sorted(np.concatenate([made.positions(rank) for rank in range(made.ranks)])) == list(
        range(len(dense))
    )
    for rank in range(made.ranks):
        rows, own, trip = made.positions(rank), made.key_positions(rank), made.exchange(rank, which)
        needed = np.flatnonzero(dense[rows].any(axis=0))
        assert sorted(trip.foreign.tolist()) == sorted(set(needed.tolist()) - set(own.tolist()))
        assert trip.own == len(own)
        assert sum(trip.received) == len(trip.foreign)
        sent = [
            made.key_positions(source)[made.exchange(source, which).send[rank]]
            for source in range(made.ranks)
        ]
        assert tuple(map(len, sent)) == trip.received
        assert np.array_equal(np.concatenate(sent), trip.foreign)
        keys = np.concatenate([own, trip.foreign])
        local = made.local(rank, which)
        if local is None:
            assert not len(rows) or not len(keys)
            assert not dense[rows].any()
            continue
        assert local.shape == (len(rows), len(keys))
        assert np.array_equal(local.to_dense(), dense[np.ix_(rows, keys)])
        assert made.local(rank, which) is local
        count[np.ix_(rows, keys)] += local.to_dense()
    assert np.array_equal(count, dense.astype(np.int64))


@pytest.mark.parametrize("kind", parallel_cases.KINDS)
def test_random_plans(kind: str) -> None:
    rng = np.random.default_rng(parallel_cases.KINDS.index(kind))
    for _ in range(CASES):
        case = parallel_cases.case(rng, kind)
        _check(parallel_cases.made(rng, case.mask), case.dense)


@pytest.mark.parametrize("kind", ["segments", "documents", "sliding_window", "random"])
def test_intervals_stay_intervals(kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(CASES):
        mask = parallel_cases.case(rng, kind, 300).mask
        assert mask.intervals is not None
        made = plan(mask, 4)
        for rank in range(4):
            local = made.local(rank)
            if local is not None:
                assert local.intervals is not None
                assert len(local.intervals[0]) <= len(mask.intervals[0])


def test_several_masks_have_one_assignment() -> None:
    """Each mask has an exchange of its own, a batch of both has one."""
    masks = [oc.sliding_window(200, left=15), oc.causal(200)]
    made = plan(masks, 4, weights=[5, 1])
    for which, mask in enumerate(masks):
        _check(made, mask.to_dense(), which)
    window, causal, both = (made.exchange(3, which) for which in (0, 1, [0, 1]))
    assert len(window.foreign) < len(causal.foreign)
    assert set(both.foreign) == {*window.foreign.tolist(), *causal.foreign.tolist()}
    first, second, third = made.locals(3, [0, 1, 0])
    assert first is third
    keys = np.concatenate([made.key_positions(3), both.foreign])
    assert np.array_equal(second.to_dense(), masks[1].to_dense()[np.ix_(made.positions(3), keys)])


def test_weights_decide_which_mask_counts() -> None:
    masks = [oc.sliding_window(8192, left=255), oc.causal(8192)]
    assert plan(masks, 8, weights=[1000, 1]).name == "contiguous"
    assert plan(masks, 8, weights=[1, 1000]).name == "zigzag"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("rows", [None, *make.NAMES])
def test_every_rank_gets_the_same_number_of_rows(size: int, rows: str | None) -> None:
    for ranks in (1, 2, 3, 8, 16):
        for mask in (
            oc.causal(size),
            oc.documents([size // 3 + 1, size - size // 3 - 1]) if size > 1 else oc.full(1),
        ):
            counts = plan(mask, ranks, node=4, rows=rows).rows.counts
            assert counts.sum() == size
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("name", "ranks", "least"), [("W1", 8, 0.97), ("W12", 8, 0.92), ("W1", 2, 0.99), ("W12", 2, 0.99)]
)
def test_work_is_even(name: str, ranks: int, least: float) -> None:
    """The figures of the design: contiguous shards give 0.67 and 0.43 on eight ranks."""
    workload = by_name(name)
    heads = (workload.q_heads, workload.kv_heads, workload.head_dim)
    found = plan(workload.mask(), ranks, heads=heads).stats()
    assert found.balance >= least
    assert found.balance > plan(workload.mask(), ranks, rows="contiguous").stats().balance


@pytest.mark.parametrize(("name", "ranks", "least"), [("W1", 4, 1.6), ("W12", 4, 1.2), ("W1", 2, 50)])
def test_whole_documents_need_few_keys(name: str, ranks: int, least: float) -> None:
    """The busiest rank receives so many times less than where each takes documents from two ends."""
    workload = by_name(name)
    mask, heads = workload.mask(), workload.sizes
    found, dealt = plan(mask, ranks, heads=heads), plan(mask, ranks, heads=heads, rows="two_ended")
    assert found.name in make.OF_GROUPS
    assert dealt.stats().received.max() > least * found.stats().received.max()
    assert found.stats().efficiency > dealt.stats().efficiency


def test_windows_stay_contiguous() -> None:
    assert plan(oc.sliding_window(16384, left=1023), 8).name == "contiguous"


def test_documents_stay_within_their_nodes() -> None:
    """Packed documents on four nodes: hardly a key crosses the network, and the work is even."""
    lengths = np.random.default_rng(0).choice([300, 700, 1500, 2100, 4096, 90, 640], 160)
    mask = oc.documents(lengths.tolist())
    found = plan(mask, 32)
    assert found.name == "nodes_first"
    stats, dealt = found.stats(), plan(mask, 32, rows="two_ended").stats()
    assert stats.balance > 0.97
    assert stats.far_received.max() < 0.1 * dealt.far_received.max()
    assert stats.efficiency > 1.2 * dealt.efficiency


def test_stats_count_what_there_is() -> None:
    mask = oc.random(300, 3, documents=3)
    made = plan(mask, 3, node=2, heads=(4, 2, 16))
    stats, dense = made.stats(), mask.to_dense()
    for rank in range(3):
        rows = made.positions(rank)
        assert stats.tokens[rank] == len(rows)
        assert stats.pairs[rank] == dense[rows].sum()
        token = 2 * 2 * 16 * 2  # K and V, two heads of 16 columns, two bytes
        assert stats.received[rank] == token * len(made.exchange(rank).foreign)
        assert stats.sent[rank] == token * sum(made.exchange(rank).sent)
        far = sum(made.exchange(rank).received[other] for other in range(3) if other // 2 != rank // 2)
        assert stats.far_received[rank] == token * far
    assert stats.alone_s == pytest.approx(5e-6 + mask.pairs * 4 * 4 * 16 / 600e12)
    owner = made.rows.at(np.arange(300))
    slow = plan(mask, 3, node=2, heads=(4, 2, 16), rows=owner, speeds=Speeds(flops=600e9)).stats()
    assert slow.rank_s[0] == pytest.approx(stats.rank_s[0] + stats.pairs[0] * 256 * (1 / 600e9 - 1 / 600e12))
    assert 0 < slow.efficiency <= 1


def test_shards_come_together_again() -> None:
    made = plan(oc.random(150, 1), 5)
    x = np.random.default_rng(0).standard_normal((2, 3, 150, 4))
    parts = [made.shard(x, rank) for rank in range(5)]
    assert np.array_equal(parts[2], x[:, :, made.positions(2)])
    assert np.array_equal(made.unshard(parts), x)
    ids = np.arange(300).reshape(2, 150)
    assert np.array_equal(made.unshard([made.shard(ids, rank, -1) for rank in range(5)], 1), ids)


def test_keys_are_sharded_by_their_own_owners() -> None:
    made = plan(oc.full(10, 23), 4)
    x = np.arange(23.0)[None, :, None]
    parts = [made.shard(x, rank, keys=True) for rank in range(4)]
    assert [part.shape[1] for part in parts] == made.keys.counts.tolist() == [5, 6, 6, 6]
    assert np.array_equal(made.unshard(parts, keys=True), x)


def test_shift_stays_inside_documents() -> None:
    made = plan(oc.documents([3, 1, 4]), 2)
    labels = np.arange(10, 18)[None]
    assert made.shift(labels, fill=-100).tolist() == [[11, 12, -100, -100, 15, 16, 17, -100]]
    assert made.shift(labels, 2, fill=-1).tolist() == [[12, -1, -1, -1, 16, 17, -1, -1]]
    assert made.shift(labels, -1).tolist() == [[0, 10, 11, 0, 0, 14, 15, 16]]
    assert labels[0, 0] == 10


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("seed", range(6))
def test_documents_of_masks_without_intervals_end_at_any_row(seed: int) -> None:
    """Rows of bits and tiles are counted in strips; a label must not come from behind the end of a document."""
    rng, size = np.random.default_rng(seed), int(np.random.default_rng(seed).integers(900, 1600))
    ends = np.sort(rng.choice(np.arange(1, size), rng.integers(1, 40), replace=False))
    lengths = np.diff([0, *ends, size]).tolist()
    inside = oc.documents(lengths, causal=False)
    lists = [np.unique(rng.integers(0, size // 8, 20)).tolist() for _ in range(-(-size // 8))]
    tiles = oc.from_tiles(lists, size, size, 8, 8) & inside
    bits = oc.from_dense(rng.random((size, size)) < 0.2) & inside
    assert tiles.tiles is not None
    assert bits.bits is not None
    empty = oc.from_dense(np.zeros((size, size), bool))
    for masks in ([tiles], [bits], [bits, tiles], [oc.documents(lengths), bits], [tiles, empty]):
        seen = np.any([mask.to_dense() for mask in masks], axis=0)
        rows, keys = np.nonzero(seen)
        crossed = np.zeros(size + 1, int)
        np.add.at(crossed, np.minimum(rows, keys) + 1, 1)
        np.add.at(crossed, np.maximum(rows, keys) + 1, -1)
        places = np.flatnonzero(np.cumsum(crossed)[:-1] == 0)
        made = plan(masks, 3)
        assert made.documents.tolist() == sorted({0, *places.tolist(), size})
        labels = made.shift(np.arange(size)[None], fill=-100)
        assert (labels[0, made.documents[1:] - 1] == -100).all()


def test_shift_takes_the_documents_of_a_mask_or_of_each_batch_element() -> None:
    masks = [oc.documents([3, 5]), oc.documents([6, 2]), oc.causal(8)]
    made, words = plan(masks, 2), np.arange(10, 34).reshape(3, 8)
    assert made.documents.tolist() == [0, 8]  # under all masks
    ends: dict[Any, list[list[int]]] = {0: [[2, 7]] * 3, 1: [[5, 7]] * 3, 2: [[7]] * 3, None: [[7]] * 3}
    for which, rows in ends.items():
        labels = made.shift(words, fill=-1, mask=which)
        assert [np.flatnonzero(row < 0).tolist() for row in labels] == rows
    labels = made.shift(words, fill=-1, mask=[1, 2, 0])
    assert [np.flatnonzero(row < 0).tolist() for row in labels] == [[5, 7], [7], [2, 7]]
    assert (labels[labels >= 0] == words[labels >= 0] + 1).all()
    assert (
        pickle.loads(pickle.dumps(made)).shift(words, mask=(1, 2, 0)).tolist()
        == made.shift(words, mask=[1, 2, 0]).tolist()
    )
    for wrong in ([0, 1], [0, 1, 2, 0]):
        with pytest.raises(ValueError, match="shift: mask must name one mask for each batch element"):
            made.shift(words, mask=wrong)
    with pytest.raises(ValueError, match="with the tokens on axis 0"):
        made.shift(words.T, axis=0, mask=[0] * 8)


def test_digests_tell_plans_apart() -> None:
    mask = oc.random(64, 0)
    same = [plan(oc.random(64, 0), 4), pickle.loads(pickle.dumps(plan(mask, 4)))]
    assert {one.digest for one in same} == {plan(mask, 4).digest}
    others = [
        plan(mask, 3),
        plan(mask, 4, rows=np.repeat([0, 1, 2, 3], 16)),
        plan(mask, 4, rows=np.repeat([1, 0, 2, 3], 16)),
        plan(mask, 4, keys=np.repeat([3, 1, 0, 2], 16)),
        plan([mask, mask], 4),
        plan(mask, 4, node=2),
        plan(oc.full(64), 4, rows=np.repeat([0, 1, 2, 3], 16)),
        plan(oc.from_tiles([[0], [1]], 64, 64, 32, 32), 4, rows=np.repeat([0, 1, 2, 3], 16)),
        plan(oc.from_tiles([[0], [0]], 64, 64, 32, 32), 4, rows=np.repeat([0, 1, 2, 3], 16)),
    ]
    assert len({one.digest for one in [*others, same[0]]}) == len(others) + 1


def test_a_pickle_holds_no_caches() -> None:
    made = plan(oc.causal(3000), 8)
    before = len(pickle.dumps(made))
    assert made.local(1) is not None
    made.stats()
    assert made.digest
    assert made.rows.counts.sum() == 3000
    assert len(pickle.dumps(made)) == before
    _check(pickle.loads(pickle.dumps(plan(oc.causal(50), 3))), oc.causal(50).to_dense())


def test_print() -> None:
    text = str(plan(oc.causal(1024), 20, node=4, rows="zigzag"))
    assert text.startswith("<Plan zigzag: 1024 rows and 1024 keys on 20 ranks>\n")
    assert "4 more ranks" in text
    assert "predicted efficiency" in text


def test_a_picture(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    plan(oc.random(300, 0), 4).plot(tmp_path / "plan")
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="plot: expected a suffix"):
        plan(oc.causal(8), 2).plot(tmp_path / "plan.nothing")


def test_importing_the_library_does_not_import_this() -> None:
    assert omnicupy.parallel.__all__
    assert "parallel" not in oc.__all__
