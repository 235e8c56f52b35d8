"""The tables of goals and of results: they compare rows of one record, and hide no shortfall."""

from __future__ import annotations

from typing import Any

import made_records

from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.report import behind_targets, targets
from omnicupy.tools.report.library import Library

NAME = "W15: PaliGemma, prefix-LM"


def test_targets_are_held_against_the_records() -> None:
    content = made_records.record("dense", started="2026-01-01")
    of = {(row["workload"], row["system"]): row for row in content["rows"]}
    ours, theirs = of["full-d128-s16384", "omnicupy"], of["full-d128-s16384", "sdpa-cudnn"]
    ours["tflops"], theirs["tflops"] = 800.0, 400.0
    text = targets.hopper(Library({"x.json": content}))
    assert "| | omnicupy | cuDNN (SDPA) | FlashAttention-4 | 8192^3 matrix product |" in text.replace(
        "|  |", "| |"
    )
    assert "| D 128, S 16384, full | 800 | 400: 2.000 (at least 1.08) |" in text
    ours["tflops"] = 431.9  # 1.07975: rounding must not hide that it is short
    text = targets.hopper(Library({"x.json": content}))
    assert "| D 128, S 16384, full | 432 | 400: **1.080** (at least 1.08) |" in text
    assert (
        "| W1: BAGEL pre-training pack |  | not measured (at least 0.95) | not measured (at least 1.40) |"
        in text
    )
    theirs["correct"] = False
    text = targets.hopper(Library({"x.json": content}))
    assert "| D 128, S 16384, full | 432 | not measured (at least 1.08) |" in text


def test_suites_measure_every_target() -> None:
    groups = [*targets.HOPPER.values(), *targets.PORTABLE.values(), targets.README]
    groups += behind_targets.GROUPS.values()
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


def test_short_dense_calls_are_held_against_the_fastest_other_library() -> None:
    rates = {"omnicupy": 500.0, "sdpa-cudnn": 520.0, "cudnn-flex": 480.0}
    rows = [
        {"suite": "behind", "workload": "full-d128-s512", "system": name, "tflops": rate, "correct": True}
        for name, rate in rates.items()
    ]
    content = {**made_records.HEADER, "suites": ["behind"], "rows": rows}
    text = behind_targets.behind(Library({"x.json": content}))
    assert "| D 128, S 512, full | 500 | 520: **0.962** (at least 1.00, aim 1.05) |  |" in text
    assert "| W9: Llama 3.2 Vision, cross-attention |  |  | not measured (at least 1.00, aim 1.05) |" in text


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
    assert "[old.json](results/old.json) (8192^3 matrix product 500)" in text


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
    assert f"| {NAME}, alone | 50 | 120: 2.400 (at least 2.00) | 80: 1.600 (aim 3.00) |" in text
    rows[2]["figures"]["correct"] = False  # the fastest of those that remain would not be the fastest
    text = targets.hopper(Library({"x.json": content}))
    assert f"| {NAME}, alone | 50 | 120: 2.400 (at least 2.00) | not measured (aim 3.00) |" in text
    rows[2]["figures"].update({"correct": True, targets.ALONE: 130.0})
    text = targets.hopper(Library({"x.json": content}))
    assert f"| {NAME}, alone | 50 | 120: 2.400 (at least 2.00, aim 3.00) |  |" in text
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
    assert "| W1 to W13, geometric mean |  | 1.000 (at least 1.00, aim 1.15) |  |" in text


RATES = {"omnicupy": 600.0, "flex": 300.0, "flex-flash": 400.0, "cudnn-flex": 625.0, "sdpa-efficient": 50.0}


def _models(*names: str, **header: Any) -> dict[str, Any]:
    """A record of models' masks with the same rates on each."""
    rows = [
        {"suite": "vlm", "workload": name, "system": system, "tflops": rate, "correct": True, "density": 0.25}
        for name in names
        for system, rate in RATES.items()
    ]
    return {**made_records.HEADER, "suites": ["vlm"], "rows": rows, **header}


def test_the_readme_has_the_fastest_other_library_and_the_span_of_all() -> None:
    content = _models("W1", "W2", "W7")
    of = {(row["workload"], row["system"]): row for row in content["rows"]}
    of["W2", "omnicupy"]["tflops"] = 500.0  # not in the table, but in the span
    of["W7", "cudnn-flex"]["correct"] = False  # the fastest of those that are right counts
    del of["W7", "flex-flash"]["tflops"]  # a library that cannot do a mask has a row without a time
    text = targets.best_others(Library({"x.json": content}))
    assert "| BAGEL pre-training pack | 25.0% | 600 | 625, cuDNN flex_attention | 0.96 |  |  |" in text
    assert "| Gemma 3 4B, local layer | 25.0% | 600 | 300, FlexAttention (Triton) | 2.00 |  |  |" in text
    assert "| Show-o2, mixed modalities |  |  |  | not measured |  |  |" in text
    assert "BAGEL fine-tuning pack" not in text
    assert text.count("\n| ") == 1 + len(targets.README_MODELS)  # the rule below the head, and a line each
    assert "on one Made H100. Over all 3 masks the speed-up" in text
    assert "the speed-up is 0.80 to 2.00" in text
    of["W1", "omnicupy"]["correct"] = False
    text = targets.best_others(Library({"x.json": content}))
    assert "| BAGEL pre-training pack |  |  |  | not measured |  |  |" in text
    assert targets.best_others(Library({"x.json": {**content, "rows": []}})).endswith("No record yet.")


def test_the_readme_has_gradients_where_they_were_measured() -> None:
    content = _models("W1", "W4")
    passes = {"suite": "vlm", "workload": "W1", "pass": "backward", "correct": True}
    rows = [
        {**passes, "system": name, "tflops": rate}
        for name, rate in (("omnicupy", 500.0), ("cudnn-flex", 400.0))
    ]
    backward = {**made_records.HEADER, "suites": ["vlm"], "rows": rows, "device": "Made H200"}
    text = targets.best_others(Library({"x.json": content, "y.json": backward}))
    assert "| BAGEL pre-training pack | 25.0% | 600 | 625, cuDNN flex_attention | 0.96 | 500 | 1.25 |" in text
    assert "| Show-o2, mixed modalities | 25.0% | 600 | 625, cuDNN flex_attention | 0.96 |  |  |" in text
    assert "Measured on one Made H100, gradients on one Made H200." in text


def test_a_record_that_did_not_try_every_library_is_not_taken_for_the_readme() -> None:
    whole = _models("W1", started="2025-01-01")
    newer = _models("W1", started="2026-01-01")
    newer["rows"] = [row for row in newer["rows"] if row["system"] != "cudnn-flex"]
    text = targets.best_others(Library({"whole.json": whole, "newer.json": newer}))
    assert "| BAGEL pre-training pack | 25.0% | 600 | 625, cuDNN flex_attention | 0.96 |  |  |" in text
    assert "not measured |" in targets.best_others(Library({"newer.json": newer})).splitlines()[2]
