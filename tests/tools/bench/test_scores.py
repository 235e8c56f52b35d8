"""bench/scores.py: sinks and soft caps beside the same call without, on a stand-in GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.masks.constructors import causal
from omnicupy.tools.bench import measure, scores
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.workloads.workload import Workload, by_name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options of the calls that are made."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    made: list[dict[str, Any]] = []

    def attention(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        made.append(options)
        return numpy_gpu.attention(q, k, v, mask, **options)

    monkeypatch.setattr(scores, "attention", attention)
    return made


def _run(monkeypatch: pytest.MonkeyPatch, *systems: str) -> list[dict[str, Any]]:
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(70), "")
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    options = bench_run.Options(("scores",), (scores.WORKLOADS[0],), systems, samples=3)
    rows: list[dict[str, Any]] = bench_run.run(options, lambda line: None)["rows"]
    return rows


def test_the_suite_has_dense_calls_of_columns_of_128() -> None:
    assert GPU_SUITES["scores"].systems == scores.SYSTEMS
    made = [by_name(name) for name in GPU_SUITES["scores"].workloads]
    assert [(of.head_dim, of.mask().shape) for of in made] == [(128, (16384, 16384))] * 2


def test_each_change_is_held_to_its_reference_and_timed_over_none(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _run(monkeypatch)
    assert [(row["system"], row["correct"]) for row in rows] == [(name, True) for name in scores.SYSTEMS]
    of = {row["system"]: row for row in rows}
    for name, row in of.items():
        base = of[scores.base_of(name)]
        assert row["figures"][scores.OVER] == pytest.approx(row["ms"] / base["ms"], rel=1e-3)
        assert "spec" not in row  # the cost model is of calls as they are
    assert [sorted(options) for options in calls[:5]] == [[], ["sink_logits"], ["softcap"], [], ["softcap"]]
    assert calls[1]["sink_logits"].shape == (4,)
    assert scores.base_of(scores.CAP_LARGE) == scores.NONE_LARGE != scores.NONE


@pytest.mark.parametrize("left_out", ["sink_logits", "softcap"])
def test_a_change_that_is_left_out_is_wrong(
    left_out: str, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(*arrays: Any, **options: Any) -> Any:
        options.pop(left_out, None)
        return numpy_gpu.attention(*arrays, **options)

    monkeypatch.setattr(scores, "attention", attention)
    monkeypatch.setattr(scores, "SOFTCAP", 5.0)
    rows = _run(monkeypatch, scores.NONE, scores.SINK, scores.CAP)
    assert [row["correct"] for row in rows] == [True, left_out == "softcap", left_out == "sink_logits"]


def test_what_cannot_run_is_said(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    (row, other) = _run(monkeypatch, "omnicupy:cap", scores.CAP)
    assert row["problem"].startswith("ValueError: omnicupy:cap: the suite has omnicupy:none, ")
    assert other["correct"]
    assert "figures" not in other  # nothing to stand over


def test_numbers_times_a_power_of_two() -> None:
    given = np.array([0.1, -3.0, 2.5], np.float16)
    np.testing.assert_array_equal(scores.times(given, 8), given * np.float16(8))
