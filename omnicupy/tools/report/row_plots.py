"""Pictures with a row for each workload or tile: rates, tables of tiles, building, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from omnicupy.tools.bench.records import OURS, Row, caption
from omnicupy.tools.report import style as plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Content = dict[str, Any]

RATE = "useful TFLOP/s"


def timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.get("ms") and row.get("correct") is not False]


def workloads(rows: Sequence[Row], content: Content) -> Figure:
    """TFLOP/s of each system on each workload: a line a workload, a marker a system."""
    rows = timed(rows)
    names = list(dict.fromkeys(row["workload"] for row in rows))
    made, axes = plot_style.figure("Masks of real models", caption(content), (8.5, 0.27 * len(names) + 2.0))
    _dots(axes[0, 0], names, rows, lambda row: row["tflops"], _with_density(names, rows))
    executed = {row["workload"]: row["executed_tflops"] for row in rows if row["system"] == OURS}
    axes[0, 0].plot(
        list(executed.values()),
        [names.index(name) for name in executed],
        linestyle="none",
        marker="o",
        markersize=6,
        markerfacecolor="none",
        markeredgecolor=plot_style.STYLES[OURS].colour,
        label="omnicupy, over executed pairs",
    )
    axes[0, 0].set_xlim(left=0)
    plot_style.label(axes[0, 0], "", f"{RATE} (hollow: executed ones)", "")
    plot_style.legend(made, axes.flat)
    return made


def tiles(rows: Sequence[Row], content: Content) -> Figure:
    """The best rate of each tile over stages and warps, a table of cells a workload."""
    rows = [row for row in timed(rows) if "plain" not in row["spec"] and "shared" not in row["spec"]]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    made, axes = plot_style.figure(
        "Tiles", caption(content), (5.2 * columns, 3.2 * lines + 0.9), (lines, columns)
    )
    for panel, name in zip(axes.flat, names, strict=False):
        _cells(panel, name, [row for row in rows if row["workload"] == name])
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    return made


def _cells(panel: Axes, name: str, rows: Sequence[Row]) -> None:
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        _, tile, stages, warps = row["spec"].split("-")[:4]
        height, width = tile.split("x")
        key = (f"{height} rows, {warps[1:]} warps", int(width))
        if key not in best or row["tflops"] > best[key]["tflops"]:
            best[key] = row
    heights = sorted(
        {height for height, _ in best}, key=lambda text: [int(n) for n in text.split() if n.isdigit()]
    )
    widths = sorted({width for _, width in best})
    grid = np.array([[best[h, w]["tflops"] if (h, w) in best else np.nan for w in widths] for h in heights])
    panel.imshow(grid, cmap="Blues", aspect="auto", vmin=0.4 * np.nanmax(grid), vmax=1.15 * np.nanmax(grid))
    panel.grid(False)
    top = float(np.nanmax(grid))
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            row = best[heights[i], widths[j]]
            stages = next(part for part in row["spec"].split("-") if part[0] == "s" and part[1:].isdigit())
            weight = "bold" if value == top else "normal"
            colour = "white" if value > 0.8 * top else plot_style.INK
            panel.text(
                j,
                i,
                f"{value:.0f}\n{stages}",
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
                weight=weight,
            )
    panel.set_xticks(range(len(widths)), [str(width) for width in widths])
    panel.set_yticks(range(len(heights)), heights)
    plot_style.label(panel, f"{name}: {RATE}, and the best stages", "keys of a tile", "")


def choices(rows: Sequence[Row], content: Content) -> Figure:
    """The rate of what the table chooses, as a share of the best tile's: a line a workload."""
    rows = timed(rows)
    names = list(dict.fromkeys(row["workload"] for row in rows))
    made, axes = plot_style.figure("The table's choice", caption(content), (8.5, 0.19 * len(names) + 2.0))
    panel = axes[0, 0]
    for y, name in enumerate(names):
        of = [row for row in rows if row["workload"] == name]
        best = max(of, key=lambda row: float(row["tflops"]))
        for row in of:
            mark = "o" if row["system"] == OURS else "|"
            colour = plot_style.STYLES[OURS].colour if row["system"] == OURS else "#8a8f98"
            panel.plot(row["tflops"] / best["tflops"], y, mark, color=colour, markersize=5)
        panel.text(1.01, y, best["spec"], fontsize=6, va="center", color=plot_style.INK)
    panel.axvline(0.95, color=plot_style.INK, linewidth=0.8, linestyle="--")
    panel.set_xlim(0.7, 1.09)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.set_ylim(len(names) - 0.5, -0.5)
    plot_style.label(
        panel,
        "dot: chosen; ticks: other tiles; dashed: 5% below the best, named",
        "TFLOP/s as a share of the best",
        "",
    )
    return made


