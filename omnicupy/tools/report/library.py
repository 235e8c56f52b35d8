"""The records of docs/results, by the suites that they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnicupy.choose.backward_waits import PlayedOnce
from omnicupy.tools.bench import records
from omnicupy.tools.bench.records import OURS, Row
from omnicupy.tools.explain import backward_fitting
from omnicupy.tools.explain.backward_fitting import BackwardPoint
from omnicupy.tools.explain.devices import device_of
from omnicupy.tools.explain.fitting import Point, points
from omnicupy.tools.report import plots


@dataclass(frozen=True)
class FromRecord:
    """Rows of one suite in one record. name: of its file.  content: the whole record."""

    name: str
    suite: str
    content: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def source(self) -> str:
        """Where the rows come from, in words and with a link from docs/report.md."""
        return f"[{self.name}](results/{self.name}): {records.caption(self.content)}"

    @property
    def age(self) -> tuple[str, str]:
        """Grows with the time at which the record was started."""
        return str(self.content.get("started")), self.name


@dataclass(frozen=True)
class Found:
    """The rows of one suite on one device. parts: by record, the newest first, no workload in two of them."""

    parts: tuple[FromRecord, ...]

    @property
    def suite(self) -> str:
        """Its name."""
        return self.parts[0].suite

    @property
    def content(self) -> dict[str, Any]:
        """The newest record."""
        return self.parts[0].content

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those of all records; of several in the order of the workloads' names."""
        rows = [row for part in self.parts for row in part.rows]
        if len(self.parts) > 1:
            rows.sort(key=lambda row: _natural(str(row.get("workload"))))
        return tuple(rows)

    @property
    def source(self) -> str:
        """Where the rows come from, in words and with links from docs/report.md."""
        return "; other workloads: ".join(part.source for part in self.parts)


class Library:
    """All records of a folder. of: their contents by name.  elsewhere: those of folders in it, of other devices, which
    are listed and of which no table is made.
    """

    def __init__(
        self, of: dict[str, dict[str, Any]], elsewhere: dict[str, dict[str, Any]] | None = None
    ) -> None:
        self.of = of
        self.elsewhere = elsewhere or {}
        self._points: dict[str, list[Point]] = {}
        self._backward: dict[str, list[BackwardPoint]] = {}
        self._waits = PlayedOnce()

    def points(self, name: str) -> list[Point]:
        """A record's measurements for the cost model; their masks are built once for all tables."""
        if name not in self._points:
            self._points[name] = points(self.of[name])
        return self._points[name]

    def backward_points(self, name: str) -> list[BackwardPoint]:
        """The same for the cost model of the backward pass."""
        if name not in self._backward:
            content = self.of[name]
            has_rows = any(backward_fitting.usable(row) for row in content["rows"])
            self._backward[name] = (
                backward_fitting.points(content, device_of(content), self._waits) if has_rows else []
            )
        return self._backward[name]

    @classmethod
    def open(cls, folder: Path) -> Library:
        """Read every record of a folder and of the folders in it.

        Raises ValueError for a JSON file that is none, or for no record at all in the folder itself.
        """
        found = {path.name: records.load(path) for path in sorted(folder.glob("*.json"))}
        if not found:
            raise ValueError(
                f"report: expected records (*.json) in {folder}, found none; run `bench` with --out"
            )
        below = sorted(folder.glob("*/*.json"))
        return cls(found, {str(path.relative_to(folder)): records.load(path) for path in below})

    def parts(self) -> Iterator[FromRecord]:
        """Each suite of each record."""
        for name, content in self.of.items():
            for suite in plots.suites_of(content):
                yield FromRecord(name, suite, content, tuple(plots.rows_of(content, suite)))

    def newest(self, *suites: str) -> Found | None:
        """The rows of the first of these suites that has any on the device of the record that was started last; of
        each workload those of the newest record, of the newest with a call as users make it where there is one.
        """
        every = self.every(*suites)
        return _together([part for part in every if part.suite == every[0].suite]) if every else None

    def every(self, *suites: str) -> list[FromRecord]:
        """The rows of these suites in all records of the device of the one that was started last: suite by suite, the
        newest first.
        """
        found = sorted(
            (part for part in self.parts() if part.suite in suites), key=lambda part: part.age, reverse=True
        )
        here = [part for part in found if part.content.get("device") == found[0].content.get("device")]
        return sorted(here, key=lambda part: suites.index(part.suite))


def _together(newest_first: Sequence[FromRecord]) -> Found:
    """Rows of a workload come from one record."""
    newest: dict[object, FromRecord] = {}
    whole: dict[object, FromRecord] = {}
    for part in reversed(newest_first):
        newest |= {row.get("workload"): part for row in part.rows}
        whole |= {row.get("workload"): part for row in part.rows if row.get("system") == OURS}
    of = newest | whole
    parts = [
        replace(part, rows=tuple(row for row in part.rows if of[row.get("workload")] is part))
        for part in newest_first
    ]
    return Found(tuple(part for part in parts if part.rows) or tuple(parts[:1]))


def _natural(name: str) -> list[tuple[int, str]]:
    """W2 comes before W10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
