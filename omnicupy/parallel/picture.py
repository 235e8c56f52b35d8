"""A plan as a picture: whose rows see whose keys, and each rank's share."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.mask import Mask
from omnicupy.masks.picture import checked_file, figure_class
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.statistics import PlanStats

CELLS = 512  # of the picture on each axis, at most
COLOURS = "tab20"  # of ranks; they come again beyond 20


def plot(
    masks: Sequence[Mask], rows: Owners, keys: Owners, title: str, stats: PlanStats, path: str | PathLike[str]
) -> None:
    """Save the picture of a plan; the suffix of `path` names its format. title: what it is called."""
    target = checked_file(path)
    figure = figure_class()(figsize=(12, 7), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    q_len, k_len = rows.tokens, keys.tokens
    left.imshow(
        _grid(masks, rows, keys),
        extent=(0, k_len, q_len, 0),
        interpolation="nearest",
        aspect="auto",
        cmap=COLOURS,
        vmin=0,
        vmax=19,
    )
    left.set_xlabel("key (token)")
    left.set_ylabel("query row (token)")
    left.set_title("allowed pairs by the rank that computes them; pale: another rank has the key")
    _bars(right, title, stats)
    figure.savefig(target)


def _grid(masks: Sequence[Mask], rows: Owners, keys: Owners) -> NDArray[Any]:
    """The rank that computes each cell, masked where no pair is allowed; drawn pale where the keys are foreign."""
    from_rows = _places(rows.tokens)
    from_keys = _places(keys.tokens)
    rank = rows.at(from_rows)[:, None] % 20
    foreign = keys.at(from_keys)[None, :] != rows.at(from_rows)[:, None]
    # Of the twenty colours the odd ones are the pale ones of the even ones before them.
    colour = (rank * 2) % 20 + foreign
    return np.ma.masked_where(~_seen(masks, from_rows, from_keys), colour)


def _places(size: int) -> NDArray[np.int64]:
    """The first token of each cell of an axis."""
    cells = min(size, CELLS)
    return np.arange(cells) * size // cells


def _seen(masks: Sequence[Mask], rows: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a cell holds an allowed pair under any mask, (rows, keys)."""
    ends = np.append(rows[1:], masks[0].shape[0])
    seen = np.zeros((len(rows), len(keys)), np.bool_)
    for mask in masks:
        for at, (first, stop) in enumerate(zip(rows.tolist(), ends.tolist(), strict=True)):
            seen[at] |= np.add.reduceat(mask.key_counts_of(first, stop), keys) > 0
    return seen


def _bars(axes: Any, title: str, stats: PlanStats) -> None:
    ranks = np.arange(len(stats.tokens))
    shares = {
        "tokens": stats.tokens,
        "pairs": stats.pairs,
        "received": stats.received,
        "predicted time": stats.rank_s,
    }
    for turn, (name, values) in enumerate(shares.items()):
        most = max(float(values.max()), 1e-30)
        axes.barh(ranks + 0.2 * turn - 0.3, values / most, height=0.2, label=f"{name}, of the most")
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.set_ylabel("rank")
    axes.set_xlim(0, 1.02)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.set_title(
        f"{title}: balance {stats.balance:.3f}, predicted efficiency {stats.efficiency:.3f}", pad=50
    )
