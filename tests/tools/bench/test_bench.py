"""Benchmarks: statistics, records and tables, masks for rivals, suites on a stand-in GPU. No timed
assertions.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.choose import variants
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.segment_masks import random, segments
from omnicupy.reference import checked_rows
from omnicupy.tools.bench import (
    host,
    measure,
    peer_masks,
    peers,
    preset_build,
    records,
    suites,
    timing,
)
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.records import Record
from omnicupy.tools.workloads.workload import NAMED, Workload


def test_summary_of_samples() -> None:
    found = timing.summarize([float(n) for n in range(11, 0, -1)])
    assert (found.median_ms, found.p10_ms, found.p90_ms, found.samples) == (6.0, 2.0, 10.0, 11)
    assert timing.summarize([3.0]) == timing.Timing(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="samples: expected at least one"):
        timing.summarize([])


def test_systems_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = numpy_gpu.install(monkeypatch)
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = timing.Clock(fake, 64).interleaved(calls, 10)
    assert {name: one.samples for name, one in found.items()} == dict.fromkeys("abc", 10)
    assert "".join(order[:6]) == "aabbcc"
    turns = [order[first : first + 3] for first in range(6, len(order), 3)]
    assert len(turns) == 10
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    ahead = {name: {first for first, then in pairwise(order[6:]) if then == name} for name in "abc"}
    assert all(len(of - {name}) == 2 for name, of in ahead.items())  # none follows the same one always


def test_host_time_counts_every_call() -> None:
    calls: list[int] = []
    assert timing.host_us(lambda: calls.append(1), lambda: None, 60) >= 0
    assert len(calls) == 65


def test_whole_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a rest and five calls a hundred and one wait; again, then two hundred and a wait after each."""
    order: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: order.append("z"))
    monkeypatch.setattr(
        timing.time, "perf_counter_ns", lambda: 1000 * order.count("a") + 3000 * order.count("b")
    )
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = timing.latencies_us(calls, lambda: order.append("|"))
    assert "".join(order) == "".join(
        f"z{5 * name}|{100 * name}|z{5 * name}|" + 200 * f"{name}|"
        for _ in range(timing.TURNS)
        for name in "ab"
    )
    assert found == {"a": (1, 1), "b": (3, 3)}


HEADER = {"device": "H100", "driver": "580", "nvrtc": "13.0", "gemm_tflops": 778.4}
ROWS = [
    {"workload": "W1", "system": "omnicupy", "pass": "forward", "ms": 2.0, "tflops": 300.0, "density": 0.114},
    {"workload": "W1", "system": "flex", "pass": "forward", "ms": 3.0, "tflops": 200.0, "density": 0.114},
    {"workload": "W1", "system": "fa4", "pass": "forward", "problem": "no interleaved masks: really"},
    {"workload": "W4", "system": "omnicupy", "pass": "forward", "ms": 1.0, "tflops": 400.0, "correct": False},
    {"workload": "mask", "system": "omnicupy", "pass": "forward", "figures": {"ms": 0.58216, "tiles": 10064}},
]


def test_records_are_written_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    record = Record(path, HEADER)
    assert records.load(path)["rows"] == []
    for count, row in enumerate(ROWS, 1):
        record.add(**row)
        assert len(records.load(path)["rows"]) == count
    record.set(gemm_tflops=700.0)
    loaded = records.load(path)
    assert loaded["gemm_tflops"] == 700.0
    assert loaded["rows"] == ROWS
    assert list(loaded)[-1] == "rows"
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_tables_of_a_record() -> None:
    text = records.markdown({**HEADER, "rows": ROWS})
    assert text.splitlines()[0] == "H100, driver 580, NVRTC 13.0, 8192^3 matrix product 778 TFLOP/s"
    assert "| workload | density | omnicupy | flex | fa4 | vs flex | vs fa4 |" in text
    assert "| W1 | 11.4% | 300 (2 ms) | 200 (3 ms) | no interleaved masks | 1.50x |  |" in text
    assert "| W4 |  | 400 (1 ms) (wrong) |  |  |  |  |" in text
    assert "| mask | omnicupy | ms | 0.5822 |" in text
    assert "| mask | omnicupy | tiles | 10064 |" in text


