"""Sinks and soft caps: a line a workload and change of scores, beside the same call without."""

from __future__ import annotations

from omnicupy.tools.bench.records import Row, table
from omnicupy.tools.bench.scores import CAP, CAP_LARGE, LARGE, OVER, SINK, SOFTCAP, SUITE, base_of
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import of_newest

NORMAL, LARGER = "random normal", f"queries times {LARGE}"
# Of a system: what changes, inputs, the time over none that is asked for at most, and the aim.
GOALS = {
    SINK: ("a sink logit a head", NORMAL, 1.02, 1.0),
    CAP: (f"soft cap {SOFTCAP:g}", NORMAL, 1.35, 1.2),
    CAP_LARGE: (f"soft cap {SOFTCAP:g}", LARGER, 1.7, 1.4),
}


def over_none(library: Library) -> str:
    """Times with and without, and their quotient beside the goal; a missed one is bold."""
    return of_newest(library, (SUITE,), _table)


def _table(found: Found) -> str:
    of = {(row["workload"], row["system"]): row for row in found.rows}
    lines = [["workload", "scores", "inputs", "without, us", "with, us", "time over none", "at most", "aim"]]
    lines.append(["---", "---", "---", *["---:"] * 5])
    for name in dict.fromkeys(workload for workload, _ in of):
        for system, (change, inputs, most, aim) in GOALS.items():
            row, without = of.get((name, system)), of.get((name, base_of(system)))
            cells = [_us(without), _us(row), _over(row, most)]
            lines.append([name, change, inputs, *cells, f"{most:g}", f"{aim:g}"])
    return table(lines)


def _us(row: Row | None) -> str:
    if row is None or not row.get("ms"):
        return "-"
    return f"{1e3 * row['ms']:.1f}{'' if row.get('correct') else ' (wrong)'}"


def _over(row: Row | None, most: float) -> str:
    value = (row or {}).get("figures", {}).get(OVER)
    if value is None:
        return "-"
    return f"{value:.3f}" if value <= most else f"**{value:.3f}**"
