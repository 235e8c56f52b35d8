"""Steps of a call: which rows and heads are computed while keys and values of other ranks are still on their way.

Rows that see no key of another rank need not wait: they are one launch, which runs while the exchange does, and the
others are a second one. Where most rows wait, as under causal masks, heads are exchanged in groups instead: the next
group travels while one is computed. Nothing is merged in either way.

The groups of heads decide how many exchanges there are, so they are the same on all ranks. Which rows wait, each rank
decides for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.mask import Mask
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.prediction import Heads
from omnicupy.parallel.runs import Real
from omnicupy.parallel.seen import row_work

BLOCK = 128  # rows: launches are cut where block rows end
MOST_LOOKED_AT = 1 << 25  # ranks times rows, which take 0.1 s; above it each rank looks at its own
FIRST_SHARES = (2, 4, 8)  # of the heads, the first group is one over these
GROWTH = 3  # of three groups the second is so many times the first
MARGIN = (
    0.98  # of the time without it: what a split must be predicted to get below, since predictions are coarse
)

Sizes: TypeAlias = tuple[int, ...]
Overlap: TypeAlias = bool | str | Sizes | None  # as `steps_of` takes it
ROWS = "rows"
Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Rows [first, stop) of a rank, which one launch computes for a group of heads.

    low, high: the own keys that it reads.  waits: whether it reads the received ones, too, behind them.
    masks: of these rows against these keys, for each batch element or one for all.
    """

    first: int
    stop: int
    low: int
    high: int
    waits: bool
    masks: tuple[Mask, ...]


@dataclass(frozen=True)
class Steps:
    """groups: heads of keys in each exchange of the forward pass, in order.

    pieces: those that do not wait come first; () for a rank with no row, or no key to look at.
    """

    groups: Sizes
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        free = sum(piece.stop - piece.first for piece in self.pieces if not piece.waits)
        found = [f"{free} rows first"] if free else []
        found += [f"heads {'+'.join(map(str, self.groups))}"] if len(self.groups) > 1 else []
        return ", ".join(found) or "none"


def steps_of(
    plan: Plan, rank: int, mask: int | Sequence[int], batch: int, heads: Heads, overlap: Overlap
) -> Steps:
    """What a rank does in a call. overlap: False for one launch behind one exchange; None for what is predicted to be
    fastest; True for the fastest one of those that overlap, where there is one; ROWS for rows that need not wait first,
    on ranks that have some; heads of keys in each exchange, which add up to all heads.

    Raises ValueError where they do not.
    """
    if isinstance(overlap, tuple) and (sum(overlap) != heads.kv_heads or min(overlap) < 1):
        raise ValueError(
            f"overlap must be heads of keys in each exchange, {heads.kv_heads} in all, got {overlap}; pass None for "
            "what is predicted to be fastest"
        )
    which = tuple(mask) if isinstance(mask, (list, tuple)) else (mask,)
    key = ("steps", rank, which, batch, heads, overlap)
    if key not in plan._found:
        plan._found[key] = _steps(plan, rank, which, batch, heads, overlap)
    found: Steps = plan._found[key]
    return found


def _steps(plan: Plan, rank: int, which: Sizes, batch: int, heads: Heads, overlap: Overlap) -> Steps:
    local = plan.locals(rank, which)
    ranges: list[Range] = []
    groups: Sizes = (heads.kv_heads,)
    if not plan.travels(which):
        overlap = False
    if isinstance(overlap, tuple):
        groups = overlap
    elif overlap == ROWS:
        ranges = _Model(plan, which, batch, heads).rows(rank, True)[1] if local else []
    elif overlap is not False:
        assert not isinstance(overlap, str)
        model = _Model(plan, which, batch, heads)
        groups = model.groups(overlap)
        if len(groups) == 1 and local:
            ranges = model.rows(rank, overlap)[1]
    if not local:
        return Steps(groups, ())
    own, count = int(plan.keys.counts[rank]), int(plan.rows.counts[rank])
    if ranges:
        return Steps(groups, tuple(_pieces(local, own, ranges)))
    waits = own < local[0].shape[1]
    return Steps(groups, (Piece(0, count, 0, own, waits, local),))


