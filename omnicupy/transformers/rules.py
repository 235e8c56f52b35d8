"""Mask rules as a tree over absolute positions, and the masks of a part of it; NumPy alone.

Row r and key p are positions in a sequence; a View names the rows and keys of one call. `element` is the
place in the batch. Time and memory follow rows plus keys, but for Evaluated, which looks at all pairs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.constructors import from_predicate
from omnicupy.masks.intervals import BoolArray, tidy
from omnicupy.masks.mask import Mask

Whole = NDArray[np.int64]
_FAR = 2**40  # further than any position


class View(NamedTuple):
    """Rows [q0, q0 + q_len) and keys [k0, k0 + k_len) of a sequence."""

    q0: int
    q_len: int
    k0: int
    k_len: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and keys."""
        return self.q_len, self.k_len

    @property
    def keys(self) -> Whole:
        """Positions of the keys, (k_len,)."""
        return np.arange(self.k0, self.k0 + self.k_len, dtype=np.int64)


class Rule(Protocol):
    """Which keys a row sees."""

    @property
    def shiftable(self) -> bool:
        """True where only r - p counts."""

    def mask(self, view: View, element: int) -> Mask:
        """The mask of `view` for one batch element."""

    def same(self, element: int) -> object:
        """A hashable value, equal for two elements only where their masks are equal."""


@dataclass(frozen=True)
class Band:
    """low <= r - p <= high; None is no bound. Causal is Band(low=0)."""

    low: int | None = None
    high: int | None = None

    shiftable = True

    def mask(self, view: View, element: int) -> Mask:
        start = view.keys + (-_FAR if self.low is None else self.low)
        stop = view.keys + (_FAR if self.high is None else self.high + 1)
        return _of_rows(view, start, stop)

    def same(self, element: int) -> object:
        return None


@dataclass(frozen=True)
class Chunks:
    """(p - left) // size == (r - left) // size, with `left` (batch,) positions of padding before the first."""

    size: int
    left: Whole

    shiftable = False

    def mask(self, view: View, element: int) -> Mask:
        left = self.left[element]
        start = (view.keys - left) // self.size * self.size + left
        return _of_rows(view, start, start + self.size)

    def same(self, element: int) -> object:
        return int(self.left[element])


@dataclass(frozen=True)
class Labels:
    """labels[r] == labels[p], (batch, positions); where `least` is given, labels below it see nothing."""

    labels: Whole
    least: int | None = None

    shiftable = False

    def mask(self, view: View, element: int) -> Mask:
        length = self.labels.shape[1]
        if (needed := max(view.q0 + view.q_len, view.k0 + view.k_len)) > length:
            raise ValueError(
                f"mask_function: labels for {needed} positions are needed, got {length}; pass token types or "
                "positions of the whole sequence, the cached part included"
            )
        row = self.labels[element, view.q0 : view.q0 + view.q_len]
        key = self.labels[element, view.k0 : view.k0 + view.k_len]
        return _same_labels(view, row, key, self.least)

    def same(self, element: int) -> object:
        return self.labels[element].tobytes()


@dataclass(frozen=True)
class Keys:
    """visible[p], (batch, positions); keys past the last position are hidden (an unused cache)."""

    visible: BoolArray

    shiftable = False

    def mask(self, view: View, element: int) -> Mask:
        seen = np.zeros(view.k_len, np.bool_)
        given = self.visible[element, view.k0 : view.k0 + view.k_len]
        seen[: len(given)] = given
        return _of_rows(view, np.full(view.k_len, -_FAR), np.where(seen, _FAR, -_FAR))

    def same(self, element: int) -> object:
        return self.visible[element].tobytes()


@dataclass(frozen=True)
class Joined:
    """All of the parts (operator.and_), or any of them (operator.or_)."""

    parts: Sequence[Rule]
    join: Callable[[Mask, Mask], Mask]

    @property
    def shiftable(self) -> bool:
        return all(part.shiftable for part in self.parts)

    def mask(self, view: View, element: int) -> Mask:
        return reduce(self.join, [part.mask(view, element) for part in self.parts])

    def same(self, element: int) -> object:
        return tuple(part.same(element) for part in self.parts)


@dataclass(frozen=True)
class Documents:
    """labels[r] == labels[p] and inner(positions[r], positions[p]), each (batch, tokens): packed sequences.

    Holds for whole sequences alone, and where `packed` says so of labels and positions.
    """

    labels: Whole
    positions: Whole
    inner: Rule

    shiftable = False

    def mask(self, view: View, element: int) -> Mask:
        together = Labels(self.labels).mask(view, element)
        if self.inner.shiftable:  # tokens of a document are as far from each other as their positions
            return together & self.inner.mask(view, element)
        edges = [0, *_steps(self.labels[element]).tolist(), view.q_len]
        parts = []
        for first, stop in pairwise(edges):
            origin = int(self.positions[element, first])
            parts.append((first, self.inner.mask(View(origin, stop - first, origin, stop - first), element)))
        return _diagonal_blocks(view, parts)

    def same(self, element: int) -> object:
        rows = self.labels[element].tobytes(), self.positions[element].tobytes()
        return *rows, self.inner.same(element)


