"""The table of what was aimed at: it compares rows of one record, and hides no shortfall."""

from __future__ import annotations

from typing import Any

import made_records

from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.report import targets
from omnicupy.tools.report.library import Library


def test_targets_are_held_against_the_records() -> None:
    content = made_records.record("dense", started="2026-01-01")
    of = {(row["workload"], row["system"]): row for row in content["rows"]}
    ours, theirs = of["full-d128-s16384", "omnicupy"], of["full-d128-s16384", "sdpa-cudnn"]
    ours["tflops"], theirs["tflops"] = 800.0, 400.0
    text = targets.hopper(Library({"x.json": content}))
    assert "| | omnicupy | cuDNN (SDPA) | FlashAttention-4 | 8192^3 matrix product |" in text.replace(
        "|  |", "| |"
    )
    assert "| D 128, S 16384, full | 800 | 400: 2.000 (least 1.08) |" in text
    ours["tflops"] = 431.9  # 1.07975: rounding must not hide that it is short
    text = targets.hopper(Library({"x.json": content}))
    assert "| D 128, S 16384, full | 432 | 400: **1.080** (least 1.08) |" in text
    assert "| W1 |  | not measured (least 0.95) | not measured (least 1.40) |" in text
    theirs["correct"] = False
    text = targets.hopper(Library({"x.json": content}))
    assert "| D 128, S 16384, full | 432 | not measured (least 1.08) |" in text


def test_suites_measure_every_target() -> None:
    groups = [*targets.HOPPER.values(), *targets.PORTABLE.values()]
    for target in (target for group in groups for target in group):
        measured = {
            (workload, system)
            for name in target.suites
            for part in GPU_SUITES[name].parts
            for workload in part.workloads
            for system in part.systems
        }
        systems = {target.ours, *target.rivals} - {targets.MATRIX_PRODUCT}
        assert {(name, system) for name in target.workloads for system in systems} <= measured, target


def test_the_matrix_product_is_that_of_the_rows_record() -> None:
    older = {
        **made_records.record("dense", only=("full-d128-s16384",), started="2025-01-01"),
        "gemm_tflops": 500.0,
    }
    newer = {**made_records.record("dense", only=("full-d64",), started="2026-01-01"), "gemm_tflops": 1000.0}
    for row in older["rows"]:
        row["tflops"] = 400.0
    text = targets.hopper(Library({"old.json": older, "new.json": newer}))
    assert " | 500: 0.800 (aim 0.90) |" in text
    assert "`old.json` (8192^3 matrix product 500)" in text


def test_targets_of_whole_calls_are_ratios_of_times() -> None:
    names = {"omnicupy": 50.0, "flex": 120.0, "cudnn-flex": 80.0}
    rows: list[dict[str, Any]] = [
        {
            "suite": "latency",
            "workload": "W15",
            "system": name,
            "figures": {targets.ALONE: time, "correct": True},
        }
        for name, time in names.items()
    ]
    content = {**made_records.record("dense", only=("W15",)), "suites": ["latency"], "rows": rows}
    text = targets.hopper(Library({"x.json": content}))
    assert "| W15, alone | 50 | 120: 2.400 (least 2.00) | 80: 1.600 (aim 3.00) |" in text
    rows[2]["figures"]["correct"] = False  # the fastest of those that remain would not be the fastest
    text = targets.hopper(Library({"x.json": content}))
    assert "| W15, alone | 50 | 120: 2.400 (least 2.00) | not measured (aim 3.00) |" in text
    rows[2]["figures"].update({"correct": True, targets.ALONE: 130.0})
    text = targets.hopper(Library({"x.json": content}))
    assert "| W15, alone | 50 | 120: 2.400 (least 2.00, aim 3.00) |  |" in text
    rows[0]["figures"]["correct"] = False
    assert "2.400" not in targets.hopper(Library({"x.json": content}))


def test_the_mean_of_ratios_is_geometric() -> None:
    rows = [
        {"suite": "vlm", "workload": name, "system": system, "tflops": rate, "correct": True}
        for name, factor in zip(targets.MODELS, [4.0, 0.25] * 6 + [1.0], strict=True)
        for system, rate in (("omnicupy", 100.0 * factor), ("cudnn-flex", 100.0))
    ]
    content = {**made_records.record("vlm", only=("W1",)), "suites": ["vlm"], "rows": rows}
    text = targets.hopper(Library({"x.json": content}))
    assert "| W1 to W13, geometric mean |  | 1.000 (least 1.00, aim 1.15) |  |" in text
