"""What travels: which keys of each rank the rows of another one see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from omnicupy.masks.intervals import BoolArray
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.pieces import Pieces
from omnicupy.parallel.prediction import Flows
from omnicupy.parallel.runs import Whole, merged, spread, sums_before, unique
from omnicupy.parallel.seen import Rectangles, Shown

MOST_PAIRS = 1 << 22  # of a run of keys and a run of rows, that are written out
FEW_PAIRS = 1 << 12  # that are sorted in any case
SPARSE = 16  # places of an array for each pair, from which on sorting pairs is faster


@dataclass(frozen=True, eq=False)
class Needs:
    """Segment i is the keys [edges[i], edges[i + 1]), all of one owner and all seen by rows of the same ranks.

    need: bool (segments, ranks), whether rows of a rank see them.  owner: of each segment.  offset: where a segment
    begins in its owner's shard of keys.
    """

    edges: Whole
    need: BoolArray
    owner: Whole
    offset: Whole

    def travelling(self, source: int, target: int) -> Whole:
        """Segments of keys that `source` owns and rows of `target` see; `target` is another rank."""
        found: Whole = np.flatnonzero((self.owner == source) & self.need[:, target])
        return found

    def foreign(self, rank: int) -> Whole:
        """Segments that `rank` is sent, by owner, ascending."""
        found = np.flatnonzero(self.need[:, rank] & (self.owner != rank))
        return found[np.argsort(self.owner[found], kind="stable")]

    def traffic(self, ranks: int) -> Whole:
        """Keys that each rank (first axis) sends to each other one (second axis)."""
        segment, target = np.divmod(np.flatnonzero(self.need), ranks)
        every = self.owner[segment] * ranks + target
        sent = np.bincount(every, np.diff(self.edges)[segment], ranks * ranks).reshape(ranks, ranks)
        np.fill_diagonal(sent, 0.0)
        return sent.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Exchange:
    """One rank's part of the exchange of keys and values.

    send: for each rank the places of keys in this rank's shard that it is sent, ascending; its own is empty.
    received: keys that come from each rank.  own: keys of this rank.  foreign: the keys received, as tokens, by owner.
    The rank's attention runs on its own keys, then on those received, by owner.
    """

    rank: int
    send: tuple[Whole, ...]
    received: tuple[int, ...]
    own: int
    foreign: Whole

    @property
    def sent(self) -> tuple[int, ...]:
        """Keys that go to each rank."""
        return tuple(len(one) for one in self.send)


def exchange_of(needs: Needs, keys: Owners, rank: int) -> Exchange:
    """What `rank` sends and receives."""
    lengths = np.diff(needs.edges)
    mine = np.flatnonzero(needs.owner == rank)
    need = needs.need[mine]
    need[:, rank] = False
    target, at = need.T.nonzero()
    segments = mine[at]
    first, count = needs.offset[segments], lengths[segments]
    places = spread(first, first + count)
    ends = sums_before(np.bincount(target, count, keys.ranks).astype(np.int64)).tolist()
    send = tuple(places[low:high] for low, high in pairwise(ends))
    segments = needs.foreign(rank)
    received = np.bincount(needs.owner[segments], lengths[segments], keys.ranks).astype(np.int64)
    foreign = spread(needs.edges[segments], needs.edges[segments + 1])
    return Exchange(rank, send, tuple(received.tolist()), int(keys.counts[rank]), foreign)


def needs_of(masks: Sequence[Shown], rows: Owners, keys: Owners) -> Needs:
    """Exactly which keys of which owner the rows of each rank see under any of the masks."""
    found = [_segments(one, rows) for one in masks]
    edges = unique(np.concatenate([keys.edges, *(one for one, _ in found)]), "stable")
    need = np.zeros((len(edges) - 1, rows.ranks), np.bool_)
    for own, seen in found:
        need |= seen[own.searchsorted(edges[:-1], "right") - 1]
    run = keys.edges.searchsorted(edges[:-1], "right") - 1
    offset = keys.offsets[run] + (edges[:-1] - keys.edges[run])
    return Needs(edges, need, keys.owner[run], offset)


def _segments(shown: Shown, rows: Owners) -> tuple[Whole, BoolArray]:
    """Runs of keys that rows of the same ranks see, their bounds and (runs, ranks)."""
    if shown.pieces is not None:
        return _of_pieces(shown.pieces, rows)
    mask = shown.mask
    seen = np.zeros((rows.ranks, mask.shape[1]), np.bool_)
    for (first, stop), owner in zip(pairwise(rows.edges.tolist()), rows.owner.tolist(), strict=True):
        seen[owner] |= mask.key_counts_of(first, stop) > 0
    changed = np.append(True, (seen[:, 1:] != seen[:, :-1]).any(axis=0))
    first_keys = np.flatnonzero(changed)
    return np.append(first_keys, mask.shape[1]), np.ascontiguousarray(seen[:, first_keys].T)


def _of_pieces(pieces: Pieces, rows: Owners) -> tuple[Whole, BoolArray]:
    """An interval of rows reaches from one run of rows to another: what lies between is seen by their owners."""
    at = pieces.turns(rows.edges)
    start, stop = (side[:, at] for side in pieces.pairs)
    ends = np.array([rows.edges.searchsorted(start, "right") - 1, rows.edges.searchsorted(stop)])
    changed = np.ones(len(at), np.bool_)
    (ends[..., 1:] != ends[..., :-1]).any(axis=(0, 1), out=changed[1:])
    first, last = ends[..., changed].reshape(2, -1)
    count = int(changed.sum())
    run = np.tile(np.arange(count), len(start))
    return np.append(at[changed], pieces.edges[-1]), seen_by((run, first, last), count, rows)


def seen_by(ranges: tuple[Whole, Whole, Whole], count: int, rows: Owners) -> BoolArray:
    """For `count` runs of keys, whether rows of each rank see them: bool (count, ranks).

    ranges: (run of keys, first run of rows, last one + 1), any number of them for a run of keys.
    """
    run, first, last = ranges
    used = first < last
    run, first, last = run[used], first[used], last[used]
    seen = np.zeros((count, rows.ranks), np.bool_)
    if int((last - first).sum()) <= MOST_PAIRS:
        every = np.repeat(run, last - first) * rows.ranks + rows.owner[spread(first, last)]
        seen.reshape(-1)[every] = True
        return seen
    before = np.zeros((len(rows.owner) + 1, rows.ranks), np.int32)
    before[np.arange(1, len(before)), rows.owner] = 1
    np.cumsum(before, axis=0, out=before)
    step = max(1, MOST_PAIRS // rows.ranks)
    again = np.flatnonzero(run[1:] <= run[:-1]) + 1  # a part names each run of keys once
    for begin, end in pairwise([0, *again.tolist(), len(run)]):
        for at in range(begin, end, step):
            part = slice(at, min(at + step, end))
            seen[run[part]] |= before[last[part]] > before[first[part]]
    return seen


def expected_traffic(found: Rectangles, rows: Owners, keys: Owners) -> Flows:
    """About how many keys each rank sends to each other one, never fewer: whole runs of keys count."""
    first = rows.edges.searchsorted(found.first, "right") - 1
    last = rows.edges.searchsorted(found.stop)
    count, ranks = len(found.key_edges) - 1, rows.ranks
    whole, rank = np.divmod(_pairs_seen((found.run, first, last), count, rows), ranks)
    edges = merged(found.key_edges, keys.edges)
    owner, lengths = keys.at(edges[:-1]), edges[1:] - edges[:-1]
    begins = edges.searchsorted(found.key_edges)  # segments of each run of keys
    low, high = begins[whole], begins[whole + 1]
    segment, target = spread(low, high), rank.repeat(high - low)
    source, tokens = owner[segment], lengths[segment]
    foreign = source != target
    return Flows(source[foreign], target[foreign], tokens[foreign], ranks)


def _pairs_seen(ranges: tuple[Whole, Whole, Whole], count: int, rows: Owners) -> Whole:
    """What `seen_by` gives as numbers, run of keys * ranks + rank, ascending; without its array where they are few."""
    run, first, last = ranges
    lengths = last - first
    pairs = int(lengths.sum())
    if pairs > FEW_PAIRS and SPARSE * pairs > count * rows.ranks:
        return np.flatnonzero(seen_by(ranges, count, rows))
    return unique((run * rows.ranks).repeat(lengths) + rows.owner[spread(first, last)])
