"""A record's suites as pictures: one function a suite, each from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnicupy.masks.picture import checked_file
from omnicupy.tools.bench.records import OURS, Row, caption, suite_of
from omnicupy.tools.report import decode_plots, row_plots, sparsity
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.row_plots import RATE, Content, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(content: Content, path: str | Path) -> list[Path]:
    """Save a picture of each suite of a record that has one; returns the files.

    The suffix of `path` names the format; with several suites each one's name goes in front of it. Raises ValueError
    when no suite of the record can be drawn or nothing can be saved there, ImportError without matplotlib.
    """
    target, found, files = checked_file(path), drawn_of(content), []
    for name in found:
        file = target if len(found) == 1 else target.with_name(f"{target.stem}-{name}{target.suffix}")
        plot_style.save(DRAWN[name](rows_of(content, name), content), file)
        files.append(file)
    return files


def drawn_of(content: Content) -> list[str]:
    """The suites of a record of which there are pictures. Raises ValueError for none."""
    found = [name for name in suites_of(content) if can_draw(name, rows_of(content, name))]
    if not found:
        raise ValueError(
            f"plot: expected a record of some of {', '.join(DRAWN)}, got {suites_of(content) or 'none'}"
        )
    return found


def check(suites: Sequence[str], *, gpu: bool) -> None:
    """Refuse, before anything is measured, suites that no picture is drawn of. Raises ValueError."""
    drawn = [name for name in suites if name in DRAWN and (gpu or name not in FIGURES)]
    if suites and not drawn:
        raise ValueError(
            f"plot: expected some of {', '.join(DRAWN)} on a GPU, got {', '.join(suites)}"
            f"{'' if gpu else ' without one'}; leave --plot out"
        )


def can_draw(suite: str, rows: Sequence[Row]) -> bool:
    """True when some row holds what the suite's picture shows."""
    if suite not in DRAWN:
        return False
    needed = FIGURES.get(suite)
    return any(needed in row.get("figures", {}) for row in rows) if needed else bool(timed(rows))


def suites_of(content: Content) -> list[str]:
    """The suites that a record's rows belong to."""
    return [name for name in dict.fromkeys(suite_of(row, content) for row in content["rows"]) if name]


def rows_of(content: Content, suite: str) -> list[Row]:
    """The rows of a suite."""
    return [row for row in content["rows"] if suite_of(row, content) == suite]


def shapes(rows: Sequence[Row], content: Content) -> Figure:
    """TFLOP/s against length, a panel for each head_dim and for full and causal."""
    rows = [row for row in timed(rows) if row["workload"].partition("-")[0] in ("full", "causal")]
    dims = sorted({row["shape"][5] for row in rows})
    kinds = [kind for kind in ("full", "causal") if any(row["workload"].startswith(kind) for row in rows)]
    made, axes = plot_style.figure(
        "Dense attention by length",
        caption(content),
        (4.2 * len(dims), 3.1 * len(kinds) + 1.3),
        (len(kinds), len(dims)),
    )
    for (i, kind), (j, dim) in ((a, b) for a in enumerate(kinds) for b in enumerate(dims)):
        of_panel = [row for row in rows if row["workload"].startswith(kind) and row["shape"][5] == dim]
        for place, system in enumerate(plot_style.ordered(row["system"] for row in of_panel)):
            points = sorted((row["shape"][3], row["tflops"]) for row in of_panel if row["system"] == system)
            plot_style.draw(axes[i, j], system, *zip(*points, strict=True), place=place)
        plot_style.label(axes[i, j], f"{kind}, head_dim {dim}", "tokens a sequence", RATE)
        plot_style.tokens(axes[i, j], (row["shape"][3] for row in of_panel))
        axes[i, j].set_ylim(0, 1.08 * max((row["tflops"] for row in of_panel), default=1.0))
    plot_style.legend(made, axes.flat)
    return made


