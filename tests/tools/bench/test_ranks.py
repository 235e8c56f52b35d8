"""bench parallel, under torchrun on the CPU: what it measures, and that the ranks' results are those of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import omnicupy
import omnicupy.parallel
from omnicupy.tools.bench import gathered_flex, overlap_ways, process_group, ranks
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.records import Record
from omnicupy.tools.workloads.workload import by_name

ROOT = Path(__file__).parents[3]
torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


@pytest.mark.in_turn(8)
def test_ranks_are_measured_beside_one_device(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for _ in range(3):
        done = subprocess.run(
            [*started, "-m", "omnicupy", "bench", "parallel", "--out", str(file)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
        if "connectFullMesh failed" not in done.stderr:  # gloo's first connection, on a busy machine
            break
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert content["ranks"] == 2
    rows = {row["workload"].split(", ", 1)[1]: row["figures"] for row in content["rows"]}
    assert list(rows) == [
        "2 ranks, forward",
        "2 ranks, forward+backward",
        "contiguous, 2 ranks, forward",
        "contiguous, 2 ranks, forward+backward",
    ]
    for found in rows.values():
        assert found["right"]
        assert found["same bits"]
        assert found["largest difference"] < 1e-4
        assert found["received, MB"] > 0
        times = ("one device", "all ranks", "exchange first", "exchange alone", "slowest launch alone")
        for name in times:
            assert found[f"{name}, ms"] > 0
        assert found["all ranks, ms"] == found["exchange first, ms"]  # by default
        assert "overlap" not in found  # a CPU has no stream for it
        share = found["one device, ms"] / found["all ranks, ms"] / 2
        assert found["efficiency"] == pytest.approx(share, abs=1e-3)


def test_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="run torchrun --nproc-per-node 2 -m omnicupy bench parallel --out"):
        bench_run.run(bench_run.Options(("parallel",)), lambda line: None)
    with pytest.raises(ValueError, match="-m omnicupy bench parallel-flex --out"):
        gathered_flex.flex(Record(None, {}), lambda line: None)


def test_one_group_serves_several_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench parallel parallel-flex` is one run of the same processes, which can join a group once."""
    alone = {
        "LOCAL_RANK": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = torch.distributed.is_initialized
    with process_group.process_group("parallel") as device:
        for suite in ("parallel", gathered_flex.SUITE):
            with process_group.process_group(suite) as again:
                assert again == device
            assert started()
    assert not started()


def test_workloads_instead_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both suites measure the masks that are asked for, and no other suite measures them, too."""
    asked: dict[str, list[str]] = {}
    for name, suites in (("parallel", bench_run.CPU_HOST), (gathered_flex.SUITE, bench_run.GPU_HOST)):
        monkeypatch.setitem(
            suites,
            name,
            lambda record, say, workloads=(), name=name: asked.update(
                {name: [one.name for one in workloads]}
            ),
        )
    monkeypatch.setattr(bench_run.process_group, "process_group", lambda suite: nullcontext())
    options = bench_run.Options(bench_run.SHARED, workloads=("W7", by_name("W1")))
    bench_run._run_suites(options, Record(None, {}), print, gpu=True)
    assert asked == {name: ["W7", "W1"] for name in bench_run.SHARED}
    bench_run._run_suites(bench_run.Options(bench_run.SHARED), Record(None, {}), print, gpu=True)
    assert asked == {name: [] for name in bench_run.SHARED}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("count", [1, 2, 4])
def test_blocks_are_dealt_by_their_work(count: int) -> None:
    work = np.repeat(np.random.default_rng(0).integers(0, 100, 16), gathered_flex.BLOCK)
    owned = gathered_flex.dealt(work, count)
    assert np.array_equal(np.sort(np.concatenate(owned)), np.arange(len(work)))
    shares = [int(work[mine].sum()) for mine in owned]
    assert max(shares) - min(shares) <= 100 * gathered_flex.BLOCK
    with pytest.raises(ValueError, match="expected a multiple of 128 tokens a rank, got 2047"):
        gathered_flex.dealt(work[1:], count)


def test_nan_is_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any rank, in any gradient."""
    problem = object.__new__(ranks.Problem)
    problem.mask, problem.rank, problem.ranks = omnicupy.causal(8), 0, 1
    problem.dout, *problem.arrays = (torch.ones(1, 1, 8, 4) for _ in range(4))
    monkeypatch.setattr(ranks.Problem, "slowest", lambda self, value: value)
    good = problem.arrays
    wrong = lambda q, k, v, *_, **__: q * torch.nan + k + v  # noqa: E731
    for call, right in ((lambda q, k, v, *_, **__: q + k + v, True), (wrong, False)):
        monkeypatch.setattr(ranks, "_calls", lambda call=call: (call, lambda q, k, v, *_: q + k + v))
        problem.arrays = good
        assert problem._checked(omnicupy.parallel.plan(problem.mask, 1), {"": False})["right"] is right


def test_ways_of_overlap() -> None:
    """Each workload by every way that it has; groups of heads grow, and add up to all."""
    for name, expected in (
        ("W7", ["predicted way", "rows first", "heads in 2", "heads in 4"]),
        ("W10", None),
    ):
        workload = by_name(name)
        made = omnicupy.parallel.plan(workload.mask(), 2, heads=workload.sizes)
        every = overlap_ways.ways(made, workload, on_gpu=True, every=True)
        assert next(iter(every)) == overlap_ways.BEHIND
        assert expected is None or list(every)[1:] == expected
        assert set(overlap_ways.ways(made, workload, on_gpu=True, every=False)) < set(every)
        for way in every.values():
            overlap_ways.steps(made, 0, workload, way)
    for heads in range(1, 65):
        for count in overlap_ways.SHARES:
            sizes = overlap_ways.in_groups(heads, count)
            assert sizes == () if heads < count else (len(sizes), sum(sizes)) == (count, heads)
            assert list(sizes) == sorted(sizes)
            assert all(sizes)


def test_packs_grow_with_the_ranks() -> None:
    for workload in overlap_ways.grown(3):
        assert workload.mask().shape == (3 * 8192, 3 * 8192)