def test_config_words_name_specs_and_back() -> None:
    for word in (*suites.LADDER, "naive", "sm90-128x128-s2-w12", "sm90-128x128-s2-w12-solo"):
        spec = variants.parse(word, "sm_90", "bfloat16", 60)
        assert variants.word(spec) == word
        assert spec.head_dim == 64
    assert variants.parse("sm90-128x128-s2-w12", "sm_90", "float16", 64).arch == "sm_90a"
    for wrong in ("sm80", "sm80-64x64-s1", "sm80-64x64-s1-w4-fast"):
        with pytest.raises(ValueError, match="config: expected naive or a name such as"):
            variants.parse(wrong, "sm_90", "bfloat16", 64)


@pytest.mark.parametrize(("kernel", "head_dim"), [("sm80", 64), ("sm80", 128), ("sm80", 512), ("sm90", 128)])
def test_tile_searches_have_something_to_try(kernel: str, head_dim: int) -> None:
    found = list(variants.every("sm_90", "bfloat16", head_dim, kernel))
    assert len(found) > 5
    assert len(set(found)) == len(found)
    assert all(isinstance(spec, AttnSpec) and spec.kernel == kernel for spec in found)


def _from_end_points(bounds: np.ndarray, k_len: int) -> np.ndarray:
    key = np.arange(k_len)[None]
    seen = key < bounds[0][:, None]
    for i in range(1, len(bounds), 2):
        seen = seen | ((key >= bounds[i][:, None]) & (key < bounds[i + 1][:, None]))
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_row_end_points_are_the_mask(seed: int) -> None:
    mask = random(150, seed, text=(1, 20), image=(5, 40))[seed:, :]
    bounds = peer_masks.end_points(peer_masks.row_intervals(mask))
    assert (np.diff(bounds, axis=0) >= 0).all()
    assert len(bounds) % 2 == 1
    assert bounds.dtype == np.int32
    assert np.array_equal(_from_end_points(bounds, 150), mask.to_dense())


def test_row_end_points_of_empty_and_full_rows() -> None:
    assert peer_masks.end_points(peer_masks.row_intervals(full(3, 5))).tolist() == [[5, 5, 5]]
    assert peer_masks.end_points(peer_masks.row_intervals(causal(4, 2))).tolist() == [[0, 0, 1, 2]]
    tree = NAMED["W14"].mask()
    assert np.array_equal(
        _from_end_points(peer_masks.end_points(peer_masks.row_intervals(tree)), 8256), tree.to_dense()
    )


def test_checked_rows_cover_both_ends() -> None:
    assert checked_rows.runs(100) == [(0, 100)]
    runs = checked_rows.runs(10000)
    assert runs[0][0] == 0
    assert runs[-1][1] == 10000
    assert all(stop - first == checked_rows.ROWS for first, stop in runs)


def test_checked_rows_tell_right_from_wrong() -> None:
    mask = segments([("text", 200), ("image", 300)])
    q, k, v = (np.random.default_rng(n).standard_normal((1, 2, 500, 16)).astype(np.float16) for n in range(3))
    judge = checked_rows.CheckedRows((q, k, v), mask)
    out = numpy_gpu.attention(q, k, v, mask)
    assert judge.error(out) <= checked_rows.TOLERANCE
    assert judge.error(numpy_gpu.attention(q, k, v, causal(500))) > checked_rows.TOLERANCE
    out[0, 0, 499, 0] = np.nan
    assert judge.error(out) == np.inf


def test_a_peer_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="not ready after 0 s"), peers.time_limit(0.05):
        time.sleep(5)
    with peers.time_limit(30):
        pass


def test_missing_libraries_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(peers.MissingError, match=r"^missing: "):
        peers.prepare("flex", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="systems: expected some of sdpa-cudnn"):
        peers.prepare("flash9", None)  # type: ignore[arg-type]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(measure, "attention", numpy_gpu.attention)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    monkeypatch.setitem(sys.modules, "torch", None)
    workload = Workload("tiny", 1, (2, 1, 16), lambda: segments([("text", 30), ("image", 50)]), "")
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    return fake


