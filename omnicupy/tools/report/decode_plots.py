"""Pictures of decoding: shares of a copy's speed against the bytes of K and V, a panel for each number of heads."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from omnicupy.tools.bench.decoding import kv_bytes
from omnicupy.tools.bench.records import Row, caption
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.row_plots import Content, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Heads = tuple[int, int, int]  # of queries, of keys, and columns of a head

COLUMNS = 3
LONG = 131_072  # keys of the one sequence whose markers are hollow
APART = 0.012  # of a panel's width, between markers of two systems on one workload
LOWEST = 0.1  # shares begin at a multiple of it, where not at zero
SHARE, MB = "share of the copy", "MB of K and V"


def decoding(rows: Sequence[Row], content: Content) -> Figure:
    """Calls by themselves."""
    return _picture(rows, content, "Decoding: share of a copy's speed")


def pages(rows: Sequence[Row], content: Content) -> Figure:
    """The same of keys in pages, a line for each size; from the lowest share on, since the lines are close."""
    title = "Decoding from pages: share of a copy's speed (axes begin above zero)"
    return _picture(rows, content, title, from_zero=False)


def steps(rows: Sequence[Row], content: Content) -> Figure:
    """The same of layers of captured steps; of e4m3 by the bytes of its own caches."""
    return _picture(rows, content, "Captured steps of decoding: share of a copy's speed")


def _picture(rows: Sequence[Row], content: Content, title: str, *, from_zero: bool = True) -> Figure:
    """A panel for each number of heads and head_dim with caches of several sizes, and one for all others. Markers of
    one workload stand a little apart.
    """
    rows = [row for row in timed(rows) if row.get("copy_share") and row["shape"][3] == 1]
    sizes: dict[Heads, set[float]] = {}
    for row in rows:
        sizes.setdefault(_heads(row), set()).add(_megabytes(row))
    several = [heads for heads, found in sizes.items() if len(found) > 1]
    others = [heads for heads in sizes if heads not in several]
    count = max(1, len(several) + bool(others))
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    made, axes = plot_style.figure(
        title, caption(content), (4.3 * columns, 3.3 * lines + 1.2), (lines, columns)
    )
    panels = list(axes.flat)
    shown = [[row for row in rows if _heads(row) == heads] for heads in several]
    shown += [[row for row in rows if _heads(row) in others]] if others else []
    for panel, heads, of in zip(panels, [*several, None], shown, strict=False):
        if heads is None:
            _beside(panel, of, others)
        else:
            _lines(panel, of, _name(heads))
        _limits(panel, [row["copy_share"] for row in of], from_zero=from_zero)
    for panel in panels[count:]:
        panel.set_visible(False)
    plot_style.legend(made, panels)
    return made


def _lines(panel: Axes, rows: Sequence[Row], name: str) -> None:
    """Shares against megabytes; of workloads with as many bytes the line takes the mean. One long sequence stands apart
    from the line, hollow.
    """
    systems = plot_style.ordered(row["system"] for row in rows)
    sizes = [_megabytes(row) for row in rows]
    span = max(sizes) / min(sizes)
    for place, system in enumerate(systems):
        shift = span ** (APART * (place - (len(systems) - 1) / 2))
        of = [row for row in rows if row["system"] == system]
        by_size: dict[float, list[float]] = {}
        for row in of:
            if not _is_long(row):
                by_size.setdefault(_megabytes(row), []).append(row["copy_share"])
        points = [(shift * size, fmean(shares)) for size, shares in sorted(by_size.items())]
        if points:
            plot_style.draw(panel, system, *zip(*points, strict=True), place=place)
        look = plot_style.style(system, place)
        alone = [(shift * _megabytes(row), row["copy_share"]) for row in of if _is_long(row)]
        if alone:
            panel.plot(
                *zip(*alone, strict=True),
                linestyle="none",
                marker=look.marker,
                markerfacecolor="none",
                markeredgecolor=look.colour,
                markersize=7,
            )
    has_long = any(map(_is_long, rows))
    title = f"{name}\nhollow: one sequence of {LONG:,} keys" if has_long else name
    plot_style.label(panel, title, MB, SHARE)
    panel.set_xscale("log")
    ticks = sorted(set(sizes))
    panel.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
    panel.minorticks_off()


def _beside(panel: Axes, rows: Sequence[Row], heads: Sequence[Heads]) -> None:
    """Heads with caches of one size, side by side."""
    systems = plot_style.ordered(row["system"] for row in rows)
    for place, system in enumerate(systems):
        shift = len(heads) * APART * (place - (len(systems) - 1) / 2)
        points = [
            (heads.index(_heads(row)) + shift, row["copy_share"]) for row in rows if row["system"] == system
        ]
        plot_style.draw(panel, system, *zip(*points, strict=True), joined=False, place=place)
    panel.set_xticks(range(len(heads)), [_name(one).replace(" heads", "\nheads") for one in heads])
    panel.set_xlim(-0.5, len(heads) - 0.5)
    low, high = (f"{pick(map(_megabytes, rows)):.0f}" for pick in (min, max))
    between = low if low == high else f"{low} to {high}"
    plot_style.label(panel, f"caches of one size, {between} {MB}", "", SHARE)


def _limits(panel: Axes, shares: Sequence[float], *, from_zero: bool) -> None:
    """A little above the highest share; from zero, or from a little below the lowest."""
    low = 0.0 if from_zero else max(0.0, LOWEST * int((min(shares, default=0.0) - 0.02) / LOWEST))
    panel.set_ylim(low, max(1.0, *shares) + 0.05 if shares else 1.05)


def _heads(row: Row) -> Heads:
    _, heads, kv_heads, _, _, head_dim = row["shape"]
    return heads, kv_heads, head_dim


def _name(heads: Heads) -> str:
    of_queries, of_keys, head_dim = heads
    return f"{of_queries} on {of_keys} heads of {head_dim}"


def _is_long(row: Row) -> bool:
    return bool(row["shape"][0] == 1 and row["shape"][4] >= LONG)


def _megabytes(row: Row) -> float:
    batch, _, kv_heads, _, keys, head_dim = row["shape"]
    return kv_bytes(batch, kv_heads, keys, head_dim) / 1e6
