"""The records of docs/results, by the suites that they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnicupy.bench import plots, records
from omnicupy.bench.fitting import Point, points
from omnicupy.bench.records import Row


@dataclass(frozen=True)
class Found:
    """The rows of one suite in one record. name: of its file.  content: the whole record."""

    name: str
    suite: str
    content: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def source(self) -> str:
        """Where the rows come from, in words and with a link from docs/report.md."""
        return f"[{self.name}](results/{self.name}): {records.caption(self.content)}"


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
        """The rows of the first of these suites that a record has, from the record that was started last."""
        for suite in suites:
            found = [part for part in self.parts() if part.suite == suite]
            if found:
                return max(found, key=lambda part: (str(part.content.get("started")), part.name))
        return None
