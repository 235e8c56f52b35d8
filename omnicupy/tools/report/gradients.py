"""The report's tables of the backward pass: dense attention and the masks of models, beside other libraries."""

from __future__ import annotations

from omnicupy.tools.bench.gradients import IN_ANY_ORDER, PASSES
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import dense_table, of_newest
from omnicupy.tools.workloads.workload import by_name

_BACKWARD = PASSES["bwd"].name


def dense(library: Library) -> str:
    """Full and causal attention by head_dim and length, a column a system."""
    return of_newest(library, (f"dense {_BACKWARD}",), dense_table)


def models(library: Library) -> str:
    """The named workloads: our two forms, and the share of the best other library's time that they take."""
    return of_newest(library, (f"vlm {_BACKWARD}",), _models)


def _models(found: Found) -> str:
    rows = [row for row in found.rows if row.get("ms") and row.get("correct") is not False]
    rivals = [name for name in plot_style.ordered(row["system"] for row in rows) if not name.startswith(OURS)]
    of = {(row["workload"], row["system"]): row for row in rows}
    first = ["workload", "mask", "ms", "TFLOP/s", "ms in any order", "TFLOP/s in any order"]
    for rival in rivals:
        label = plot_style.style(rival).label
        first += [f"{label}, TFLOP/s", "speed-up over it, and in any order"]
    lines = [first, ["---", "---", *["---:"] * (len(first) - 2)]]
    for name in dict.fromkeys(row["workload"] for row in rows):
        pair = [of.get((name, system)) for system in (OURS, IN_ANY_ORDER)]
        cells = [text for row in pair for text in (_ms(row), _rate(row))]
        for rival in rivals:
            theirs = of.get((name, rival))
            times = [_times(ours, theirs) for ours in pair]
            cells += [_rate(theirs), ", ".join(one for one in times if one)]
        lines.append([name, by_name(name).note, *cells])
    return table(lines)


def _ms(row: Row | None) -> str:
    return f"{row['ms']:.3f}" if row else ""


def _rate(row: Row | None) -> str:
    return f"{row['tflops']:.0f}" if row else ""


def _times(ours: Row | None, theirs: Row | None) -> str:
    return f"{theirs['ms'] / ours['ms']:.2f}" if ours and theirs else ""
