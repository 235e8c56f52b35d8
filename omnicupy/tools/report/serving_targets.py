"""What is asked of serving, beside what the records say: the table of README.md's section for those who serve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from omnicupy.tools.bench import growing, padded, pages, scores
from omnicupy.tools.bench.decode_steps import CACHED
from omnicupy.tools.bench.decode_steps import SUITE as STEPS
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.report import steps
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.score_tables import GOALS as OF_SCORES

NOT_MEASURED = "-"


@dataclass(frozen=True)
class Asked:
    """One figure of some rows. bound: at least, or with `below` at most.  suite: whose newest rows are looked at.
    value: of a row; None for a row that is none of these.  mean: the geometric mean of all counts.
    """

    bound: float
    suite: str
    value: Callable[[Row], float | None]
    below: bool = True
    mean: bool = False

    def measured(self, rows: Sequence[Row]) -> list[float]:
        """The figures. Where a row has none, or a wrong result, one that reaches nothing: 0 or infinity."""
        known = [value for row in rows if (value := self.value(row)) is not None]
        if not self.mean or not known:
            return known
        return [math.exp(sum(map(math.log, known)) / len(known)) if min(known) > 0 else 0.0]

    def reached(self, value: float) -> bool:
        """Is a figure what is asked?"""
        return value <= self.bound if self.below else value >= self.bound


def _figure(name: str, system: str = OURS, words: str = "") -> Callable[[Row], float | None]:
    """A figure of the rows of a system, whose workloads hold some words."""

    def value(row: Row) -> float | None:
        if row["system"] != system or words not in row["workload"]:
            return None
        found: float = row.get("figures", {}).get(name, math.inf) if _right(row) else math.inf
        return found

    return value


def _of_goal(goal: steps.Goal, system: str = CACHED) -> Callable[[Row], float | None]:
    """What a goal of captured steps looks at, by one of our systems."""

    def value(row: Row) -> float | None:
        if row["system"] != system or not goal.rows(row):
            return None
        if not _right(row):
            return math.inf if goal.figure == steps.US else 0.0
        return goal.value(row)

    return value


def _right(row: Row) -> bool:
    """Rows of the host's time that hold no result have none that is wrong."""
    return row.get("correct", row.get("figures", {}).get("correct", True)) is True


def _over_one_piece(*sizes: int) -> Callable[[Row], float | None]:
    """Times of pages over one piece."""
    return lambda row: next(
        (found for size in sizes if (found := _figure(pages.OVER, f"{OURS}:page{size}")(row))), None
    )


def _steps() -> Iterator[Asked]:
    for goal in steps.GOALS:
        of = _of_goal(goal, goal.systems[-1])
        yield Asked(goal.least, STEPS, of, below=goal.figure == steps.US, mean=goal.mean)


_LARGE, _SMALL, _LONG, _OF_E4M3, _ALONE, _EACH, _MEAN = _steps()
ROWS: dict[str, tuple[Asked, ...]] = {
    "Share of a copy's speed: 256 MB and more / 64 to 256 MB / one of 131,072 keys / e4m3": (
        *(_LARGE, _SMALL, _LONG, _OF_E4M3),
    ),
    "Speed over the fastest other library's: each / mean": (_EACH, _MEAN),
    "Pages of 32 and more / 16 / 8 / 1, time over one piece": tuple(
        Asked(most, "paged", _over_one_piece(*sizes))
        for most, sizes in ((1.03, (128, 64, 32)), (1.06, (16,)), (1.15, (8,)), (1.25, (1,)))
    ),
    "`generate`'s token over SDPA's: cache that grows / static; captured step over its kernels": (
        Asked(1.0, "generate", _figure("time over SDPA", words="grows")),
        Asked(1.0, "generate", _figure("time over SDPA", words="static")),
        Asked(1.05, "captured", _figure("time over kernels alone")),
    ),
    "Time over none: sinks / soft cap 50 / the same, queries x 8": tuple(
        Asked(most, scores.SUITE, _figure(scores.OVER, system))
        for system, (_, _, most, _) in OF_SCORES.items()
    ),
    "One sequence of 8,192 keys, a layer, us / host: eager step of 32 layers, ms / a padded step's masks over SDPA's": (
        _ALONE,
        Asked(1.0, growing.SUITE, _figure("a step, ms", growing.CACHED)),
        Asked(8.0, padded.SUITE, _figure("time over SDPA's mask", padded.MASKS)),
    ),
}


def serving(library: Library) -> str:
    """A line a row of ROWS: what is asked, the worst figure, and how many workloads reach it; missed ones are bold, and
    rows of which nothing was measured are left out.
    """
    suites = dict.fromkeys(asked.suite for parts in ROWS.values() for asked in parts)
    found = {suite: of for suite in suites if (of := library.newest(suite))}
    lines = [["decoding and serving", "asked", "worst", "reach it"], ["---", "---:", "---:", "---:"]]
    for label, parts in ROWS.items():
        rows = [found[asked.suite].rows if asked.suite in found else () for asked in parts]
        measured = [asked.measured(of) for asked, of in zip(parts, rows, strict=True)]
        if not any(measured):
            continue
        cells = [_cells(*one) for one in zip(parts, measured, strict=True)]
        lines.append([label, *(" / ".join(column) for column in zip(*cells, strict=True))])
    devices = ", ".join(sorted({str(of.content.get("device")) for of in found.values()}))
    where = f"one {devices}" if devices else "no device yet"
    return f"{table(lines)}\n\nMeasured on {where}; shares and speeds at least, times at most, what is missed is bold."


def _cells(asked: Asked, values: Sequence[float]) -> tuple[str, str, str]:
    bound = f"{asked.bound:g}"
    if not values:
        return bound, NOT_MEASURED, NOT_MEASURED
    worst = max(values) if asked.below else min(values)
    if not worst or math.isinf(worst):
        return bound, NOT_MEASURED, f"{sum(map(asked.reached, values))} of {len(values)}"
    shown = f"{worst:.1f}" if worst >= 10 else f"{worst:.2f}"
    reach = sum(map(asked.reached, values))
    return bound, shown if asked.reached(worst) else f"**{shown}**", f"{reach} of {len(values)}"
