"""The report's table of errors: results and gradients against float64, ours beside the best other library's."""

from __future__ import annotations

from omnicupy.tools.bench.accuracy_table import ALLOWED, NAMES, Verdict, summary, verdicts
from omnicupy.tools.bench.records import table
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.tables import NONE


def errors(library: Library) -> str:
    """A line an input and dtype: the largest relative RMS error of each result and the largest ratio to the best of
    the others; then every error that is above what is allowed.
    """
    found = library.newest("accuracy")
    if not found:
        return NONE
    kinds = {row["workload"]: (row["input"], row["dtype"]) for row in found.rows}
    of: dict[tuple[str, str], list[Verdict]] = {}
    for one in verdicts(found.rows):
        of.setdefault(kinds[one.workload], []).append(one)
    lines = [
        ["input", "dtype", "problems", *NAMES, f"above {ALLOWED}"],
        ["---", "---", "---:", *["---:"] * (len(NAMES) + 1)],
    ]
    for (name, dtype), group in of.items():
        cells = [_largest([one for one in group if one.name == result]) for result in NAMES]
        above = sum(not one.holds for one in group)
        problems = len({one.workload for one in group})
        lines.append([name, dtype, str(problems), *cells, f"{above} of {len(group)}"])
    return f"{found.source}\n\n{table(lines)}\n\n" + "\n".join(_blocks(summary(found.rows)))


def _largest(group: list[Verdict]) -> str:
    """The largest error, and the largest ratio where other libraries ran."""
    error = f"{max(one.error for one in group):.1e}"
    ratios = [one.ratio for one in group if one.rival]
    return f"{error} ({max(ratios):.2f})" if ratios else error


def _blocks(text: list[str]) -> list[str]:
    """A sentence and the list below it, with an empty line between."""
    return [text[0], "", *text[1:]] if text[1:] else text
