"""All goals of the backward pass in one table: what counts, what is short, what is not measured."""

from __future__ import annotations

from typing import Any

import pytest

from omnicupy.tools.bench.suites import CALL_SEEDS, NARROW_RANDOM
from omnicupy.tools.report import gradient_goals, tables
from omnicupy.tools.report.library import Library


def _record(suite: str, rows: list[dict[str, Any]], name: str = "backward") -> dict[str, Any]:
    known = {"correct": True, "pass": name}
    return {"suites": [suite], "device": "H200", "started": "2026", "rows": [known | row for row in rows]}


def _library(**records: dict[str, Any]) -> Library:
    return Library({f"{name}.json": content for name, content in records.items()})


def _cells(library: Library, label: str) -> list[str]:
    lines = [line.split("|") for line in gradient_goals.goals(library).splitlines()]
    (found,) = (
        [cell.strip() for cell in line[2:-1]] for line in lines if len(line) > 2 and line[1].strip() == label
    )
    return found


def _dense(head_dim: int, ours: dict[str, float], rivals: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"workload": f"{kind}-d{head_dim}-s16384", "system": system, "tflops": rate}
        for kind, mine in ours.items()
        for system, rate in ({"omnicupy:any-order": mine} | rivals).items()
    ]


def test_the_worst_of_a_line_counts_and_what_is_short_is_named() -> None:
    rows = _dense(
        128, {"full": 600.0, "causal": 570.0}, {"sdpa-cudnn": 500.0, "fa4": 600.0, "cudnn-flex": 400.0}
    )
    library = _library(a=_record("dense", rows))
    label = "D 128, S 16384, full and causal, of the best other library"
    assert _cells(library, label) == ["0.97", "1.05", "0.950", "1 of 2", "causal-d128-s16384 0.950 (0.98)"]
    label = "D 64, S 16384, full and causal, of the best other library"
    assert _cells(library, label) == ["1", "1.06", "not measured", "", ""]
    assert "From [a.json](results/a.json)." in gradient_goals.goals(library)


def test_half_of_a_line_says_what_is_missing() -> None:
    library = _library(a=_record("dense", _dense(64, {"full": 600.0}, {"sdpa-cudnn": 500.0, "fa4": 500.0})))
    label = "D 64, S 16384, full and causal, of the best other library"
    assert _cells(library, label)[2:] == ["1.200", "1 of 1", "not measured: D 64, S 16384, causal"]


def test_wide_heads_are_held_against_what_was_measured() -> None:
    """All that has gradients there; where no record has all libraries, cuDNN's SDPA."""
    old = _dense(256, {"full": 400.0}, {"sdpa-cudnn": 320.0})
    label = "D 256, S 16384, full, of the best other library"
    assert _cells(_library(a=_record("dense", old)), label)[2] == "1.250"
    every = _dense(
        256, {"full": 400.0}, {"sdpa-cudnn": 320.0, "cudnn-flex": 350.0, "flex": 200.0, "fa4": 1.0}
    )
    del every[-1]["tflops"]  # it has none
    assert _cells(_library(a=_record("dense", every)), label)[2] == "1.143"


def test_means_are_of_all_seeds_and_the_faster_library_counts() -> None:
    rates = {"omnicupy:any-order": 500.0, "cudnn-flex": 400.0, "flex": 250.0}
    rows = [
        {"workload": name, "system": system, "tflops": rate}
        for name in NARROW_RANDOM
        for system, rate in rates.items()
    ]
    label = "random, D 64, S 8192, of the best other library"
    assert _cells(_library(a=_record("random", rows)), label)[2:] == ["1.250, mean of 8", "yes", ""]
    assert (
        _cells(_library(a=_record("random", rows[:-1])), label)[2] == "1.250, mean of 8"
    )  # by cuDNN's alone
    assert gradient_goals.goals(_library(a=_record("random", rows[:-3]))) == tables.NONE


def test_whole_calls_are_those_of_torch() -> None:
    times = {"omnicupy": 200.0, "omnicupy:torch": 400.0, "flex": 700.0, "cudnn-flex": 1500.0}
    rows = [
        {"workload": name, "system": system, "figures": {"us_of_100_in_a_row": us, "correct": True}}
        for name in CALL_SEEDS[0]
        for system, us in times.items()
    ]
    label = "both passes by torch, random, S 1024 x 4, of the best other library"
    library = _library(a=_record("seeds", rows, "forward+backward"))
    assert _cells(library, label)[2:] == ["1.750, mean of 8", "no", "0.88"]
    assert "both passes by torch, S 1024 x 4 1.75." in gradient_goals.best(library).replace("\n", " ")


def test_times_are_at_most_what_is_asked() -> None:
    figures = {"new_mask_call_ms": 20.0, "same_mask_call_ms": 12.0}
    build = _record(
        "build", [{"workload": "W1", "system": "omnicupy", "figures": figures}], "forward+backward"
    )
    rows = [
        {"workload": "W8", "system": "omnicupy", "ms": 0.1},
        {"workload": "W8", "system": gradient_goals.OLD_TILE, "ms": 0.134},
    ]
    library = _library(a=build, b=_record("blocks", rows, "forward"))
    label = "a new mask of W1 for both passes"
    assert _cells(library, label) == ["at most 6 ms", "3 ms", "8.000 ms", "0 of 1", "W1 8.000 (0.75)"]
    label = "forward, W8, the time of a tile of 128 x 64 over today's"
    assert _cells(library, label)[2:] == ["1.340", "1 of 1", ""]


@pytest.mark.parametrize("made", [gradient_goals.goals, gradient_goals.best])
def test_without_a_record_the_tables_say_so(made: Any) -> None:
    assert made(_library(a=_record("memory", []))) == tables.NONE
