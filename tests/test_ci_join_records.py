""".ci/join_records.py: records of shares as one, and what is left to measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from omnicupy.tools.bench import records
from omnicupy.tools.bench.accuracy_cases import cases, share

ROOT = Path(__file__).parent.parent
SYSTEMS = ("omnicupy", "flex")


def _parts(folder: Path, rows_left_out: int = 0) -> list[str]:
    """Files of three shares of which the last lacks its last rows."""
    paths = []
    for part in (1, 2, 3):
        rows: list[dict[str, Any]] = [
            {"workload": case.name, "system": system}
            for case in share(list(cases()), part, 3)
            for system in SYSTEMS
        ]
        if part == 3 and rows_left_out:
            rows = rows[:-rows_left_out]
        path = folder / f"part-{part}.json"
        path.write_text(json.dumps({"schema": 1, "suites": ["accuracy"], "started": str(part), "rows": rows}))
        paths.append(str(path))
    return paths


def _join(folder: Path, parts: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "join_records.py"), str(folder / "all.json"), *parts]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_shares_become_one_record_in_the_order_of_the_cases(tmp_path: Path) -> None:
    done = _join(tmp_path, _parts(tmp_path))
    assert (done.returncode, done.stdout) == (0, "62 of 62 problems on 2 systems\n"), done.stderr
    rows = records.load(tmp_path / "all.json")["rows"]
    expected = [(case.name, system) for case in cases() for system in SYSTEMS]
    assert [(row["workload"], row["system"]) for row in rows] == expected


def test_what_a_cut_has_left_is_named(tmp_path: Path) -> None:
    done = _join(tmp_path, _parts(tmp_path, rows_left_out=3))
    lines = done.stdout.splitlines()
    last = [case.name for case in share(list(cases()), 3, 3)][-2:]
    assert (done.returncode, lines) == (
        1,
        ["60 of 62 problems on 2 systems", *(f"- left: {one}" for one in last)],
    )
    assert (
        "Joins the records"
        in subprocess.run(
            [sys.executable, str(ROOT / ".ci" / "join_records.py")],
            capture_output=True,
            text=True,
            check=False,
        ).stderr
    )