class _Model:
    """Predicted seconds of a call, by the speeds of its plan."""

    def __init__(self, plan: Plan, which: Sizes, batch: int, heads: Heads) -> None:
        self.plan, self.setting = plan, replace(plan.setting, heads=heads)
        self.masks = [plan.masks[one] for one in which]
        traffic = plan.needs(tuple(sorted(set(which)))).traffic(plan.ranks)
        self.sent: Real = (batch * traffic).astype(np.float64)
        self.receives = self.sent.sum(axis=0) > 0
        self.wait = self._come(1.0)
        self.seen = [row_work(mask) for mask in self.masks]
        self.pairs: Real = np.sum(self.seen, axis=0, dtype=np.float64)
        self.pairs *= batch if len(which) == 1 else 1

    def _come(self, share: float) -> Real:
        """Seconds until a share of the keys has come to each rank; none where a rank is sent none."""
        return np.where(self.receives, self.setting.exchange_s(self.sent * share), 0.0)

    def work(self, rank: int) -> Real:
        """Seconds of the rank's rows before each of them, and of all."""
        return self.setting.work_s(np.append(0.0, np.cumsum(self.pairs[self.plan.rows.of(rank)])))

    def works(self) -> Real:
        """Of each rank."""
        plan = self.plan
        before = np.append(0.0, np.cumsum(self.pairs))
        sums = np.bincount(plan.rows.owner, np.diff(before[plan.rows.edges]), plan.ranks)
        return self.setting.work_s(sums.astype(np.float64))

    def groups(self, overlap: bool | None) -> Sizes:
        """Groups of heads whose slowest rank is done first; one group where rows that need not wait do better."""
        heads, plan = self.setting.heads.kv_heads, self.plan
        if plan.ranks * plan.rows.tokens > MOST_LOOKED_AT:
            return (heads,)
        of_rows = [self.rows(rank, overlap) for rank in range(plan.ranks)]
        best = MARGIN * max(took for took, _ in of_rows)
        found: Sizes = (heads,)
        if overlap and not any(ranges for _, ranges in of_rows):
            best = np.inf
        works = self.works()
        for sizes in partitions(heads):
            took = self.in_groups(sizes, works)
            if took < best:
                best, found = took, sizes
        return found

    def in_groups(self, sizes: Sizes, works: Real) -> float:
        """A forward pass: each group's launch begins when it has come, and the launch before has ended."""
        come, done = np.zeros(len(works)), np.zeros(len(works))
        for size in sizes:
            share = size / sum(sizes)
            come += self._come(share)
            done = np.maximum(done, come) + works * share + self.setting.speeds.split_s
        return float(done.max())

    def rows(self, rank: int, overlap: bool | None) -> tuple[float, list[Range]]:
        """Seconds of a forward pass with one exchange, and the rows of its launches; none for one launch of all rows.

        Those that wait are the last range.
        """
        setting, speeds = self.setting, self.setting.speeds
        before, wait = self.work(rank), float(self.wait[rank])
        alone = speeds.split_s + wait + float(before[-1])
        waiting = self._waiting(rank) if self.receives[rank] else None
        if waiting is None or waiting.all():
            return alone, []
        best, found = np.inf if overlap else MARGIN * alone, []
        places, count = np.flatnonzero(waiting), len(waiting)
        low, high = int(places[0]) // BLOCK * BLOCK, min(-(-int(places[-1] + 1) // BLOCK) * BLOCK, count)
        for first, stop in ((low, high), (low, count), (0, high)):
            free = [one for one in ((0, first), (stop, count)) if one[0] < one[1]]
            early = sum(float(before[b] - before[a]) + speeds.split_s for a, b in free)
            # Own keys of rows that wait are copied beside those that come.
            copied = 2.0 * setting.heads.key_bytes * (stop - first) / speeds.copied
            took = max(wait, early) + copied + float(before[stop] - before[first]) + speeds.split_s
            if free and took < best:
                best, found = took, [*free, (first, stop)]
        return (best, found) if found else (alone, [])

    def _waiting(self, rank: int) -> BoolArray | None:
        """Which rows of the rank see keys of other ranks; None where no mask tells cheaply."""
        mine, own = self.plan.rows.of(rank), self.plan.keys.of(rank)
        before, count = self.plan.rows.before(rank), len(mine)
        found = np.zeros(count, np.bool_)
        for mask, seen in zip(self.masks, self.seen, strict=True):
            if mask.intervals is None:
                return None
            change = np.zeros(count + 1, np.int64)
            for start, stop in zip(*(before[side[:, own]] for side in mask.intervals), strict=True):
                change += np.bincount(start, minlength=count + 1)
                change -= np.bincount(stop, minlength=count + 1)
            found |= np.cumsum(change[:count]) < seen[mine]
        return found


def partitions(heads: int) -> list[Sizes]:
    """Two or three groups to try, none smaller than the one before: what comes first is waited for, so it is small."""
    found: set[Sizes] = set()
    for first in {max(1, heads // share) for share in FIRST_SHARES}:
        second, left = GROWTH * first, heads - (GROWTH + 1) * first
        found.add((first, heads - first))
        if left >= second:
            found.add((first, second, left))
    return sorted(sizes for sizes in found if sizes[-1])


def _pieces(local: tuple[Mask, ...], own: int, ranges: Sequence[Range]) -> Iterator[Piece]:
    """Those that do not wait, then the last range, which does."""
    for first, stop in ranges[:-1]:
        masks = {mask: mask[first:stop, :own] for mask in local}
        yield Piece(first, stop, 0, own, False, tuple(masks[mask] for mask in local))
    first, stop = ranges[-1]
    seen = np.zeros(own, np.bool_)
    for mask in local:
        assert mask.intervals is not None
        start, end = (side[:, :own] for side in mask.intervals)
        seen |= ((start < stop) & (end > first) & (start < end)).any(axis=0)
    places = np.flatnonzero(seen)
    low, high = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    keys = np.r_[low:high, own : local[0].shape[1]]
    made = {mask: _cut(mask, (first, stop), keys) for mask in local}
    yield Piece(first, stop, low, high, True, tuple(made[mask] for mask in local))


def _cut(mask: Mask, rows: Range, keys: np.ndarray) -> Mask:
    """Rows of a mask against some of its keys."""
    assert mask.intervals is not None
    first, stop = rows
    start, end = mask.intervals
    pairs = masks_intervals.crop((start[:, keys], end[:, keys]), rows, (0, len(keys)))
    return Mask((stop - first, len(keys)), intervals=pairs)
