"""Tables of caches in pages: times over those in one piece, shares of the copy, and what is missing or wrong."""

from __future__ import annotations

from typing import Any

import made_records
import pytest

from omnicupy.tools.bench.records import Row
from omnicupy.tools.report import page_tables, tables
from omnicupy.tools.report.library import Library

SUITE, NAME, OTHER = "e4m3", "decode-d128-s4096-h32-k8-b64", "decode-d128-s8192-h28-k4-b16"


def _row(system: str, ms: float | None, workload: str = NAME, **known: Any) -> Row:
    row = {"suite": SUITE, "workload": workload, "system": f"omnicupy:{system}", "pass": "forward"}
    row |= {"problem": "UnsupportedError: no"} if ms is None else {"ms": ms, "correct": True}
    return row | ({} if ms is None else {"figures": {page_tables.OVER: ms / 0.25}}) | known


def _made(*rows: Row) -> list[list[str]]:
    library = Library({"x.json": {**made_records.HEADER, "suites": [SUITE], "rows": list(rows)}})
    lines = page_tables.over_one_piece(SUITE)(library).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def test_times_over_one_piece() -> None:
    head, _, first, second = _made(
        _row("contiguous", 0.25, copy_share=0.9),
        _row("e4m3", 0.15, copy_share=0.812),
        _row("e4m3-page16", 0.2, correct=False),
        _row("page8", 0.255),
        _row("contiguous", 0.25, OTHER),
        _row("e4m3", None, OTHER),
    )
    assert head == ["workload", "in one piece, us", "e4m3", "e4m3, pages of 16", "pages of 8"]
    assert first == [NAME, "250.0 (0.90)", "0.60 (0.81)", "0.80 (wrong)", "1.02"]
    assert second == [OTHER, "250.0", "-", "-", "-"]


def test_nothing_measured_in_one_piece() -> None:
    assert _made(_row("contiguous", None), _row("page8", 0.5))[2] == [NAME, "-", "2.00"]


@pytest.mark.parametrize("suite", ["paged", "prompts"])
def test_no_record(suite: str) -> None:
    rows = [_row("contiguous", 0.25)]
    library = Library({"x.json": {**made_records.HEADER, "suites": [SUITE], "rows": rows}})
    assert page_tables.over_one_piece(suite)(library) == tables.NONE
