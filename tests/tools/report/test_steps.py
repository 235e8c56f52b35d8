"""Tables of captured steps of decoding, and the goals beside them: nothing short or wrong is hidden."""

from __future__ import annotations

from typing import Any

import made_records

from omnicupy.tools.bench.decode_steps import CACHED, E4M3, PLANNED, SUITE
from omnicupy.tools.bench.records import Row
from omnicupy.tools.report import steps, tables
from omnicupy.tools.report.library import Library

LARGE, LONG, SMALL = (
    "decode-d128-s4096-h32-k8-b64",
    "decode-d128-s131072-h28-k4-b1",
    "decode-d128-s8192-h28-k4-b8",
)
SHORT = "decode-d128-s8192-h32-k8-b1"


def _row(workload: str, system: str, share: float, us: float, times: float | None = None) -> Row:
    words = dict(zip("dshkb", (int(part[1:]) for part in workload.split("-")[1:]), strict=True))
    shape = [words["b"], words["h"], words["k"], 1, words["s"], words["d"]]
    figures: dict[str, Any] = {"layers": 7, "a layer, us": us, "an equal copy, us": 30.0}
    figures |= {"share of an equal copy": share + 0.01} | ({} if times is None else {steps.TIMES: times})
    known = {"suite": SUITE, "workload": workload, "system": system, "pass": "forward", "shape": shape}
    return {**known, "ms": us / 1e3, "copy_share": share, "correct": True, "figures": figures}


def _library(*rows: Row) -> Library:
    return Library({"x.json": {**made_records.HEADER, "suites": [SUITE], "rows": list(rows)}})


def _lines(text: str, *begins: str) -> list[list[str]]:
    """Cells of the lines that begin with these cells."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [cells for cells in lines if cells[: len(begins)] == list(begins)]


def test_without_a_record_the_tables_say_so() -> None:
    for made in (steps.layers, steps.goals):
        assert made(Library({"x.json": made_records.record("dense", only=("d64",))})) == tables.NONE


def test_a_line_a_workload_has_times_and_shares() -> None:
    wrong = _row(LARGE, "flex", 0.5, 400.0) | {"correct": False}
    none = {**_row(SMALL, "flex", 0.0, 1.0), "problem": "RuntimeError: no graph"}
    none = {key: none[key] for key in ("suite", "workload", "system", "shape", "problem")}
    text = steps.layers(
        _library(
            _row(LARGE, PLANNED, 0.954, 270.04, 1.25),
            _row(LARGE, E4M3, 0.8, 150.0),
            wrong,
            none,
            _row(SMALL, CACHED, 0.811, 39.4, 0.9),
        )
    )
    head = "| workload | layers | MB of K and V | omnicupy, planned ahead | omnicupy, device lengths | omnicupy, e4m3 |"
    assert head in text
    ((*first, copy, planned, cached, times, other),) = _lines(text, LARGE)
    assert first == [LARGE, "7", "1074", "270.0 (0.95)", "", "150.0 (0.80)", "400.0 (0.50) (wrong)"]
    assert [copy, planned, cached, times, other] == ["30.0", "0.96", "", "1.25", ""]
    ((*first, _, planned, cached, times, other),) = _lines(text, SMALL)
    assert first[2:] == ["134", "", "39.4 (0.81)", "", "-"]
    assert [planned, cached, times, other] == ["", "0.82", "", "0.90"]
    assert "Not measured:\n\n- FlexAttention (Triton), 1 workloads: RuntimeError: no graph" in text
    assert "[x.json](results/x.json): Made H100" in text


def test_goals_count_what_reaches_them_and_name_the_rest() -> None:
    other = "decode-d128-s2048-h32-k8-b128"
    text = steps.goals(
        _library(
            _row(LARGE, PLANNED, 0.92, 270.0, 1.5),
            _row(other, PLANNED, 0.8796, 280.0, 0.6),
            _row(SMALL, PLANNED, 0.80, 40.0, 1.0),
            _row(LONG, PLANNED, 0.7, 100.0, 1.0) | {"correct": False},
            _row(SHORT, PLANNED, 0.5, 24.5),
            _row(SHORT, CACHED, 0.5, 23.5, 2.0),
            _row(LARGE, E4M3, 0.76, 150.0),
        )
    )
    ((*_, form, count, reach, worst, _, short),) = _lines(
        text, steps.GOALS[0].label, "0.88", "0.96", "planned ahead"
    )
    assert (form, count, reach, worst, short) == ("planned ahead", "2", "1", "0.880", f"{other} 0.880")
    (cells,) = _lines(text, "64 to 256 MB, share of the copy", "0.8", "0.9", "planned ahead")
    assert cells[4:] == ["1", "1", "0.800", "0.800", ""]
    (cells,) = _lines(text, steps.GOALS[2].label, "0.85", "0.93", "planned ahead")
    assert cells[4:] == ["1", "not measured", "", "", LONG]
    (cells,) = _lines(text, steps.GOALS[3].label)
    assert cells[3:7] == ["e4m3", "1", "1", "0.760"]
    short, right = _lines(text, "one sequence of 8,192 keys, 32 on 8 of 128, us")
    assert short[5:] == ["0", "24.500", "24.500", f"{SHORT} 24.500"]
    assert right[5:] == ["1", "23.500", "23.500", ""]
    each, of_cached = _lines(text, "each workload, as fast as the best other")
    assert each[4:] == ["4", "2", "0.600", f"{0.9 ** (1 / 3):.3f}", f"{other} 0.600, {LONG} -"]
    assert of_cached[4:7] == ["1", "1", "2.000"]
    mean, of_cached = _lines(text, "geometric mean, as fast as the best other")
    assert mean[4:] == ["3", "no", "0.600", f"{0.9 ** (1 / 3):.3f}", ""]
    assert of_cached[5] == "yes"