def variants(rows: Sequence[Row], content: Content) -> Figure:
    """Each variant's rate as a bar, a panel a workload."""
    rows = timed(rows)
    names = list(dict.fromkeys(row["workload"] for row in rows))
    words = list(dict.fromkeys(row["spec"] for row in rows))
    made, axes = plot_style.figure(
        "Stages, shared K/V buffer, swizzle",
        caption(content),
        (3.2 * len(names) + 1.6, 0.3 * len(words) + 1.6),
        (1, len(names)),
    )
    for panel, name in zip(axes.flat, names, strict=True):
        of = {row["spec"]: row["tflops"] for row in rows if row["workload"] == name}
        values = [of.get(word, 0.0) for word in words]
        bars = panel.barh(words[::-1], values[::-1], color="#4f86c6", edgecolor=plot_style.INK, linewidth=0.5)
        panel.bar_label(bars, fmt="%.0f", fontsize=8, padding=2, color=plot_style.INK)
        panel.set_xlim(0, 1.18 * max(values))
        panel.grid(False)
        plot_style.label(panel, name, RATE, "")
        if panel is not axes.flat[0]:
            panel.tick_params(labelleft=False)
    return made


def building(rows: Sequence[Row], content: Content) -> Figure:
    """What a new mask costs before its first result, in milliseconds."""
    found = []
    for row in rows:
        figures = row.get("figures", {})
        if "build_ms" in figures:
            found.append({**row, "value": figures["build_ms"]})
        elif "new_mask_call_ms" in figures:
            extra = figures["mask_ms"] + figures["new_mask_call_ms"] - figures["same_mask_call_ms"]
            found.append({**row, "value": extra})
    names = list(dict.fromkeys(row["workload"] for row in found))
    made, axes = plot_style.figure(
        "A new mask, before its first result", caption(content), (7.5, 0.42 * len(names) + 2.0)
    )
    _dots(axes[0, 0], names, found, lambda row: row["value"], names)
    plot_style.logarithmic(axes[0, 0], "x")
    plot_style.label(
        axes[0, 0], "ours: build, cut and upload; others: block mask or plan, compiled before", "ms", ""
    )
    plot_style.legend(made, axes.flat)
    return made


def memory(rows: Sequence[Row], content: Content) -> Figure:
    """Device memory beside inputs and output: kept by the mask object, and at most during the first call."""
    rows = [row for row in rows if "kept_bytes" in row.get("figures", {})]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    made, axes = plot_style.figure(
        "Device memory beside inputs and output", caption(content), (9.5, 0.42 * len(names) + 2.1), (1, 2)
    )
    for panel, key, words in zip(
        axes.flat,
        ("kept_bytes", "first_bytes"),
        ("kept by the mask object", "most at once, first call"),
        strict=True,
    ):
        _dots(panel, names, rows, partial(_mebibytes, key), names)
        plot_style.logarithmic(panel, "x")
        plot_style.label(panel, words, "MiB (at least 1 KiB is shown)", "")
    axes[0, 1].tick_params(labelleft=False)
    plot_style.legend(made, axes.flat)
    return made


def _mebibytes(key: str, row: Row) -> float:
    return float(max(row["figures"][key], 1024)) / 2**20


def _dots(
    panel: Axes,
    names: Sequence[str],
    rows: Sequence[Row],
    value: Callable[[Row], float],
    labels: Sequence[str],
) -> None:
    """A line a workload from the top down, with a marker a system."""
    for place, system in enumerate(plot_style.ordered(row["system"] for row in rows)):
        of = {row["workload"]: value(row) for row in rows if row["system"] == system}
        plot_style.draw(
            panel, system, list(of.values()), [names.index(name) for name in of], joined=False, place=place
        )
    panel.set_yticks(range(len(names)), labels)
    panel.set_ylim(len(names) - 0.5, -0.5)


def _with_density(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    of = {row["workload"]: row["density"] for row in rows if row.get("density") is not None}
    return [f"{name} ({of[name]:.1%})" if name in of else name for name in names]
