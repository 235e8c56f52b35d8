"""Tables of sinks and soft caps: each beside the call without on the same inputs, missed goals bold."""

from __future__ import annotations

import made_records

from omnicupy.tools.bench import scores
from omnicupy.tools.bench.records import Row
from omnicupy.tools.report import score_tables, tables
from omnicupy.tools.report.library import Library

NAME = scores.WORKLOADS[0]


def _row(system: str, ms: float, over: float | None = None) -> Row:
    row = {
        "suite": "scores",
        "workload": NAME,
        "system": system,
        "pass": "forward",
        "ms": ms,
        "correct": True,
    }
    return row | ({} if over is None else {"figures": {scores.OVER: over}})


def _lines(*rows: Row) -> list[list[str]]:
    library = Library({"x.json": {**made_records.HEADER, "suites": ["scores"], "rows": list(rows)}})
    lines = score_tables.over_none(library).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def test_each_change_stands_beside_the_call_without() -> None:
    _, _, sink, cap, large = _lines(
        _row(scores.NONE, 2.0, 1.0),
        _row(scores.SINK, 2.02, 1.01),
        _row(scores.CAP, 2.9, 1.45),
        _row(scores.NONE_LARGE, 2.1, 1.0),
        _row(scores.CAP_LARGE, 3.4, 1.619) | {"correct": False},
    )
    assert sink == [NAME, "a sink logit a head", "random normal", "2000.0", "2020.0", "1.010", "1.02", "1"]
    assert cap[1:] == ["soft cap 50", "random normal", "2000.0", "2900.0", "**1.450**", "1.35", "1.2"]
    assert large[2:6] == ["queries times 8", "2100.0", "3400.0 (wrong)", "1.619"]


def test_what_was_not_measured_is_said() -> None:
    _, _, *rest = _lines(_row(scores.CAP, 2.9))
    assert [cells[3:6] for cells in rest] == [["-", "-", "-"], ["-", "2900.0", "-"], ["-", "-", "-"]]
    assert score_tables.over_none(Library({"x.json": {"rows": []}})) == tables.NONE
