"""A cut mask as a picture: tile kinds in the plane of rows and keys, segments along the axes."""

from __future__ import annotations

import os
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, FULL, PARTIAL, BlockMask
from omnicupy.masks.pairs import Segment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure


TILE_COLOURS = {0: "#f4f4f4", FULL: "#1f4e79", CAUSAL: "#6aa7d6", PARTIAL: "#f2a65a"}
TILE_NAMES = {0: "skipped", FULL: "full", CAUSAL: "causal", PARTIAL: "partial"}
HATCHES = {
    CAUSAL: "///",
    PARTIAL: "..",
}  # in the legend, of what `_hatched` draws, so that kinds differ in grey too
SEGMENT_COLOURS = {"text": "#5b8c5a", "image": "#8e5ea2", "noise": "#c0392b"}
SEGMENT_HATCHES = {"image": "////", "noise": "xxxx"}
MOST_CELLS = 1024  # of the picture on each axis; larger masks show the most masked kind of each cell
PIXELS = 1536  # of the picture on each axis, at least: about two on one of the screen


def figure_class(where: str = "plot") -> type[Figure]:
    """matplotlib's Figure, which draws without a display. Raises ImportError without matplotlib. where: what the
    message begins with.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{where}: matplotlib is needed, but cannot be imported; in the checkout: pip install '.[plot]'"
        ) from error
    return Figure


def file_of(path: str | PathLike[str]) -> Path:
    """Where a picture goes: PNG where the path names no format."""
    return Path(path) if Path(path).suffix else Path(f"{path}.png")


def checked_file(path: str | PathLike[str], where: str = "plot") -> Path:
    """`file_of` a path that a picture can be saved at, looked at before anything is drawn; its folders are made. where:
    what messages begin with.

    Raises TypeError for what is no path; ValueError for a folder, for a place that cannot be written, and for a format
    that matplotlib does not write; ImportError without matplotlib.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(
            f"{where}: path must be a path, got {type(path).__name__}; name a file such as mask.png"
        )
    figure_class(where)
    from matplotlib.backend_bases import FigureCanvasBase

    if not str(path) or Path(path).is_dir():
        raise ValueError(f"{where}: expected a file, got the folder {str(path)!r}; name a file in it")
    target = file_of(path)
    there = next(one for one in (target, *target.absolute().parents) if one.exists())
    if there != target and not there.is_dir():
        raise ValueError(
            f"{where}: expected a file in a folder, got {str(target)!r}, but {there} is no folder"
        )
    if not os.access(there, os.W_OK):
        raise ValueError(f"{where}: {there} cannot be written; name a file elsewhere than {str(target)!r}")
    known = FigureCanvasBase.get_supported_filetypes()
    if target.suffix[1:].lower() not in known:
        raise ValueError(f"{where}: expected a suffix of {', '.join(sorted(known))}, got {target.suffix!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def plot(blocks: BlockMask, segments: tuple[Segment, ...], path: str | PathLike[str]) -> None:
    """Save a picture of `blocks` and `segments` (() for none) at `path`, whose suffix names the format.

    The picture ends where the mask does. Raises what `checked_file` raises.
    """
    target = checked_file(path)
    drawn(blocks, segments).savefig(target)


def drawn(blocks: BlockMask, segments: tuple[Segment, ...]) -> Figure:
    """The picture that `plot` saves."""
    figure = figure_class()(figsize=(9.5, 8), layout="constrained", dpi=120)
    from matplotlib.patches import Patch

    axes = figure.add_subplot()
    grid, extent = _grid(blocks)
    axes.imshow(_hatched(grid), extent=extent, interpolation="nearest", aspect="auto")
    axes.set_xlim(0, blocks.k_len)  # tiles may reach further
    axes.set_ylim(blocks.q_len, 0)
    handles = [
        Patch(
            facecolor=TILE_COLOURS[kind], edgecolor="#444444", hatch=HATCHES.get(kind), label=f"{name} tile"
        )
        for kind, name in ((kind, TILE_NAMES[kind]) for kind in (FULL, CAUSAL, PARTIAL, 0))
    ]
    if segments:
        _segment_bars(axes, segments, blocks)
        handles += [
            Patch(
                facecolor=SEGMENT_COLOURS.get(kind, "#777777"),
                edgecolor="white",
                hatch=SEGMENT_HATCHES.get(kind),
                label=f"{kind} segment",
            )
            for kind in dict.fromkeys(kind for kind, *_ in segments)
        ]
    axes.set_xlabel("key (token)")
    axes.set_ylabel("query row (token)")
    axes.set_title(f"{blocks.q_len} rows x {blocks.k_len} keys, tiles of {blocks.br} x {blocks.bc}", pad=22)
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def _hatched(grid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The cells' kinds as pixels (rows, columns, RGB): stripes over CAUSAL, dots over PARTIAL.

    The pattern runs through all cells, so that it is seen however small one is, at the cost of one image.
    """
    up, across = (-(-PIXELS // size) for size in grid.shape)
    kinds = grid.repeat(up, 0).repeat(across, 1)
    y, x = np.ogrid[: kinds.shape[0], : kinds.shape[1]]
    dark = ((kinds == CAUSAL) & ((x + y) % 24 < 6)) | ((kinds == PARTIAL) & (x % 16 < 6) & (y % 16 < 6))
    palette = np.array([_rgb(TILE_COLOURS[kind]) for kind in sorted(TILE_COLOURS)], np.uint8)
    pixels = palette[kinds]
    pixels[dark] = pixels[dark] // 2
    return pixels


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _grid(blocks: BlockMask) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Kind of each cell of the picture (0: skipped) and the extent of the cells in tokens.

    A cell is one tile or, in large masks, several; then it shows PARTIAL over CAUSAL over FULL.
    """
    step = -(-max(blocks.q_blocks, blocks.k_blocks) // MOST_CELLS)
    height, width = -(-blocks.q_blocks // step), -(-blocks.k_blocks // step)
    rows, columns = blocks.rows_of_entries() // step, blocks.entries[:, 2] // blocks.bc
    last = (columns + blocks.tiles - 1) // step
    columns //= step
    full = blocks.kinds == FULL
    edges = np.zeros(
        (height, width + 1), np.int64
    )  # how many more runs of FULL tiles hold a cell than the one before
    np.add.at(edges, (rows[full], columns[full]), 1)
    np.add.at(edges, (rows[full], last[full] + 1), -1)
    grid = np.where(np.cumsum(edges[:, :-1], axis=1) > 0, np.uint8(FULL), np.uint8(0))
    np.maximum.at(grid, (rows[~full], columns[~full]), blocks.kinds[~full].astype(np.uint8))
    right, bottom = grid.shape[1] * step * blocks.bc, grid.shape[0] * step * blocks.br
    return grid, (0.0, float(right), float(bottom), 0.0)


def _segment_bars(axes: Axes, segments: tuple[Segment, ...], blocks: BlockMask) -> None:
    """Bars for the segments, beside the picture too where rows are the same tokens, and document bounds."""
    square = blocks.q_len == blocks.k_len and blocks.diagonal == 0
    along_keys, along_rows = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    for kind in dict.fromkeys(kind for kind, *_ in segments):
        spans = np.array([[first, stop] for name, first, stop, _ in segments if name == kind], np.float64)
        axes.add_collection(_boxes(spans, (1.01, 1.035), kind, along_keys))
        if square:
            axes.add_collection(_boxes(spans, (-0.03, -0.01), kind, along_rows, upright=True))
    bounds = [after[1] for before, after in pairwise(segments) if before[3] != after[3]]
    style: dict[str, Any] = {"colors": "#222222", "linewidth": 0.6, "linestyle": ":"}
    axes.vlines(bounds, 0, 1, transform=along_keys, **style)
    if square:
        axes.hlines(bounds, 0, 1, transform=along_rows, **style)
    axes.tick_params(axis="y", pad=20 if square else 4)


def _boxes(
    spans: NDArray[np.float64],
    across: tuple[float, float],
    kind: str,
    transform: Any,
    *,
    upright: bool = False,
) -> PolyCollection:
    """One box per span (first, stop) between the positions `across`; upright: spans run along the rows."""
    from matplotlib.collections import PolyCollection

    corners = np.empty((len(spans), 4, 2))
    corners[:, :, 0] = spans[:, [0, 1, 1, 0]]
    corners[:, :, 1] = np.array(across)[[0, 0, 1, 1]]
    edge = 0.5 if len(spans) < 100 else 0  # white gaps would hide many short segments
    return PolyCollection(
        list(corners[:, :, ::-1] if upright else corners),
        facecolors=SEGMENT_COLOURS.get(kind, "#777777"),
        hatch=SEGMENT_HATCHES.get(kind) if edge else None,
        edgecolors="white",
        linewidths=edge,
        transform=transform,
        clip_on=False,
    )
