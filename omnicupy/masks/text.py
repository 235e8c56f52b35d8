"""A mask as text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.pairs import PairSet

WIDTH = 64  # characters a row of the drawing has at most; half as many rows, because characters are tall
SHADES = "·░▒▓█"  # none, up to a third, up to two thirds, more, all


def text(mask: PairSet) -> str:
    """The mask as lines of characters: rows are queries, columns keys, the shade is the share of pairs.

    Up to 64 x 32 pairs each one is a character; larger masks are counted exactly in equal cells.
    """
    q_len, k_len = mask.shape
    q_edges = _edges(q_len, WIDTH // 2)
    k_edges = _edges(k_len, WIDTH)
    area = np.diff(q_edges)[:, None] * np.diff(k_edges)
    share = _cell_counts(mask, q_edges, k_edges) / area
    shade = np.ceil(share * 3).astype(np.int64) + (share == 1)
    cell = f"{-(-q_len // (len(q_edges) - 1))} x {-(-k_len // (len(k_edges) - 1))}"
    n = len(mask.intervals[0]) if mask.intervals is not None else 0
    form = (
        "tiles"
        if mask.tiles is not None
        else "bits"
        if n == 0
        else "1 interval per key"
        if n == 1
        else f"{n} intervals per key"
    )
    density = mask.pairs / (q_len * k_len)
    head = f"mask of {q_len} rows x {k_len} keys, {mask.pairs:,} pairs ({density:.1%}), {form}"
    lines = ["".join(SHADES[level] for level in row) for row in shade]
    if area.max() == 1:
        return "\n".join([head, *lines, f"one character is one pair: {SHADES[0]} none, {SHADES[4]} allowed"])
    key = f"{SHADES[0]} none, {SHADES[1:4]} some, {SHADES[4]} all"
    return "\n".join([head, *lines, f"one character is up to {cell} pairs: {key}"])


def _edges(length: int, most: int) -> NDArray[np.int64]:
    """Bounds of at most `most` cells of nearly equal size that cover [0, length)."""
    return np.linspace(0, length, min(length, most) + 1).astype(np.int64)


def _cell_counts(mask: PairSet, q_edges: NDArray[np.int64], k_edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Allowed pairs in each cell, exact; holds one number per key at a time."""
    counts = np.empty((len(q_edges) - 1, len(k_edges) - 1), np.int64)
    for i, (q0, q1) in enumerate(pairwise(q_edges)):
        counts[i] = np.add.reduceat(mask.key_counts_of(int(q0), int(q1)), k_edges[:-1])
    return counts
