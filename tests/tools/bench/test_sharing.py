"""bench sharing: plans beside other schemes, by the model."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.parallel import plan
from omnicupy.parallel.seen import row_work
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench import sharing
from omnicupy.tools.workloads.workload import NAMED


def test_every_scheme_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "STRONG", (8,))
    monkeypatch.setattr(sharing, "MANY", (16, 72))
    monkeypatch.setattr(sharing, "TOKENS", 1024)
    monkeypatch.setattr(sharing, "ALL_TOKENS", 32768)
    content = bench_run.run(bench_run.Options(("sharing",)), lambda line: None)
    rows = {row["workload"]: row["figures"] for row in content["rows"]}
    assert len(rows) == 10
    for name, found in rows.items():
        schemes = ["contiguous", "zigzag", "heap of chunks", "all-gather", "plan"]
        assert ("ring" in found) == ("72" not in name)
        assert all(0 < found[scheme] <= 1 for scheme in schemes), name
        assert found["plan"] >= 0.98 * max(found["contiguous"], found["zigzag"]), name
        assert found["plan_ms"] > 0
    assert rows["W12, 8 ranks"]["received, MB"] < rows["W12, 8 ranks"]["heap received, MB"] / 2


def test_grown_packs_have_their_length_and_their_kinds() -> None:
    for name in sharing.PACKS:
        mask = sharing.grown(name, 50_000)
        assert mask.shape == (50_000, 50_000)
        assert mask == sharing.grown(name, 50_000)
        kinds = {kind for kind, *_ in mask.segments}
        assert kinds == ({"text", "image", "noise"} if name == "W1" else {"text"})


def test_the_heap_deals_equal_counts_of_chunks_evenly() -> None:
    mask = NAMED["W12"].mask()
    work = row_work(mask)
    owner = sharing.heap_of_chunks(work, 8)
    assert set(np.bincount(owner)) == {4096}
    loads = np.bincount(owner, work)
    assert loads.max() < 1.01 * loads.mean()


def test_pairs_between_ranks_are_all_pairs() -> None:
    mask = oc.random(200, 4, documents=2)
    made, dense = plan(mask, 3), mask.to_dense()
    for rank in range(3):
        found = sharing.pairs_with(mask, made.rows, rank)
        rows = made.positions(rank)
        assert found.tolist() == [dense[np.ix_(rows, made.key_positions(other))].sum() for other in range(3)]


def test_one_rank_is_efficient_and_waits_cost() -> None:
    mask = oc.causal(4096)
    work = row_work(mask)
    alone = plan(mask, 1)
    assert sharing.ring(alone) == pytest.approx(1)
    assert sharing.all_gathered(alone, work) == pytest.approx(1)
    speeds = alone.setting.speeds
    shared = plan(mask, 2, rows="zigzag")
    pairs = work.sum() / 2
    slowest = (
        speeds.launch_s + speeds.near_s + 2048 * 4096 / speeds.near + pairs * 4 * 32 * 128 / speeds.flops
    )
    expected = (speeds.launch_s + 2 * pairs * 4 * 32 * 128 / speeds.flops) / (2 * slowest)
    assert sharing.all_gathered(shared, work) == pytest.approx(expected, rel=1e-3)