@dataclass(frozen=True)
class Evaluated:
    """A rule that is not known: rows(element, r0, r1, view) gives its pairs, boolean (r1 - r0, k_len)."""

    rows: Callable[[int, int, int, View], BoolArray]

    shiftable = False

    def mask(self, view: View, element: int) -> Mask:
        def some(q: NDArray[Any], k: NDArray[Any]) -> BoolArray:
            first = view.q0 + int(q[0, 0])
            return self.rows(element, first, first + len(q), view)

        return from_predicate(some, *view.shape, threads=1)  # torch keeps modes for each thread

    def same(self, element: int) -> object:
        return element


def packed(labels: Whole, positions: Whole) -> bool:
    """True where each label (batch, tokens) has one run of tokens, whose positions count up by one."""
    for label, position in zip(labels, positions, strict=True):
        steps = _steps(label)
        inside = np.ones(len(label), np.bool_)
        inside[[0, *steps]] = False
        if len(np.unique(label)) != len(steps) + 1 or (np.diff(position, prepend=0)[inside] != 1).any():
            return False
    return True


def masks_of(rule: Rule, view: View, batch: int) -> tuple[Mask, ...]:
    """One mask for all batch elements where they are equal, else one for each; equal ones are one object."""
    made: dict[object, Mask] = {}
    masks = []
    for element in range(batch):
        key = rule.same(element)
        if key not in made:
            made[key] = rule.mask(view, element)
        masks.append(made[key])
    return tuple(masks[:1] if all(mask == masks[0] for mask in masks) else masks)


def both(*parts: Rule) -> Rule:
    """The rule that all parts allow."""
    return Joined(parts, operator.and_)


def _steps(labels: Whole) -> Whole:
    """Places at which a label differs from the one before."""
    return np.flatnonzero(np.diff(labels)) + 1


def _of_rows(view: View, start: Whole, stop: Whole) -> Mask:
    """Key i is seen by the positions [start[i], stop[i])."""
    lo, hi = (np.clip(bound - view.q0, 0, view.q_len).astype(np.int32)[None] for bound in (start, stop))
    return Mask(view.shape, intervals=tidy(lo, hi), diagonal=view.q0 - view.k0)


def _same_labels(view: View, row: Whole, key: Whole, least: int | None) -> Mask:
    first = np.concatenate([[0], _steps(row)])
    stop = np.append(first[1:], len(row))
    order = np.argsort(row[first], kind="stable")  # runs of one label side by side, ascending
    if least is not None:
        order = order[row[first][order] >= least]
    first, stop = first[order], stop[order]
    known, begin, count = np.unique(row[first], return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(known, key), len(known) - 1)
    used = np.where(known[place] == key, count[place], 0) if len(known) else np.zeros(len(key), np.int64)
    n = max(1, int(used.max()))
    if 64 * n > len(row) > 64:  # more memory than a bit a pair
        return from_predicate(
            lambda q, k: (row[q] == key[k]) & (least is None or row[q] >= least), *view.shape
        )
    lo, hi = (np.zeros((n, len(key)), np.int32) for _ in range(2))
    for slot in range(n):
        at = np.flatnonzero(used > slot)
        run = begin[place[at]] + slot
        lo[slot, at], hi[slot, at] = first[run], stop[run]
    return Mask(view.shape, intervals=(lo, hi), diagonal=view.q0 - view.k0)


def _diagonal_blocks(view: View, parts: Sequence[tuple[int, Mask]]) -> Mask:
    """Square masks along the diagonal, each from its first row on."""
    if any(part.intervals is None for _, part in parts):
        return from_predicate(lambda q, k: _block_rows(int(q[0, 0]), len(q), view, parts), *view.shape)
    n = max(len(part.intervals[0]) for _, part in parts if part.intervals is not None)
    lo, hi = (np.zeros((n, view.k_len), np.int32) for _ in range(2))
    for first, part in parts:
        assert part.intervals is not None
        keys = slice(first, first + part.shape[1])
        for side, bound in ((lo, part.intervals[0]), (hi, part.intervals[1])):
            side[: len(bound), keys] = np.where(part.intervals[0] < part.intervals[1], bound + first, 0)
    return Mask(view.shape, intervals=(lo, hi), diagonal=view.q0 - view.k0)


def _block_rows(q0: int, count: int, view: View, parts: Sequence[tuple[int, Mask]]) -> BoolArray:
    found = np.zeros((count, view.k_len), np.bool_)
    for first, part in parts:
        size = part.shape[0]
        a, b = max(q0, first), min(q0 + count, first + size)
        if a < b:
            found[a - q0 : b - q0, first : first + size] = part.dense(a - first, b - first, 0, size)
    return found
