"""The goals of the backward pass, from made records."""

from __future__ import annotations

from typing import Any

from omnicupy.tools.bench.suites import GPU_SUITES, MIDDLE_RANDOM, WIDE_RANDOM
from omnicupy.tools.report import gradient_targets
from omnicupy.tools.report.library import Library


def _row(workload: str, system: str, tflops: float, **more: Any) -> dict[str, Any]:
    return {
        "workload": workload,
        "system": system,
        "pass": "backward",
        "correct": True,
        "tflops": tflops,
        **more,
    }


def _library(suite: str, rows: list[dict[str, Any]]) -> Library:
    record = {"suites": [suite], "device": "H100", "started": "2026", "gemm_tflops": 800.0, "rows": rows}
    return Library({f"{suite}.json": record})


def _line(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {label} |"))


def test_the_goal_of_dense_attention_is_held_against_the_fastest_other_library() -> None:
    rates = {"omnicupy:any-order": 560, "sdpa-cudnn": 500, "fa4": 600, "cudnn-flex": 530}
    rows = [_row("full-d128-s16384", system, rate) for system, rate in rates.items()]
    line = _line(gradient_targets.gradients(_library("dense", rows)), "D 128, S 16384, full")
    assert line == (
        "| D 128, S 16384, full | 560 | 500: 1.120 | 600: **0.933** (at least 0.97, aim 1.05) | 530: 1.057 |  |"
    )


def test_the_default_is_held_against_any_order() -> None:
    rows = [_row(name, "omnicupy:any-order", 500) for name in gradient_targets.MODELS]
    rows += [_row(name, "omnicupy", 400 if name == "W13" else 480) for name in gradient_targets.MODELS]
    text = gradient_targets.gradients(_library("vlm", rows))
    assert _line(text, "the worst") == "| the worst | 400 | 500: **0.800** (at least 0.83, aim 0.91) |"
    mean = (0.96 ** (len(gradient_targets.MODELS) - 1) * 0.8) ** (1 / len(gradient_targets.MODELS))
    assert f"{mean:.3f} (at least 0.93, aim 0.97)" in _line(text, "geometric mean")


def test_rows_that_are_wrong_do_not_count() -> None:
    rows = [_row("W1", "omnicupy:any-order", 600, correct=False), _row("W1", "cudnn-flex", 400)]
    text = gradient_targets.gradients(_library("vlm", rows))
    assert "not measured" in _line(text, "W1: BAGEL pre-training pack")


def test_every_workload_of_a_goal_is_one_of_its_suite() -> None:
    for goals in gradient_targets.GROUPS.values():
        for goal in goals:
            for name in goal.suites:
                assert set(goal.workloads) <= _workloads(name.split(" ")[0]), goal


def _workloads(suite: str) -> set[str]:
    """Of the suite, and random masks of other sizes, which `--workload` adds to the suite of random masks."""
    more = {*MIDDLE_RANDOM, *WIDE_RANDOM} if suite == "random" else set()
    return {*GPU_SUITES[suite].workloads, *more}


def test_random_masks_at_head_dim_256_count_by_all_seeds() -> None:
    rows = [_row(name, "omnicupy:any-order", 300) for name in WIDE_RANDOM]
    rows += [_row(name, "cudnn-flex", 150 if name == WIDE_RANDOM[0] else 200) for name in WIDE_RANDOM]
    text = gradient_targets.gradients(_library("random", rows))
    assert (
        _line(text, "random, D 256, S 8192") == "| random, D 256, S 8192 | 300 | 150: 2.000 | not measured |"
    )
    line = _line(text, "random, D 256, S 8192, seeds 0 to 7, geometric mean")
    assert f"{2 ** (1 / 8) * 1.5 ** (7 / 8):.3f} (at least 1.40, aim 2.00)" in line
    text = gradient_targets.gradients(
        _library("random", [row for row in rows if "seed7" not in row["workload"]])
    )
    assert "not measured" in _line(text, "random, D 256, S 8192, seeds 0 to 7, geometric mean")


def test_same_bits_have_a_suite_of_their_own() -> None:
    """Its rows do not take the place of those with other libraries in the tables of the models."""
    rates = {"omnicupy": 500, "flex": 250}
    rows = [_row(name, system, rate) for name in gradient_targets.MODELS for system, rate in rates.items()]
    text = gradient_targets.gradients(_library("same-bits", rows))
    assert "2.000 (at least 1.10, aim 1.30)" in _line(text, "the models, geometric mean")
    assert text.count("| 250: 2.000 |") == len(gradient_targets.MODELS)
