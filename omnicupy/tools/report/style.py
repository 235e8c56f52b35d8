"""How all plots look: systems keep their colour, marker and line, which differ in grey too; figures are cards.

Pictures have an opaque light background and a thin frame, so that they read on light and on dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicupy.masks.picture import figure_class
from omnicupy.tools.bench.records import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK = "#1c1c1c"
GRID = "#d9d9d9"
PAPER = "#ffffff"
FRAME = "#9a9a9a"
DPI = 130
CAPTION_INCHES = 0.27  # from the top, below the title


@dataclass(frozen=True)
class Style:
    """label: in the legend.  colour, marker, line: matplotlib's words."""

    label: str
    colour: str
    marker: str
    line: str


# Dark to light in turn, so that neighbours differ without colour; each has its own marker and line.
STYLES = {
    OURS: Style("omnicupy", "#0b3c6f", "o", "-"),
    f"{OURS}:naive": Style("naive kernel", "#7a7a7a", "x", ":"),
    f"{OURS}:nomask": Style("omnicupy, mask=None", "#4f86c6", "h", "-"),
    f"{OURS}:image": Style("omnicupy, one image", "#4f86c6", "<", "-"),
    f"{OURS}:ones": Style("omnicupy, from_dense of ones", "#4f86c6", ">", "-"),
    f"{OURS}:torch": Style("omnicupy, by torch", "#4f86c6", "h", (0, (9, 1))),  # type: ignore[arg-type]
    f"{OURS}:torch-any-order": Style("omnicupy, by torch, in any order", "#4f86c6", "+", ":"),
    f"{OURS}:contiguous": Style("omnicupy, no pages", "#0b3c6f", "o", "-"),
    f"{OURS}:planned": Style("omnicupy, planned ahead", "#0b3c6f", "o", "-"),
    f"{OURS}:cached": Style("omnicupy, device lengths", "#4f86c6", "h", "-"),
    f"{OURS}:masks": Style("omnicupy, masks of the host", "#5c5c5c", "d", "--"),
    f"{OURS}:e4m3": Style("omnicupy, e4m3", "#7a7a7a", "x", ":"),
    f"{OURS}:page128": Style("pages of 128", "#d1495b", "s", "--"),
    f"{OURS}:page64": Style("pages of 64", "#edae49", "^", "-."),
    f"{OURS}:page32": Style("pages of 32", "#2a9d62", "D", ":"),
    f"{OURS}:page16": Style("pages of 16", "#6d597a", "*", "--"),
    f"{OURS}:page8": Style("pages of 8", "#f08a5d", "p", "-."),
    f"{OURS}:page1": Style("pages of 1", "#7a7a7a", "x", ":"),
    "sdpa-cudnn": Style("cuDNN (SDPA)", "#d1495b", "s", "--"),
    "sdpa-flash": Style("FlashAttention-2 (SDPA)", "#edae49", "^", "-."),
    "sdpa": Style("SDPA, torch's choice", "#8a8f98", "P", "--"),
    "sdpa-efficient": Style("SDPA, dense mask", "#b8a9c9", "P", (0, (1, 1))),  # type: ignore[arg-type]
    "flex": Style("FlexAttention (Triton)", "#2a9d62", "D", (0, (5, 1))),  # type: ignore[arg-type]
    "flex-flash": Style("FlexAttention (FLASH)", "#8fd0a8", "v", (0, (3, 1, 1, 1))),  # type: ignore[arg-type]
    "fa4": Style("FlashAttention-4", "#f08a5d", "p", (0, (7, 2, 1, 2))),  # type: ignore[arg-type]
    "cudnn-flex": Style("cuDNN flex_attention", "#6d597a", "*", (0, (4, 2, 1, 2, 1, 2))),  # type: ignore[arg-type]
    "sdpa-flash-deterministic": Style(
        "FlashAttention-2, same bits",
        "#edae49",
        "<",
        (0, (2, 1)),  # type: ignore[arg-type]
    ),
    "fa4-deterministic": Style("FlashAttention-4, same bits", "#f08a5d", ">", (0, (2, 2, 1, 2))),  # type: ignore[arg-type]
}


# Variants of ours by their words, in the order in which a picture has them.
VARIANTS = (("#5c5c5c", "d", ":"), ("#a8a8a8", "8", "-."), ("#2f2f2f", "X", "--"), ("#c9c9c9", "H", "-"))


def style(system: str, place: int = 0) -> Style:
    """The look of a system; for a variant of ours, whose label is its word, by its place in the picture."""
    colour, marker, line = VARIANTS[place % len(VARIANTS)]
    return STYLES.get(system) or Style(system.removeprefix(f"{OURS}:"), colour, marker, line)


def ordered(systems: Iterable[str]) -> list[str]:
    """Systems in the order of STYLES, others after them."""
    found = list(dict.fromkeys(systems))
    known = list(STYLES)
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def figure(
    title: str, caption: str, size: tuple[float, float], grid: tuple[int, int] = (1, 1)
) -> tuple[Figure, Any]:
    """A figure of `grid` (rows, columns) of axes, as an array of that shape. size: inches.

    Raises ImportError without matplotlib.
    """
    made = figure_class()(
        figsize=size, layout="constrained", dpi=DPI, facecolor=PAPER, edgecolor=FRAME, linewidth=1.0
    )
    made.suptitle(f"{title}\n", color=INK, fontsize=12, fontweight="bold")  # the second line is the caption's
    made.text(0.5, 1 - CAPTION_INCHES / size[1], caption, ha="center", va="top", color="#555555", fontsize=8)
    axes = made.subplots(*grid, squeeze=False)
    for one in axes.flat:
        prepare(one)
    return made, axes


def prepare(axes: Axes) -> None:
    """Ink, grid and spines of one panel."""
    axes.set_facecolor(PAPER)
    axes.grid(True, which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)


def draw(
    axes: Axes, system: str, x: Sequence[float], y: Sequence[float], *, joined: bool = True, place: int = 0
) -> None:
    """A system's points, joined by its line. place: as in `style`."""
    of = style(system, place)
    axes.plot(
        x,
        y,
        color=of.colour,
        marker=of.marker,
        linestyle=of.line if joined else "none",
        label=of.label,
        linewidth=2.2 if system == OURS else 1.4,
        markersize=7 if of.marker in "*x" else 5.5,
        markeredgecolor=INK if of.marker != "x" else of.colour,
        markeredgewidth=0.5 if of.marker != "x" else 1.6,
        zorder=4 if system == OURS else 3,
    )


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and axis labels with their units."""
    axes.set_title(title, color=INK, fontsize=10)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def legend(made: Figure, axes: Iterable[Axes], columns: int = 4) -> None:
    """One legend below all panels, of whatever they hold."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, text in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(text, handle)
    if entries:
        made.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
        )


def logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis, "x" or "y", with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    steps = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def tokens(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis of lengths in tokens, with each length as a tick."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{int(one / 1024)}k" if one >= 1024 else f"{int(one)}" for one in ticks])
    axes.minorticks_off()


def save(made: Figure, path: str | Path) -> None:
    """Write the picture; the suffix names the format."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    made.savefig(
        path,
        facecolor=PAPER,
        edgecolor=FRAME,
        metadata={"Software": None} if str(path).endswith("png") else None,
    )
