"""Layers of captured steps of decoding: a line a workload, and the goals of decoding beside what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omnicupy.tools.bench.decode_steps import CACHED, E4M3, PLANNED, SUITE
from omnicupy.tools.bench.decoding import kv_bytes
from omnicupy.tools.bench.records import Row, table
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import of_newest

OURS = (PLANNED, CACHED)
SHARE, TIMES, US = "copy_share", "as fast as the best other", "a layer, us"
LARGE, SMALL = 256e6, 64e6  # bytes of K and V
LONGEST = 131_072


def layers(library: Library) -> str:
    """A line a workload: microseconds of a layer by system, in brackets the share of the copy."""
    return of_newest(library, (SUITE,), _layers)


def goals(library: Library) -> str:
    """What is asked of decoding, a line a goal and form of ours, and the workloads that stay short of it."""
    return of_newest(library, (SUITE,), lambda found: _goals(found.rows))


def _layers(found: Found) -> str:
    of = {(row["workload"], row["system"]): row for row in found.rows}
    names = list(dict.fromkeys(workload for workload, _ in of))
    systems = plot_style.ordered(system for _, system in of)
    head = ["workload", "layers", "MB of K and V", *(plot_style.style(system).label for system in systems)]
    head += ["an equal copy", *(f"{_form(form)}: share of an equal copy" for form in OURS)]
    head += [f"{_form(form)}: {TIMES}" for form in OURS]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in names:
        right = {system: row["figures"] for (one, system), row in of.items() if one == name and _right(row)}
        known: Row = next(iter(right.values()), {})
        mine = [right.get(form, {}) for form in OURS]
        cells = [str(known.get("layers", "")), f"{_cache_bytes(of, name) / 1e6:.0f}"]
        cells += [_cell(of.get((name, system))) for system in systems]
        cells.append(_number(known.get("an equal copy, us"), 1))
        cells += [_number(one.get("share of an equal copy"), 2) for one in mine]
        cells += [_number(one.get(TIMES), 2) for one in mine]
        lines.append([name, *cells])
    why = Counter((row["system"], row["problem"]) for row in found.rows if row.get("problem"))
    reasons = [
        f"- {plot_style.style(system).label}, {count} workloads: {problem}"
        for (system, problem), count in sorted(why.items())
    ]
    missing = "\n\nNot measured:\n\n" + "\n".join(reasons) if reasons else ""
    return f"Microseconds of a layer, in brackets the share of the copy.\n\n{table(lines)}{missing}"


def _cache_bytes(of: dict[tuple[str, str], Row], name: str) -> int:
    batch, _, kv_heads, _, keys, head_dim = next(row["shape"] for (one, _), row in of.items() if one == name)
    return kv_bytes(batch, kv_heads, keys, head_dim)


def _form(system: str) -> str:
    return plot_style.style(system).label.removeprefix("omnicupy, ")


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.get("problem"):
        return "-"
    share = f" ({row[SHARE]:.2f})" if row.get(SHARE) else ""
    return f"{row['figures'][US]:.1f}{share}" + ("" if _right(row) else " (wrong)")


def _right(row: Row) -> bool:
    return row.get("correct") is True


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Goal:
    """What is asked of some rows. figure: SHARE, TIMES or US, of which less is better.  mean: of the geometric mean
    in place of each.
    """

    label: str
    least: float
    aim: float
    figure: str
    rows: Callable[[Row], bool]
    systems: tuple[str, ...] = OURS
    mean: bool = False

    def value(self, row: Row) -> float | None:
        """A row's figure; None where it has none."""
        found = row.get(SHARE) if self.figure == SHARE else row["figures"].get(self.figure)
        return float(found) if found else None

    def reached(self, value: float) -> bool:
        """Is a figure what is asked at least?"""
        return value <= self.least if self.figure == US else value >= self.least


def _size(row: Row) -> int:
    batch, _, kv_heads, _, keys, head_dim = row["shape"]
    return kv_bytes(batch, kv_heads, keys, head_dim)


def _is_long(row: Row) -> bool:
    batch, heads, kv_heads, _, keys, _ = row["shape"]
    return batch == 1 and keys == LONGEST and (heads, kv_heads) in ((32, 8), (28, 4))


GOALS = (
    Goal(
        "batch 8 and more, 256 MB and more, share of the copy",
        0.88,
        0.96,
        SHARE,
        lambda row: row["shape"][0] >= 8 and _size(row) >= LARGE,
    ),
    Goal("64 to 256 MB, share of the copy", 0.80, 0.90, SHARE, lambda row: SMALL <= _size(row) < LARGE),
    Goal("one sequence of 131,072 keys, 32 on 8 and 28 on 4, share of the copy", 0.85, 0.93, SHARE, _is_long),
    Goal("e4m3, share of the copy by its own bytes", 0.75, 0.85, SHARE, lambda row: True, (E4M3,)),
    Goal(
        "one sequence of 8,192 keys, 32 on 8 of 128, us",
        24.0,
        18.0,
        US,
        lambda row: row["shape"] == [1, 32, 8, 1, 8192, 128],
    ),
    Goal("each workload, as fast as the best other", 0.95, 1.0, TIMES, lambda row: True),
    Goal("geometric mean, as fast as the best other", 1.0, 1.15, TIMES, lambda row: True, mean=True),
)


def _goals(rows: Sequence[Row]) -> str:
    lines = [["goal", "at least", "aim", "form", "workloads", "reach it", "worst", "mean", "short of it"]]
    lines.append(["---", "---:", "---:", "---", *["---:"] * 4, "---"])
    for goal in GOALS:
        for system in goal.systems:
            wanted = [goal.label, f"{goal.least:g}", f"{goal.aim:g}", _form(system)]
            lines.append([*wanted, *_measured(goal, [row for row in rows if row["system"] == system])])
    return table(lines)


def _measured(goal: Goal, rows: Sequence[Row]) -> list[str]:
    """Cells of a line: how many workloads, how many reach the goal, the worst, the geometric mean, and those that are
    short. A wrong result reaches nothing; where no other library does a workload, nothing is compared.
    """
    of = {
        row["workload"]: goal.value(row) if _right(row) else None
        for row in rows
        if goal.rows(row) and _counts(goal, row)
    }
    known = [value for value in of.values() if value]
    if not known:
        return [str(len(of)), "not measured", "", "", ", ".join(of)]
    worst = max(known) if goal.figure == US else min(known)
    mean = math.exp(sum(map(math.log, known)) / len(known))
    if goal.mean:
        return [str(len(known)), "yes" if goal.reached(mean) else "no", f"{worst:.3f}", f"{mean:.3f}", ""]
    short = [
        f"{name} {value:.3f}" if value else f"{name} -"
        for name, value in of.items()
        if not value or not goal.reached(value)
    ]
    return [str(len(of)), str(len(of) - len(short)), f"{worst:.3f}", f"{mean:.3f}", ", ".join(short)]


def _counts(goal: Goal, row: Row) -> bool:
    """Rows without a time count as short of a goal, but for goals beside others where there are none."""
    return goal.figure != TIMES or bool(row.get("figures", {}).get(TIMES)) or not _right(row)
