"""The table of calls that two GPUs share: each beside what is asked, missed goals bold."""

from __future__ import annotations

from typing import Any

import made_records

from omnicupy.tools.bench import gathered_flex
from omnicupy.tools.bench.records import Row
from omnicupy.tools.report import parallel_tables, tables
from omnicupy.tools.report.library import Library


def _row(workload: str, efficiency: float | None, suite: str = "parallel", **more: Any) -> Row:
    figures = {"ranks": 2, "efficiency": efficiency, "right": True, "same bits": True} | more
    figures = {name: value for name, value in figures.items() if value is not None}
    return {"suite": suite, "workload": workload, "system": suite, "pass": "forward", "figures": figures}


def _lines(*rows: Row, ranks: int = 2) -> dict[tuple[str, str], list[str]]:
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    library = Library({"x.json": {**made_records.HEADER, "suites": suites, "rows": list(rows)}})
    lines = parallel_tables.goals(library).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {(one[1], one[2]): one[3:] for one in cells[2:] if one[0] == str(ranks)}


def test_each_pass_stands_beside_what_is_asked() -> None:
    found = _lines(
        _row("W1, 2 ranks, forward", 0.95),
        _row("W1, contiguous, 2 ranks, forward", 0.9, assignment="contiguous"),
        _row("W1, 2 ranks, forward+backward", 0.9199),
        _row("W7, 2 ranks, forward", 0.76, assignment="contiguous"),
        _row("W1, 2 ranks, forward", 0.43, gathered_flex.SUITE),
        _row("W7, 2 ranks, forward+backward", None, gathered_flex.SUITE, problem="too slow"),
    )
    assert found["W1", "forward"] == ["0.93", "0.97", "0.950", "yes", "0.900", "0.430"]
    assert found["W1", "forward+backward"] == ["0.92", "0.97", "**0.920**", "yes", "-", "-"]
    assert found["W7", "forward"] == ["0.75", "0.9", "0.760", "yes", "0.760", "-"]
    assert found["W7", "forward+backward"][2:] == ["-", "-", "-", "not measured: too slow"]
    asked = [name for ranks, name in parallel_tables.GOALS if ranks == 2]
    assert set(found) == {(name, timed) for name in asked for timed in parallel_tables.PASSES}


def test_of_four_there_are_aims_alone() -> None:
    found = _lines(_row("W1, 4 ranks, forward", 0.5), _row("W1, 2 ranks, forward", 0.95), ranks=4)
    assert found["W1", "forward"] == ["-", "0.9", "0.500", "yes", "-", "-"]
    assert found["W7", "forward"][:3] == ["-", "-", "-"]
    assert found["W1-like, 8,192 tokens a rank", "forward+backward"][:2] == ["-", "0.93"]


def test_wrong_results_and_other_bits_are_said() -> None:
    found = _lines(
        _row("W12, 2 ranks, forward", 0.99, right=False),
        _row("W10, 2 ranks, forward", 0.99, **{"same bits": False}),
    )
    assert found["W12", "forward"][2:4] == ["0.990 (wrong)", "**no**"]
    assert found["W10", "forward"][2:4] == ["0.990", "**no**"]


def test_nothing_is_said_without_a_record() -> None:
    library = Library({"x.json": {"rows": []}})
    assert parallel_tables.goals(library) == parallel_tables.every_way(library) == tables.NONE


def test_the_whole_table_has_its_columns_in_order() -> None:
    rows = [
        _row("W1, 2 ranks, forward", 0.95, **{"one device, ms": 3.0, "exchange first, in a row, ms": 2.0})
    ]
    library = Library({"x.json": {**made_records.HEADER, "suites": ["parallel"], "rows": rows}})
    head = parallel_tables.every_way(library).splitlines()[2]
    assert [one.strip() for one in head.split("|")[3:-1]] == [
        "one device, ms",
        "efficiency",
        "right",
        "same bits",
    ]
