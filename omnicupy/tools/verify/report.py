"""The table of a verification run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from omnicupy.jit.build import Compiled
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.speed import Timed

HEAD = ("kernel", "cases", "count", "error/budget", "result", "ms", "TFLOPS", "x naive", "x Flex")
MOST_FAILURES = 20  # written out below the table


def lines(outcomes: Iterable[Outcome], timings: Iterable[Timed] = ()) -> list[dict[str, Any]]:
    """One line per kernel and group of cases, then one per kernel and timed problem."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.kernel, outcome.case.group), []).append(outcome)
    found: list[dict[str, Any]] = [
        {
            "kernel": kernel,
            "cases": group,
            "count": len(members),
            "ratio": _finite(max(one.ratio for one in members)),
            "result": _result(members),
        }
        for (kernel, group), members in groups.items()
    ]
    for timed in timings:
        found.append(
            {
                "kernel": timed.kernel,
                "cases": timed.workload,
                "count": 1,
                "ratio": None if timed.error is None else _finite(timed.error),
                "result": "PASS" if timed.passed else "FAIL",
                "ms": timed.ms,
                "tflops": timed.tflops,
                "over_naive": timed.over_naive,
                "over_flex": timed.over_flex,
            }
        )
    return sorted(found, key=lambda line: (line["kernel"] != "naive", line["kernel"], "ms" in line))


def _finite(ratio: float) -> float | str:
    """JSON has no infinity."""
    return ratio if math.isfinite(ratio) else str(ratio)


def _result(members: Sequence[Outcome]) -> str:
    if any(one.problem for one in members):
        return "FAIL"
    skipped = sum(bool(one.skipped) for one in members)
    return f"PASS, {skipped} skipped" if skipped else "PASS"


def table(found: Sequence[dict[str, Any]]) -> str:
    """The lines as aligned text."""
    cells = [HEAD, *(_cells(line) for line in found)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    made = []
    for row in cells:
        padded = [
            cell.ljust(width) if i in (0, 1, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        made.append("  ".join(padded).rstrip())
    return "\n".join(made)


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    ratio = line["ratio"]
    return (
        line["kernel"],
        line["cases"],
        str(line["count"]),
        ratio if isinstance(ratio, str) else _number(ratio, ".3f"),
        line["result"],
        _number(line.get("ms"), ".3f"),
        _number(line.get("tflops"), ".1f"),
        _number(line.get("over_naive"), ".1f"),
        _number(line.get("over_flex"), ".2f"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def failures(
    outcomes: Iterable[Outcome], timings: Iterable[Timed] = (), compiled: Iterable[Compiled[Any]] = ()
) -> list[str]:
    """A line for everything that failed."""
    found = [str(outcome) for outcome in outcomes if outcome.problem]
    found += [f"{timed.kernel}: {timed.workload}: {timed.problem}" for timed in timings if timed.problem]
    found += [f"{one.spec}: {one.problem}" for one in compiled if one.problem]
    return found
