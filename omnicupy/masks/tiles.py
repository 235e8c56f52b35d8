"""Sets of pairs as lists of tiles: for each block of rows the blocks of keys that it sees.

Block-sparse attention chooses such lists, of scattered tiles, which no short intervals hold; the segments of a
sequence are blocks of many lengths. Blocks are named by their bounds, so that any part of a mask has this form,
too; and a set may hide some pairs inside of its tiles (`inner`), so that a causal one has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits
from omnicupy.masks.intervals import BoolArray, IntArray

Whole = NDArray[np.int64]
Range = tuple[int, int]

MOST_CELLS = 1 << 22  # tiles, listed or not, that are looked at together


def even_bounds(length: int, size: int) -> Whole:
    """The bounds of blocks of `size`, from 0 to `length`; the last one may be short."""
    bounds: Whole = np.minimum(np.arange(-(-length // size) + 1) * size, length)
    return bounds


@dataclass(frozen=True, eq=False)
class Tiles:
    """shape: rows and keys.  bounds: those of the blocks of rows and of keys, int64, ascending from 0 to their number.

    offsets: int64 (row blocks + 1,); keys: the key blocks of row block i, int32, ascending, are
    keys[offsets[i] : offsets[i + 1]].  inner: the pairs that are allowed in them, None for all.
    """

    shape: tuple[int, int]
    bounds: tuple[Whole, Whole]
    offsets: Whole
    keys: IntArray
    inner: Any = None  # a Mask of this shape

    def content(self) -> dict[str, Any]:
        """What makes an equal one, the shape apart."""
        return {name: getattr(self, name) for name in ("bounds", "offsets", "keys", "inner")}

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of rows and of keys."""
        rows, keys = self.bounds
        return len(rows) - 1, len(keys) - 1

    def edges(self, axis: int) -> Whole:
        """The bounds of the blocks of rows (0) or keys (1), from 0 to their number."""
        return self.bounds[axis]

    def rows(self) -> Whole:
        """The row block of each listed tile."""
        return np.repeat(np.arange(self.grid[0]), np.diff(self.offsets))

    def same_grid(self, other: Tiles) -> bool:
        """Whether the blocks of both are the same."""
        return self.shape == other.shape and all(map(np.array_equal, self.bounds, other.bounds))

    def blocks_of(self, axis: int, part: Range) -> Range:
        """The first block of rows (0) or keys (1) that holds some of `part`, which is not empty, and the one after."""
        first = int(np.searchsorted(self.bounds[axis], part[0], "right")) - 1
        return first, int(np.searchsorted(self.bounds[axis], part[1], "left"))

    def listed(self, rows: Range, keys: Range) -> BoolArray:
        """Which tiles of these ranges of blocks are listed, (row blocks, key blocks)."""
        out = np.zeros((rows[1] - rows[0], keys[1] - keys[0]), np.bool_)
        key = self.keys[int(self.offsets[rows[0]]) : int(self.offsets[rows[1]])]
        row = np.repeat(np.arange(len(out)), np.diff(self.offsets[rows[0] : rows[1] + 1]))
        inside = (key >= keys[0]) & (key < keys[1])
        out[row[inside], key[inside] - keys[0]] = True
        return out

    def dense(self, rows: Range, keys: Range) -> BoolArray:
        """Boolean array of rows [q0, q1) and keys [k0, k1)."""
        if rows[0] == rows[1] or keys[0] == keys[1]:
            return np.zeros((rows[1] - rows[0], keys[1] - keys[0]), np.bool_)
        (r0, r1), (c0, c1) = self.blocks_of(0, rows), self.blocks_of(1, keys)
        some = self.listed((r0, r1), (c0, c1))
        tall, wide = _lengths(self.bounds[0][r0 : r1 + 1], rows), _lengths(self.bounds[1][c0 : c1 + 1], keys)
        out: BoolArray = np.repeat(np.repeat(some, wide, axis=1), tall, axis=0)
        if self.inner is not None:
            out &= self.inner.dense(*rows, *keys)
        return out

    def key_counts(self, q0: int, q1: int) -> Whole:
        """How many of the rows [q0, q1) see each key, (k_len,)."""
        counts = np.zeros(self.shape[1], np.int64)
        if q0 == q1:
            return counts
        if self.inner is not None and self.inner.intervals is None:
            step = bits.ONE.step(self.shape[1])
            for first in range(q0, q1, step):
                counts += self.dense((first, min(first + step, q1)), (0, self.shape[1])).sum(axis=0)
            return counts
        top, bottom = self.blocks_of(0, (q0, q1))
        step = max(1, MOST_CELLS // self.grid[1])
        for row in range(top, bottom, step):
            some = self.listed((row, min(row + step, bottom)), (0, self.grid[1]))
            edges = np.clip(self.bounds[0][row : row + len(some) + 1], q0, q1)
            counts += self._rows_inside(some, edges)
        return counts

    def _rows_inside(self, some: BoolArray, edges: Whole) -> Whole:
        """How many rows of some blocks of rows, which have these edges, see each key; `some` says what is listed."""
        before = np.zeros((len(edges), some.shape[1]), np.int32)  # rows of listed blocks above each edge
        np.cumsum(some * np.diff(edges).astype(np.int32)[:, None], axis=0, out=before[1:])
        of_key = np.repeat(np.arange(some.shape[1]), np.diff(self.bounds[1]))
        counts = np.zeros(self.shape[1], np.int64)
        if self.inner is None:
            counts += before[-1, of_key]
            return counts

        def below(bound: IntArray) -> Whole:
            inside = np.clip(bound, edges[0], edges[-1])
            block = np.minimum(np.searchsorted(edges, inside, "right"), len(some)) - 1
            found: Whole = before[block, of_key] + np.where(some[block, of_key], inside - edges[block], 0)
            return found

        for start, stop in zip(*self.inner.intervals, strict=True):
            counts += below(stop) - below(start)
        return counts

    def crop(self, rows: Range, keys: Range) -> Tiles:
        """The part of rows [q0, q1) and keys [k0, k1), renumbered from 0."""
        (q0, q1), (k0, k1) = rows, keys
        (top, bottom), (left, right) = self.blocks_of(0, rows), self.blocks_of(1, keys)
        first, last = int(self.offsets[top]), int(self.offsets[bottom])
        key = self.keys[first:last]
        inside = (key >= left) & (key < right)
        before = np.append(0, np.cumsum(inside))
        return Tiles(
            (q1 - q0, k1 - k0),
            (
                np.clip(self.bounds[0][top : bottom + 1], q0, q1) - q0,
                np.clip(self.bounds[1][left : right + 1], k0, k1) - k0,
            ),
            before[self.offsets[top : bottom + 1] - first],
            key[inside] - np.int32(left),
            None if self.inner is None else self.inner[q0:q1, k0:k1],
        )


def _lengths(bounds: Whole, part: Range) -> Whole:
    """The lengths of blocks within a part."""
    inside: Whole = np.clip(bounds, *part)
    return inside[1:] - inside[:-1]
