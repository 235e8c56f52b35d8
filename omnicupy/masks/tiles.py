"""Sets of pairs as lists of tiles: for each block of rows the blocks of keys that it sees.

Block-sparse attention chooses such lists, of scattered tiles, which no short intervals hold. A grid may begin
before its mask does (`origin`), so that any part of a mask has this form, too; and a set may hide some pairs
inside of its tiles (`inner`), so that a causal one has it.
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


@dataclass(frozen=True, eq=False)
class Tiles:
    """shape: rows and keys.  size: rows and keys of a tile.  origin: the place of row 0 and of key 0 in theirs.

    offsets: int64 (row blocks + 1,); keys: the key blocks of row block i, int32, ascending, are
    keys[offsets[i] : offsets[i + 1]].  inner: the pairs that are allowed in them, None for all.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    origin: tuple[int, int]
    offsets: Whole
    keys: IntArray
    inner: Any = None  # a Mask of this shape

    def content(self) -> dict[str, Any]:
        """What makes an equal one, the shape apart."""
        return {name: getattr(self, name) for name in ("size", "origin", "offsets", "keys", "inner")}

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of rows and of keys, those at the edges maybe short."""
        rows, keys = (
            -(-(first + n) // size) for first, n, size in zip(self.origin, self.shape, self.size, strict=True)
        )
        return rows, keys

    def edges(self, axis: int) -> Whole:
        """The bounds of the blocks of rows (0) or keys (1), from 0 to their number."""
        steps = np.arange(self.grid[axis] + 1) * self.size[axis] - self.origin[axis]
        found: Whole = np.clip(steps, 0, self.shape[axis])
        return found

    def rows(self) -> Whole:
        """The row block of each listed tile."""
        return np.repeat(np.arange(self.grid[0]), np.diff(self.offsets))

    def same_grid(self, other: Tiles) -> bool:
        """Whether the blocks of both are the same."""
        return (self.shape, self.size, self.origin) == (other.shape, other.size, other.origin)

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
        row, key = (
            (np.arange(*part) + first) // size
            for part, first, size in zip((rows, keys), self.origin, self.size, strict=True)
        )
        some = self.listed((int(row[0]), int(row[-1]) + 1), (int(key[0]), int(key[-1]) + 1))
        out: BoolArray = some[np.ix_(row - row[0], key - key[0])]
        if self.inner is not None:
            out &= self.inner.dense(*rows, *keys)
        return out

    def key_counts(self, q0: int, q1: int) -> Whole:
        """How many of the rows [q0, q1) see each key, (k_len,)."""
        rows, keys = self.edges(0), self.edges(1)
        low, high = np.clip(rows[:-1], q0, q1), np.clip(rows[1:], q0, q1)
        if self.inner is None:
            tall = np.bincount(self.keys, (high - low)[self.rows()], len(keys) - 1).astype(np.int64)
            return np.repeat(tall, np.diff(keys))
        counts = np.zeros(self.shape[1], np.int64)
        if self.inner.intervals is None:
            step = bits.ONE.step(self.shape[1])
            for first in range(q0, q1, step):
                counts += self.dense((first, min(first + step, q1)), (0, self.shape[1])).sum(axis=0)
            return counts
        order = np.argsort(self.keys, kind="stable")
        row, bounds = self.rows()[order], np.searchsorted(self.keys[order], np.arange(len(keys)))
        for block in range(len(keys) - 1):
            tall = np.zeros(len(rows) - 1, np.int64)
            mine = row[bounds[block] : bounds[block + 1]]
            tall[mine] = (high - low)[mine]
            part = slice(int(keys[block]), int(keys[block + 1]))
            counts[part] = self._rows_inside(part, low, tall)
        return counts

    def _rows_inside(self, keys: slice, low: Whole, tall: Whole) -> Whole:
        """Rows of the inner intervals of keys of one block that lie in listed tiles: low + [0, tall) of each block."""
        before = np.append(0, np.cumsum(tall))[:-1]

        def below(bound: IntArray) -> Whole:
            block = np.minimum((bound + np.int64(self.origin[0])) // self.size[0], len(tall) - 1)
            found: Whole = before[block] + np.clip(bound - low[block], 0, tall[block])
            return found

        start, stop = (side[:, keys] for side in self.inner.intervals)
        counts: Whole = (below(stop) - below(start)).sum(axis=0)
        return counts

    def crop(self, rows: Range, keys: Range) -> Tiles:
        """The part of rows [q0, q1) and keys [k0, k1), renumbered from 0."""
        (q0, q1), (k0, k1) = rows, keys
        (r0, c0), (br, bc) = self.origin, self.size
        top, bottom = (r0 + q0) // br, -(-(r0 + q1) // br)
        left, right = (c0 + k0) // bc, -(-(c0 + k1) // bc)
        first, last = int(self.offsets[top]), int(self.offsets[bottom])
        key = self.keys[first:last]
        inside = (key >= left) & (key < right)
        before = np.append(0, np.cumsum(inside))
        return Tiles(
            (q1 - q0, k1 - k0),
            self.size,
            ((r0 + q0) % br, (c0 + k0) % bc),
            before[self.offsets[top : bottom + 1] - first],
            key[inside] - np.int32(left),
            None if self.inner is None else self.inner[q0:q1, k0:k1],
        )
