"""Files that only look like benchmark records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omnicupy.tools.bench import records

NO_RECORDS = [
    "{",
    "[]",
    '{"schema": 2, "rows": []}',
    '{"schema": 1, "rows": 3}',
    '{"schema": 1, "rows": [{"a": 1}]}',
]
NO_RECORDS += ['{"schema": 1, "rows": [1]}', '{"schema": 1, "rows": [], "suites": [1]}']


@pytest.mark.parametrize("content", NO_RECORDS)
def test_files_that_are_no_records_raise(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is not a benchmark record"):
        records.load(path)


def _part(*workloads: str, started: str = "2", **head: Any) -> dict[str, Any]:
    rows = [{"suite": "accuracy", "workload": name, "system": "omnicupy"} for name in workloads]
    return {"schema": 1, "device": "x", "suites": ["accuracy"], "started": started} | head | {"rows": rows}


def test_parts_of_a_run_make_one_record() -> None:
    whole = records.joined([_part("c", "z"), _part("a", "b", started="1")], ["a", "b", "c"])
    assert [row["workload"] for row in whole["rows"]] == ["a", "b", "c", "z"]
    assert {**whole, "rows": []} == _part(started="1")
    assert list(whole)[-1] == "rows"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (_part("b", device="y"), "expected one device, got 'x' and 'y'"),
        (_part("b", missing={"fa4": "no"}), "expected one missing, got None and {'fa4': 'no'}"),
        (_part("a"), "a, omnicupy is in two of them; leave one out"),
    ],
)
def test_runs_of_other_things_are_not_joined(other: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        records.joined([_part("a"), other])