def sparse(rows: Sequence[Row], content: Content) -> Figure:
    """Time against density on logarithmic scales, our line through executed pairs, and the times of dense attention."""
    groups = sparsity.groups(rows)
    made, axes = plot_style.figure(
        "Time follows the allowed pairs", caption(content), (4.9 * len(groups), 5.4), (1, len(groups))
    )
    for panel, group in zip(axes.flat, groups, strict=True):
        for system in plot_style.ordered(group.systems()):
            curve = [point for point in group.curve(system) if point[1] > 0]
            plot_style.draw(panel, system, *zip(*curve, strict=True), joined=system != OURS)
        _our_line(panel, group)
        best, title = group.best_dense(), group.name
        if best:
            panel.axhline(best[1], color=plot_style.INK, linewidth=1.0, linestyle=(0, (6, 3)))
            title += f"\ndashed: {plot_style.style(best[0]).label} without a mask"
        plot_style.label(panel, title, "allowed pairs, share of all", "ms a call")
        plot_style.logarithmic(panel, "y")
        plot_style.logarithmic(panel, "x")
        panel.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ["2%", "5%", "10%", "20%", "50%", "100%"])
    plot_style.legend(made, axes.flat)
    return made


def _our_line(panel: Axes, group: sparsity.Group) -> None:
    """The fitted line, at the masks' own executed pairs."""
    try:
        found = sparsity.line(group)
    except ValueError:
        return
    points = sorted(
        (row["density"], found.launch_ms + sparsity.executed_pairs(row) / found.pairs_per_ms)
        for row in group.sparse
        if row["system"] == OURS
    )
    panel.plot(
        *zip(*points, strict=True),
        color=plot_style.STYLES[OURS].colour,
        linewidth=1.6,
        label="fit: launch + executed pairs",
    )


def short(rows: Sequence[Row], content: Content) -> Figure:
    """Microseconds of a whole call against length, alone and of a hundred in a row."""
    rows = [row for row in rows if "us_alone" in row.get("figures", {})]
    kinds = list(dict.fromkeys(row["workload"].partition("-")[0] for row in rows))
    figures = {"us_alone": "one call, then a wait", "us_of_100_in_a_row": "a call of a hundred in a row"}
    made, axes = plot_style.figure(
        "Whole calls from Python", caption(content), (4.6 * len(kinds), 6.6), (len(figures), len(kinds))
    )
    for (i, (name, words)), (j, kind) in (
        (a, b) for a in enumerate(figures.items()) for b in enumerate(kinds)
    ):
        panel, of = axes[i, j], [row for row in rows if row["workload"].startswith(kind)]
        for system in plot_style.ordered(row["system"] for row in of):
            points = sorted(
                (_length(row["workload"]), row["figures"][name]) for row in of if row["system"] == system
            )
            plot_style.draw(panel, system, *zip(*points, strict=True))
        plot_style.label(panel, f"{kind}: {words}", "tokens", "us a call")
        plot_style.tokens(panel, (_length(row["workload"]) for row in of))
        plot_style.logarithmic(panel, "y")
    plot_style.legend(made, axes.flat)
    return made


def _length(workload: str) -> int:
    return next(int(part[1:]) for part in workload.split("-") if part[0] == "s" and part[1:].isdigit())


DRAWN: dict[str, Callable[[Sequence[Row], Content], Figure]] = {
    "shapes": shapes,
    "dense": shapes,
    "vlm": row_plots.workloads,
    "masks": row_plots.workloads,
    "random": row_plots.workloads,
    "sparsity": sparse,
    "tiles": row_plots.tiles,
    "tiles90": row_plots.tiles,
    "choices": row_plots.choices,
    "variants": row_plots.variants,
    "short": short,
    "decode": decode_plots.decoding,
    "decode-steps": decode_plots.steps,
    "paged": decode_plots.pages,
    "build": row_plots.building,
    "memory": row_plots.memory,
}
# Figures without which there is nothing to draw, of suites whose rows are not plain times.
FIGURES = {"short": "us_alone", "build": "new_mask_call_ms", "memory": "kept_bytes"}
