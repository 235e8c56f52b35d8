"""Calls that several GPUs share: what is asked of two and of four, beside contiguous shards and FlexAttention on
gathered keys.
"""

from __future__ import annotations

from typing import Any

from omnicupy.tools.bench import gathered_flex
from omnicupy.tools.bench.records import Row, table
from omnicupy.tools.bench.sharing import TOKENS
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import NONE, chosen_figures, of_newest

SUITE = "parallel"
CAUSAL = "causal-d128-s32768-h32-k8-b1"
# Of ranks and a workload: the efficiency that is asked for at least, of a forward pass and of both, and the aim of
# either; None for what is not asked. The last two have 8,192 tokens for each rank.
GOALS: dict[tuple[int, str], tuple[float | None, float | None, float | None]] = {
    (2, "W1"): (0.93, 0.92, 0.97),
    (2, "W12"): (0.88, 0.88, 0.96),
    (2, CAUSAL): (0.94, 0.92, 0.96),
    (2, "W10"): (0.87, 0.87, 0.94),
    (2, "W7"): (0.75, 0.75, 0.9),
    (4, "W1"): (None, None, 0.9),
    (4, "W12"): (None, None, None),
    (4, CAUSAL): (None, None, 0.92),
    (4, "W10"): (None, None, None),
    (4, "W7"): (None, None, None),
    (4, f"W1-like, {TOKENS:,} tokens a rank"): (None, None, 0.93),
    (4, f"W12-like, {TOKENS:,} tokens a rank"): (None, None, 0.93),
}
PASSES = ("forward", "forward+backward")
# Of the whole table; how calls of a row go in a row, and as graphs, is in the record.
SHOWN = (
    *("assignment", "one device, ms", "all ranks, ms", "efficiency", "predicted way, ms", "rows first, ms"),
    *("heads in 2, ms", "heads in 4, ms", "exchange first, captured, ms", "exchange alone, ms"),
    *("slowest launch alone, ms", "received, MB", "overlap", "right", "same bits", "captured bits"),
)


def every_way(library: Library) -> str:
    """All assignments and ways of overlap."""
    return of_newest(library, (SUITE,), lambda found: chosen_figures(found, SHOWN))


def goals(library: Library) -> str:
    """A line a workload and pass; an efficiency below what is asked is bold."""
    ours, others = library.newest(SUITE), library.newest(gathered_flex.SUITE)
    if ours is None:
        return NONE
    lines = [["GPUs", "workload", "pass", "asked", "aim", "efficiency", "right, same bits", "contiguous"]]
    lines[0].append("FlexAttention on gathered keys")
    lines.append(["---:", "---", "---", *["---:"] * 6])
    for (ranks, name), (*asked, aim) in GOALS.items():
        for timed, least in zip(PASSES, asked, strict=True):
            mine = _figures(ours, f"{name}, {ranks} ranks, {timed}")
            # The plan's own choice may be this assignment.
            contiguous = _figures(ours, f"{name}, contiguous, {ranks} ranks, {timed}")
            if mine.get("assignment") == "contiguous":
                contiguous = mine
            flex = _figures(others, f"{name}, {ranks} ranks, {timed}")
            lines.append(
                [
                    *(str(ranks), name, timed, _bound(least), _bound(aim), _efficiency(mine, least or 0.0)),
                    "-" if not mine else "yes" if mine.get("right") and mine.get("same bits") else "**no**",
                    *(_efficiency(contiguous), _efficiency(flex)),
                ]
            )
    parts = {part.name: part.source for one in (ours, others) if one for part in _used(one)}
    return f"{'; '.join(parts.values())}\n\n{table(lines)}"


def _used(found: Found) -> list[Any]:
    """The records that lines come from."""
    names = {f"{name}, {ranks} ranks, {timed}" for ranks, name in GOALS for timed in PASSES}
    return [part for part in found.parts if any(row.get("workload") in names for row in part.rows)]


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _figures(found: Found | None, workload: str) -> dict[str, Any]:
    rows: list[Row] = [row for row in found.rows if row.get("workload") == workload] if found else []
    return dict(rows[0].get("figures", {})) if rows else {}


def _efficiency(of: dict[str, Any], least: float = 0.0) -> str:
    value = of.get("efficiency")
    if value is None:
        return f"not measured: {of['problem']}" if of.get("problem") else "-"
    shown = f"{value:.3f}" if of.get("right") else f"{value:.3f} (wrong)"
    return shown if value >= least else f"**{shown}**"
