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
from omnicupy.masks.mask import Mask
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.pieces import Pieces
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.prediction import Heads, near_and_far
from omnicupy.parallel.runs import Real, Whole, merged
from omnicupy.parallel.seen import pairs_before

BLOCK = 128  # rows: launches are cut where block rows end
MOST_LOOKED_AT = 1 << 25  # ranks times rows, which take 7 ms; above it each rank looks at its own
FIRST_SHARES = (2, 4, 8)  # of the heads, the first group is one over these
GROWTH = 3  # of three groups the second is so many times the first
MARGIN = (
    0.98  # of the time without it: what a split must be predicted to get below, since predictions are coarse
)

Sizes: TypeAlias = tuple[int, ...]
Overlap: TypeAlias = bool | str | Sizes | None  # as `steps_of` takes it
ROWS = "rows"
Range: TypeAlias = tuple[int, int]
Split: TypeAlias = tuple[float, list[Range]]  # seconds, and the rows of launches


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
        ranges = _Model(plan, which, batch, heads).rows([rank], True)[0][1] if local else []
    elif overlap is not False:
        assert not isinstance(overlap, str)
        model = _Model(plan, which, batch, heads)
        few = plan.ranks * plan.rows.tokens <= MOST_LOOKED_AT
        of_rows = model.rows(range(plan.ranks) if few else [rank], overlap)
        if few:
            groups = model.groups(of_rows, overlap)
        if len(groups) == 1 and local:
            ranges = of_rows[rank if few else 0][1]
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
        self.shown = [plan.shown(one) for one in which]
        self.times = batch if len(which) == 1 else 1
        sent = batch * plan.needs(tuple(sorted(set(which)))).traffic(plan.ranks)
        self.moved = near_and_far(sent, self.setting.node)
        self.receives = sent.sum(axis=0) > 0
        self.wait = self._come(1.0)
        self.before = self._pairs(plan.rows.edges)
        self.seen = [_ranges(one.pieces, plan.keys) for one in self.shown if one.pieces is not None]

    def _come(self, share: float) -> Real:
        """Seconds until a share of the keys has come to each rank; none where a rank is sent none."""
        near, far = self.moved
        return np.where(self.receives, self.setting.moved_s(near * share, far * share), 0.0)

    def _pairs(self, rows: Whole) -> Real:
        """Allowed pairs of the rows before each of these, of all elements."""
        found: Real = np.sum([pairs_before(one, rows) for one in self.shown], axis=0, dtype=np.float64)
        found *= self.times
        return found

    def groups(self, of_rows: Sequence[Split], overlap: bool | None) -> Sizes:
        """Groups of heads whose slowest rank is done first; one group where rows that need not wait do better.
        of_rows: what `rows` says of all ranks.
        """
        heads, plan = self.setting.heads.kv_heads, self.plan
        best = MARGIN * max(took for took, _ in of_rows)
        found: Sizes = (heads,)
        if overlap and not any(ranges for _, ranges in of_rows):
            best = np.inf
        pairs = np.bincount(plan.rows.owner, self.before[1:] - self.before[:-1], plan.ranks)
        works = self.setting.work_s(pairs.astype(np.float64))
        every = partitions(heads)
        come = {size: self._come(size / heads) for sizes in every for size in sizes}
        for sizes in every:
            took = self.in_groups(sizes, works, come)
            if took < best:
                best, found = took, sizes
        return found

    def in_groups(self, sizes: Sizes, works: Real, come: dict[int, Real]) -> float:
        """A forward pass: each group's launch begins when it has come, and the launch before has ended. works: of each
        rank.  come: seconds until so many heads have.
        """
        came, done = np.zeros(len(works)), np.zeros(len(works))
        for size in sizes:
            came += come[size]
            done = np.maximum(done, came) + works * (size / sum(sizes)) + self.setting.speeds.split_s
        return float(done.max())

    def rows(self, ranks: Sequence[int], overlap: bool | None) -> list[Split]:
        """Of each of these ranks the seconds of a forward pass with one exchange, and the rows of its launches; none
        for one launch of all rows. Those that wait are the last range.
        """
        rows, edges = self.plan.rows, self.plan.rows.edges
        cuts, shifts, places = [], [], []
        for rank in ranks:
            held, work = (rows.sums_of(rank, sums) for sums in (edges, self.before))
            cut = np.array([0, *self._waiting(rank, held), held[-1]])
            run = held.searchsorted(cut, "right") - 1
            cuts.append(cut.tolist())
            shifts.append(work[run] - self.before[run])
            places.append(edges[run] + cut - held[run])
        before = np.array(shifts) + self._pairs(np.concatenate(places)).reshape(len(cuts), -1)
        seconds = self.setting.work_s(before).tolist()
        return [self._split(*one, overlap) for one in zip(ranks, cuts, seconds, strict=True)]

    def _waiting(self, rank: int, held: Whole) -> Range:
        """Whole blocks of the rank's rows around all that see keys of other ranks; all rows where masks do not tell,
        or no key is the rank's own. held: rows of the rank before each run of rows, and in all.
        """
        count = int(held[-1])
        if not (self.receives[rank] and self.plan.keys.counts[rank]) or len(self.seen) < len(self.shown):
            return 0, count
        low, high = count, 0
        for owner, ranges in self.seen:
            first, stop = np.interp(ranges, self.plan.rows.edges, held)
            waits = (owner != rank) & (first < stop)
            low = int(first[waits].min(initial=low))
            high = int(stop[waits].max(initial=high))
        return low // BLOCK * BLOCK, min(-(-high // BLOCK) * BLOCK, count)

    def _split(self, rank: int, cuts: list[int], seconds: list[float], overlap: bool | None) -> Split:
        """One of `rows`. cuts: 0, the rows that wait, and all.  seconds: of the rank's rows before each."""
        setting, speeds = self.setting, self.setting.speeds
        before, wait = dict(zip(cuts, seconds, strict=True)), float(self.wait[rank])
        _, low, high, count = cuts
        alone = speeds.split_s + wait + before[count]
        best, found = np.inf if overlap else MARGIN * alone, []
        for first, stop in ((low, high), (low, count), (0, high)):
            free = [one for one in ((0, first), (stop, count)) if one[0] < one[1]]
            early = sum(before[b] - before[a] + speeds.split_s for a, b in free)
            # Own keys of rows that wait are copied beside those that come.
            copied = 2.0 * setting.heads.key_bytes * (stop - first) / speeds.copied
            took = max(wait, early) + copied + (before[stop] - before[first]) + speeds.split_s
            if free and took < best:
                best, found = took, [*free, (first, stop)]
        return (best, found) if found else (alone, [])


def _ranges(pieces: Pieces, keys: Owners) -> tuple[Whole, Whole]:
    """Ranges of rows that see keys: the owner of these, and the ranges, (2, any number)."""
    cuts = merged(pieces.edges, keys.edges)
    run, first, stop = pieces.rows_of(cuts)
    return keys.at(cuts[run]), np.array([first, stop])


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
