"""Files that only look like benchmark records."""

from __future__ import annotations

from pathlib import Path

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
