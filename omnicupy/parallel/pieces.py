"""Pieces of a mask in interval form: runs of keys whose intervals stay, or whose bounds move on a row with each key.

A text, a window or an image is one piece or two, so that what a plan asks of packs costs one pass over their keys, and
after that as much as there are pieces. Masks of any intervals are right too: in the end each key is a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from omnicupy.masks.intervals import BoolArray, IntArray, Intervals
from omnicupy.parallel.runs import Whole, merged, spread, unique

BLOCK = 1 << 17  # keys of which the steps are held at once


@dataclass(frozen=True, eq=False)
class Pieces:
    """Of intervals (canonical) of `rows` rows: piece i is the keys [edges[i], edges[i + 1])."""

    pairs: Intervals
    rows: int
    edges: Whole

    @staticmethod
    def of(pairs: Intervals, rows: int) -> Pieces:
        size = pairs[0].shape[1]
        space = np.empty(min(size, BLOCK + 1), np.int32)
        found = [_first_keys(pairs, at, min(at + BLOCK, size - 1), space) for at in range(0, size - 1, BLOCK)]
        return Pieces(pairs, rows, np.concatenate([[0], *found, [size]]))

    @cached_property
    def _bounds(self) -> tuple[Whole, Whole]:
        """Of each piece's first key, and of its last one: (start or stop, slots, pieces)."""
        keys = np.concatenate([self.edges[:-1], self.edges[1:] - 1])
        found = np.array([side[:, keys] for side in self.pairs], np.int64)
        return found[..., : len(keys) // 2], found[..., len(keys) // 2 :]

    def content(self) -> tuple[Whole, ...]:
        """What no other intervals have: a piece follows from its first key and its last one."""
        return (self.edges, *self._bounds)

    def pairs_before(self, rows: Whole) -> Whole:
        """Allowed pairs of the rows before each of these."""
        places, sums = self._polynomials
        square, linear, constant = sums[:, places.searchsorted(rows)]
        found: Whole = ((square * rows + linear) * rows + constant) >> 1
        return found

    @cached_property
    def _polynomials(self) -> tuple[Whole, Whole]:
        """Rows, ascending, behind each of which another polynomial counts twice the pairs before a row; and those from
        the first row on: (square, linear, constant), (3, rows + 1).

        The rows of a key from x on that lie before row r are max(0, r - x), summed over the keys of a piece: n (r - x)
        where x stays, (r - x)(r - x + 1) / 2 less the same of x + n where it moves. Twice that is a polynomial in r.
        """
        (first, last), length = self._bounds, self.edges[1:] - self.edges[:-1]
        sign = np.array([1, -1])[:, None, None]  # rows from the start on, less those from the stop on
        moves = sign * (last != first)
        stays = 2 * length * (sign - moves)
        at = np.array([first, first + length])
        # Of the square, of the row itself and constant: each holds from its row on.
        terms = np.empty((3, *at.shape), np.int64)
        terms[0] = moves
        terms[1] = moves * (1 - 2 * at)
        terms[2] = moves * (at - 1) * at
        terms[:, 1] *= -1
        terms[1, 0] += stays
        terms[2, 0] -= stays * first
        at, terms = at.ravel(), terms.reshape(3, -1)
        order = at.argsort()
        sums = np.zeros((3, len(at) + 1), np.int64)
        terms[:, order].cumsum(axis=1, out=sums[:, 1:])
        return at[order], sums

    def free(self) -> BoolArray:
        """Whether no pair of a square mask crosses place i + 1, (keys - 1,)."""
        size, begin, end = self.rows, self.edges[:-1], self.edges[1:]
        at_first, at_last = self._bounds
        last, latest = at_first[1].max(axis=0), at_last[1].max(axis=0)
        first = np.where(latest > 0, at_first[0, 0], size)
        # No row of the keys before a place lies at or behind it, and none of those after it before it.
        before = np.maximum.accumulate(np.concatenate([[0], latest[:-1]]))
        after = np.minimum.accumulate(np.concatenate([first[1:], [size]])[::-1])[::-1]
        found = np.zeros(size, np.bool_)
        found[begin] = (before <= begin) & (first >= begin) & (after >= begin)
        # Those inside a piece are one range, [low, high).
        low = np.where(latest == last, last, np.where(last <= begin + 1, 0, size))
        low = np.maximum(np.maximum(low, before), begin + 1)
        moves = at_last[0, 0] != at_first[0, 0]
        high = np.where(moves, np.where(first >= begin, size, 0), first)
        high = np.minimum(np.minimum(high, after) + 1, end)
        inside = (low < high).nonzero()[0]
        found[spread(low[inside], high[inside])] = True
        return found[1:]

    def rows_of(self, keys: Whole) -> tuple[Whole, Whole, Whole]:
        """Which rows see keys of each run of keys: (run, first row, last one + 1), least ranges; a run has one for each
        slot. keys: bounds of the runs.
        """
        cuts = merged(self.edges, keys)
        start, stop = self.pairs
        last = stop[:, cuts[1:] - 1]
        first = np.where(last > 0, start[:, cuts[:-1]], self.rows)
        parts = cuts.searchsorted(keys[:-1])
        first, last = np.minimum.reduceat(first, parts, axis=1), np.maximum.reduceat(last, parts, axis=1)
        slot, run = (first < last).nonzero()
        return run, first[slot, run].astype(np.int64), last[slot, run].astype(np.int64)

    def turns(self, rows: Whole) -> Whole:
        """Keys, ascending from the first one on, between which no interval begins or ends in another of these runs of
        rows. rows: bounds of the runs, from 0.
        """
        ahead = np.array([0, 1])[:, None, None]  # the last row of an interval lies in front of its stop
        first, last = (one - ahead for one in self._bounds)
        low, high = rows.searchsorted(first.ravel(), "right"), rows.searchsorted(last.ravel(), "right")
        shift = (self.edges[:-1] - first).ravel()
        return unique(np.concatenate([self.edges[:-1], rows[spread(low, high)] + shift.repeat(high - low)]))


def _first_keys(pairs: Intervals, begin: int, end: int, space: IntArray) -> Whole:
    """The first keys of pieces among keys begin + 1 to end. space: for their steps, kept for the next ones."""
    first = max(0, begin - 1)
    step = space[: end - first]  # place i: from key first + i to the next one
    jumps, turns = np.zeros((2, len(step)), np.bool_)
    for side in pairs:
        for bounds in side[:, first : end + 1]:
            np.subtract(bounds[1:], bounds[:-1], out=step)
            jumps |= step.view(np.uint32) > 1  # back too
            turns[1:] |= step[1:] != step[:-1]
    # A step behind a jump is a new piece's first one, whatever it is.
    turns[1:] &= ~jumps[:-1]
    turns |= jumps
    return turns[begin - first :].nonzero()[0] + (begin + 1)
