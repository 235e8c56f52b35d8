"""The report's tables of the backward pass, from made records."""

from __future__ import annotations

from typing import Any

from omnicupy.tools.report import gradients
from omnicupy.tools.report.library import Library


def _row(workload: str, system: str, tflops: float, **more: Any) -> dict[str, Any]:
    shape = [1, 16, 16, 16384, 16384, 128]
    known = {"workload": workload, "system": system, "shape": shape, "pass": "backward", "correct": True}
    return {**known, "ms": 1000 / tflops, "tflops": tflops, **more}


def _library(suite: str, rows: list[dict[str, Any]]) -> Library:
    record = {"suites": [suite], "device": "H100", "started": "2026", "dtype": "bfloat16", "rows": rows}
    return Library({f"{suite}.json": record})


def test_dense_rates_stand_by_system() -> None:
    rows = [
        _row(f"{kind}-d128-s16384", system, rate)
        for kind, rate in (("full", 500), ("causal", 400))
        for system in ("omnicupy", "omnicupy:any-order", "fa4")
    ]
    rows.append(_row("full-d128-s16384", "omnicupy", 700) | {"pass": "forward"})
    text = gradients.dense(_library("dense", rows))
    assert "| D 128, S 16384 | 500 / 400 | 500 / 400 | 500 / 400 |" in text
    assert "any-order" in text
    assert "700" not in text  # of the forward pass


def test_models_are_held_against_the_others_in_both_forms() -> None:
    rows = [
        _row("W1", "omnicupy", 500),
        _row("W1", "omnicupy:any-order", 600),
        _row("W1", "cudnn-flex", 400),
        _row("W2", "omnicupy", 300),
        _row("W2", "cudnn-flex", 200, correct=False),
    ]
    lines = gradients.models(_library("vlm", rows)).splitlines()
    assert lines[-2].endswith("| 2.000 | 500 | 1.667 | 600 | 400 | 1.25, 1.50 |")
    assert lines[-1].endswith("| 3.333 | 300 |  |  |  |  |")


def test_without_records_there_is_no_table() -> None:
    empty = _library("dense", [])
    assert gradients.dense(empty) == gradients.models(empty) == "No record of this suite yet."