def test_a_suite_fills_the_record(gpu: Any, tmp_path: Path) -> None:
    said: list[str] = []
    ours = ("omnicupy", "omnicupy:sm80-64x64-s2-w4", "omnicupy:sm80-9x9-s1-w4")
    systems = (*ours, "flex")
    options = bench_run.Options(("masks",), ("W1",), systems, samples=3, out=tmp_path / "run.json")
    content = bench_run.run(options, said.append)
    assert content == json.loads((tmp_path / "run.json").read_text())
    assert content["device"] == "Fake H100"
    assert content["gemm_tflops"] == 778.0
    rows = {row["system"]: row for row in content["rows"]}
    assert set(rows) == set(ours)
    assert content["missing"]["flex"]
    assert (content["multiprocessors"], content["l2_bytes"]) == (132, 50 << 20)
    assert content["copy_tbps"] > 0
    for name in ours[:2]:
        assert rows[name]["suite"] == "masks"
        row = rows[name]
        assert row["correct"] is True
        assert row["shape"] == [1, 2, 1, 80, 80, 16]
        assert {"ms", "tflops", "executed_tflops", "host_us", "useful", "spec", "gemm_share"} <= set(row)
    assert rows["omnicupy:sm80-64x64-s2-w4"]["spec"] == "sm80-64x64-s2-w4"
    assert rows["omnicupy:sm80-9x9-s1-w4"]["problem"].startswith("ValueError: config: ")
    assert "tiny" in records.markdown(content)


def test_wrong_results_are_marked(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        return numpy_gpu.attention(*arguments, **options) + np.float32(1).astype(arguments[0].dtype)

    monkeypatch.setattr(measure, "attention", wrong)
    content = bench_run.run(
        bench_run.Options(("masks",), ("W1",), ("omnicupy",), samples=3), lambda line: None
    )
    assert content["rows"][0]["correct"] is False


def test_the_latency_suite_times_whole_calls(gpu: Any) -> None:
    content = bench_run.run(bench_run.Options(("latency",), ("W15",), ("omnicupy",)), lambda line: None)
    (row,) = content["rows"]
    assert {"us_of_100_in_a_row", "us_alone", "host_us", "error"} <= set(row["figures"])


def test_bad_options_raise_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run.environment, "has_gpu", lambda: False)
    cases = (
        (bench_run.Options(("speed",)), "bench: SUITES must be some of shapes, vlm, sparsity"),
        (bench_run.Options(("build",), ("W99",)), "workload: expected one of W1"),
        (bench_run.Options(("build",), (), ("flash9",)), "bench: --system must be one of omnicupy"),
        (
            bench_run.Options(("dense", "cpu")),
            "these suites need a GPU, and there is none here; run build or presets or scaling or sharing or parallel "
            "or padded or cpu",
        ),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            bench_run.run(options, lambda line: None)


def test_cpu_suites_run_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LONG_PACKS", 1)
    record = Record(None, {})
    host.mask_building(record, lambda line: None)
    first = record.rows[0]["figures"]
    assert first["tiles"] == 10064
    blocks = segments([("text", 300), ("noise", 200), ("image", 100)]).blocks(128, 128)
    seen = sum((q1 - q0) * (k1 - k0) for q0, q1, spans in host._runs(blocks) for k0, k1 in spans)
    assert seen >= blocks.mask.pairs if hasattr(blocks.mask, "pairs") else seen > 0


def test_presets_are_timed_with_their_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset_build, "TURNS", 2)
    content = bench_run.run(bench_run.Options(("presets",)), lambda line: None)
    rows = {row["workload"]: row["figures"] for row in content["rows"]}
    assert set(rows) == {f"{name}, 36,864 tokens" for name in preset_build.LAYOUTS}
    assert rows["bagel, 36,864 tokens"]["tiles"] == 10064
    assert all(
        figures["mask_ms"] > 0 and 0 < figures["cut_ms"] <= figures["ms"] * 2 for figures in rows.values()
    )


def test_a_fresh_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match="a fresh process failed: "):
        host.first_call(64, tmp_path)
