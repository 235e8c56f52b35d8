"""The records of docs/results, by the suites that they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnicupy.bench import plots, records
from omnicupy.bench.fitting import Point, points
from omnicupy.bench.records import Row


@dataclass(frozen=True)
class Found:
    """The rows of one suite. name: of the record's file.  content: the whole record.  others: older records of the
    same device, with the rows of workloads that no newer one has among `rows`.
    """

    name: str
    suite: str
    content: dict[str, Any]
    rows: tuple[Row, ...]
    others: tuple[Found, ...] = ()

    @property
    def records(self) -> tuple[str, ...]:
        """Names of the files that the rows come from."""
        return (self.name, *(one.name for one in self.others))

    @property
    def source(self) -> str:
        """Where the rows come from, in words and with links from docs/report.md."""
        lines = [
            f"[{one.name}](results/{one.name}): {records.caption(one.content)}"
            for one in (self, *self.others)
        ]
        return "; of workloads that it lacks ".join(lines)


class Library:
    """All records of a folder. of: their contents by name."""

    def __init__(self, of: dict[str, dict[str, Any]]) -> None:
        self.of = of
        self._points: dict[str, list[Point]] = {}

    def points(self, name: str) -> list[Point]:
        """A record's measurements for the cost model; their masks are built once for all tables."""
        if name not in self._points:
            self._points[name] = points(self.of[name])
        return self._points[name]

    @classmethod
    def open(cls, folder: Path) -> Library:
        """Read every record of a folder. Raises ValueError for a JSON file that is none, or for no record at all."""
        found = {path.name: records.load(path) for path in sorted(folder.glob("*.json"))}
        if not found:
            raise ValueError(
                f"report: expected records (*.json) in {folder}, found none; run `bench` with --out"
            )
        return cls(found)

    def parts(self) -> Iterator[Found]:
        """Each suite of each record."""
        for name, content in self.of.items():
            for suite in plots.suites_of(content):
                yield Found(name, suite, content, tuple(plots.rows_of(content, suite)))

    def newest(self, *suites: str) -> Found | None:
        """The rows of the first of these suites that a record has: of each workload those of the record that was
        started last, among records of the device of the last.
        """
        for suite in suites:
            found = [part for part in self.parts() if part.suite == suite]
            if found:
                found.sort(key=lambda part: (str(part.content.get("started")), part.name), reverse=True)
                return _together(
                    [one for one in found if one.content.get("device") == found[0].content.get("device")]
                )
        return None


def _together(parts: Sequence[Found]) -> Found:
    """Newer records first; rows of a workload come from the first that has it, in the order of the workloads' names."""
    newest, rows, others = parts[0], list(parts[0].rows), []
    for part in parts[1:]:
        known = {row.get("workload") for row in rows}
        more = tuple(row for row in part.rows if row.get("workload") not in known)
        if more:
            rows += more
            others.append(replace(part, rows=more))
    if others:
        rows.sort(key=lambda row: _natural(str(row.get("workload"))))
    return replace(newest, rows=tuple(rows), others=tuple(others))


def _natural(name: str) -> list[tuple[int, str]]:
    """W2 comes before W10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
