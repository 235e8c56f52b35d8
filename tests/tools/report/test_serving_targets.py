"""README.md's table for those who serve: what is asked beside the worst figure, and nothing left out that is short."""

from __future__ import annotations

import math
from typing import Any

import made_records
import pytest

from omnicupy.tools.bench import growing, padded, pages, scores
from omnicupy.tools.bench.decode_steps import CACHED, E4M3, PLANNED
from omnicupy.tools.bench.records import Row
from omnicupy.tools.report import serving_targets, steps
from omnicupy.tools.report.library import Library


def _table(suite: str, *rows: Row) -> dict[str, list[str]]:
    content = {**made_records.HEADER, "suites": [suite], "rows": [{"suite": suite, **row} for row in rows]}
    lines = serving_targets.serving(Library({"x.json": content})).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert {len(one) for one in cells} == {4}
    return {label: rest for label, *rest in cells}


def _row(system: str, workload: str = "w", **figures: Any) -> Row:
    return {"system": system, "workload": workload, "pass": "forward", "correct": True, "figures": figures}


def _line(found: dict[str, list[str]], word: str) -> list[list[str]]:
    """The parts of each cell of the line that begins with a word."""
    (cells,) = (cells for label, cells in found.items() if label.startswith(word))
    return [cell.split(" / ") for cell in cells]


def test_rows_of_which_nothing_was_measured_are_left_out() -> None:
    text = serving_targets.serving(Library({"x.json": made_records.record("dense", only=("d64",))}))
    assert text.count("\n|") == 1  # the line below the heads
    assert "Measured on no device yet;" in text
    assert "**" not in text


def test_pages_are_counted_by_their_sizes() -> None:
    over = {128: 1.0, 64: 1.031, 32: 1.03, 16: 1.059, 8: 1.2, 1: 1.25}
    rows = [_row(f"omnicupy:page{size}", **{pages.OVER: value}) for size, value in over.items()]
    wrong = _row("omnicupy:page16", "v", **{pages.OVER: 1.0}) | {"correct": False}
    none: Row = {"system": "omnicupy:page1", "workload": "v", "pass": "forward", "problem": "ValueError: no"}
    asked, worst, reach = _line(_table("paged", *rows, wrong, none), "Pages")
    assert asked == ["1.03", "1.06", "1.15", "1.25"]
    assert worst == ["**1.03**", "-", "**1.20**", "-"]
    assert reach == ["2 of 3", "1 of 2", "0 of 1", "1 of 2"]


def test_captured_steps_are_those_of_device_lengths() -> None:
    assert [goal.systems[-1] for goal in steps.GOALS] == [*[CACHED] * 3, E4M3, *[CACHED] * 3]
    shape, small = [64, 32, 8, 1, 4096, 128], [8, 28, 4, 1, 8192, 128]
    times = {steps.TIMES: 0.9}
    rows = [
        _row(PLANNED, **times) | {"shape": shape, "copy_share": 0.1},
        _row(CACHED, **times) | {"shape": shape, "copy_share": 0.9},
        _row(CACHED, "v", **{steps.TIMES: 1.6}) | {"shape": small, "copy_share": 0.7},
        _row(E4M3, "v") | {"shape": small, "copy_share": 0.76},
    ]
    found = _table("decode-steps", *rows)
    _, worst, reach = _line(found, "Share")
    assert (worst, reach) == (["0.90", "**0.70**", "-", "0.76"], ["1 of 1", "0 of 1", "-", "1 of 1"])
    _, worst, reach = _line(found, "Speed")
    assert (worst, reach) == (["**0.90**", "1.20"], ["1 of 2", "1 of 1"])
    rows[1]["correct"] = False
    _, worst, reach = _line(_table("decode-steps", *rows), "Speed")
    assert (worst, reach) == (["-", "-"], ["1 of 2", "0 of 1"])


@pytest.mark.parametrize(
    ("suite", "word", "place", "rows"),
    [
        ("generate", "`generate`", 1, (_row("omnicupy", "static", **{"time over SDPA": 1.5}),)),
        ("captured", "`generate`", 2, (_row("omnicupy", **{"time over kernels alone": 1.5}),)),
        ("scores", "Time over none", 1, (_row(scores.CAP, **{scores.OVER: 1.5}),)),
        (
            "growing",
            "One sequence",
            1,
            (_row(growing.CACHED, **{"a step, ms": 1.5}), _row("sdpa", **{"a step, ms": 9})),
        ),
        ("padded", "One sequence", 2, (_row(padded.MASKS, **{"time over SDPA's mask": 1.5}), _row("sdpa"))),
    ],
)
def test_each_suite_has_its_place(suite: str, word: str, place: int, rows: tuple[Row, ...]) -> None:
    _, worst, reach = _line(_table(suite, *rows), word)
    short = suite != "padded"
    assert worst[place] == ("**1.50**" if short else "1.50")
    assert reach[place] == ("0 of 1" if short else "1 of 1")
    assert {one for i, one in enumerate(worst) if i != place} <= {"-"}


def test_a_figure_that_is_missing_reaches_nothing() -> None:
    value = serving_targets._figure("a step, ms", growing.CACHED)
    assert value(_row(growing.CACHED)) == math.inf
    assert value(_row("sdpa")) is None
    _, worst, reach = _line(_table("growing", _row(growing.CACHED)), "One sequence")
    assert (worst[1], reach[1]) == ("-", "0 of 1")
