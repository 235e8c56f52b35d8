"""Assignments: which rank gets which rows, in chunks that end with their document.

Every one gives each rank its share of the tokens, exact to a token, and tries to give it its share of the work: kernels
and frameworks want equal shapes, and the slowest rank sets the pace.

`two_ended`: documents by density (work a token). A rank takes a run from the dense end and a run from the light end, so
long that tokens and work both are its share. Each rank meets few documents and so needs few keys of others.
`nodes_first`: the same in each node, whole documents to nodes before: keys that cross a network are the dear ones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from omnicupy.parallel.line import Line
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Real, Whole, spread, sums_before

EVEN = 0.0025  # of a share of the work: within it, fewer cuts count more

Dealt = tuple[Whole, Whole, Whole]  # first and stop tokens of pieces of chunks, and their ranks


@dataclass(frozen=True)
class Chunks:
    """Chunks of rows, document by document. first, stop: their tokens.  work: of each.

    ends: places of the chunks where a document begins, and their number.
    """

    first: Whole
    stop: Whole
    work: Real
    ends: Whole

    @staticmethod
    def of(edges: Whole, work: Real, bounds: Whole) -> Chunks:
        """edges, work: of all chunks.  bounds: of the documents, each of which is an edge."""
        return Chunks(edges[:-1], edges[1:], work, np.searchsorted(edges, bounds))

    @cached_property
    def before(self) -> tuple[Whole, Real]:
        """Tokens and work before each chunk, and of all."""
        return sums_before(self.stop - self.first), sums_before(self.work)

    @cached_property
    def amounts(self) -> Real:
        """Tokens and work of each document, (documents, 2)."""
        found: Real = np.array([one[self.ends] for one in self.before])
        return (found[:, 1:] - found[:, :-1]).T

    @cached_property
    def line(self) -> Line:
        """All chunks, which must be in their order."""
        edges = [*self.first.tolist(), int(self.stop[-1])]
        return Line(edges, self.before[1].tolist(), (self.work / (self.stop - self.first)).tolist())

    def pick(self, order: Whole, ends: Whole) -> Chunks:
        """Other chunks or another order."""
        return Chunks(self.first[order], self.stop[order], self.work[order], ends)


def contiguous(size: int, ranks: int) -> Owners:
    """Equal runs in order."""
    edges = np.arange(ranks + 1) * size // ranks
    kept = np.flatnonzero(edges[1:] - edges[:-1])
    return Owners(np.append(edges[kept], size), kept, ranks)


def zigzag(size: int, ranks: int) -> Owners:
    """Rank r gets runs r and 2 * ranks - 1 - r of twice as many runs: even for one causal text."""
    shares = shares_of(size, ranks)
    low = shares // 2
    lengths = np.concatenate([low, (shares - low)[::-1]])
    each = np.arange(ranks)
    owner = np.concatenate([each, each[::-1]])
    kept = np.flatnonzero(lengths)
    return Owners.of_chunks(sums_before(lengths[kept]), owner[kept], ranks)


def two_ended(chunks: Chunks, ranks: int) -> Owners:
    """Dense and light documents to each rank."""
    size = int((chunks.stop - chunks.first).sum())
    return joined(taken(chunks, [len(chunks.ends) - 1], shares_of(size, ranks), [range(ranks)]), ranks)


def shares_of(size: int, ranks: int) -> Whole:
    """Tokens of each rank: equal, the first ones one more where that does not come out even."""
    return size // ranks + (np.arange(ranks) < size % ranks)


def _line(chunks: Chunks, nodes: Whole) -> tuple[Chunks, np.ndarray]:
    """Documents by node and density, the dense end of each before its light end; and which chunks are turned so.
    nodes: of the documents.
    """
    first, stop = chunks.ends[:-1], chunks.ends[1:]
    work, amounts = chunks.before[1], chunks.amounts
    half = (stop - first) // 2
    turned = work[stop] - work[stop - half] > work[first + half] - work[first]
    density = amounts[:, 1] / amounts[:, 0]
    order = np.lexsort((-density, nodes))
    first, stop, turned = first[order], stop[order], turned[order]
    lengths = stop - first
    ends = sums_before(lengths)
    places = spread(first, stop)
    flags = np.repeat(turned, lengths)
    backward = np.repeat(first + stop - 1, lengths) - places
    return chunks.pick(np.where(flags, backward, places), ends), flags


def taken(chunks: Chunks, documents: list[int], shares: Whole, names: list[range]) -> Dealt:
    """Each rank's run from the dense end and from the light end of its node's documents: its share of tokens, and of
    what work is left. documents: of each node, one node's behind the other's.  shares: of all ranks.  names: of each
    node's ranks.
    """
    line, turned = _line(chunks, np.arange(len(documents)).repeat(documents))
    tokens, work = line.before
    edges, places, share_of = tokens.tolist(), tokens.astype(np.float64), shares.tolist()
    high, stops = 0, tokens[line.ends[list(accumulate(documents))]].tolist()
    runs = []
    for ranks, stop in zip(names, stops, strict=False):
        low, high = high, stop
        for name in ranks:
            share = share_of[name]
            last = name == ranks[-1]
            take = share if last or not share else _from_dense_end(edges, (places, work), (low, high), share)
            runs += [(low, low + take, name), (high - (share - take), high, name)]
            low, high = low + take, high - (share - take)
        high = stop
    return _pieces(line, turned, tokens, np.array(runs))


def _from_dense_end(edges: list[int], line: tuple[Real, Real], left: tuple[int, int], share: int) -> int:
    """How many of `share` tokens come from the dense end so that their part of the work that is left is nearest to
    their part of the tokens. edges: of chunks.  line: the same places, and the work before each.

    Within EVEN of that the place that cuts the least chunks is taken.
    """
    (places, work), (low, high) = line, left
    after = high - share  # where the light end's run begins if none comes from the dense end
    a, b = bisect_right(edges, low), bisect_left(edges, low + share)
    c, d = bisect_right(edges, after, a), bisect_left(edges, high, b)
    cuts = np.empty(b - a + d - c + 2)
    cuts[0], cuts[-1] = 0.0, share
    np.subtract(places[a:b], low, out=cuts[1 : b - a + 1])
    np.subtract(places[c:d], after, out=cuts[b - a + 1 : -1])
    cuts.sort()
    ends = np.empty((2, len(cuts)))
    np.add(cuts, low, out=ends[0])
    np.add(cuts, after, out=ends[1])
    dense, light = np.interp(ends, places, work)
    goal = float(light[-1] - dense[0]) * share / (high - low)
    over = dense - light
    over += float(light[-1] - dense[0]) - goal
    near = (np.abs(over) <= EVEN * goal).nonzero()[0]
    if len(near):
        return int(cuts[near[np.abs(cuts[near] - share / 2).argmax()]])
    below = over < 0
    cross = (below[:-1] != below[1:]).nonzero()[0]
    if not len(cross):
        return int(cuts[np.abs(over).argmin()])
    one = int(cross[0])
    part = over[one] / (over[one] - over[one + 1])
    return int(cuts[one]) + round(float(part) * float(cuts[one + 1] - cuts[one]))


def _pieces(line: Chunks, turned: np.ndarray, tokens: Whole, runs: Whole) -> Dealt:
    """The tokens of runs of the line, (low, high, rank) each, as pieces of chunks."""
    runs = runs[runs[:, 0] < runs[:, 1]]
    begin = tokens.searchsorted(runs[:, 0], "right") - 1
    end = tokens.searchsorted(runs[:, 1])
    chunk = spread(begin, end)
    low, high, name = runs.repeat(end - begin, axis=0).T
    skipped = np.maximum(low - tokens[chunk], 0)
    kept = np.minimum(high, tokens[chunk + 1]) - tokens[chunk] - skipped
    first = np.where(turned[chunk], line.stop[chunk] - skipped - kept, line.first[chunk] + skipped)
    return first, first + kept, name


def joined(dealt: Dealt, ranks: int) -> Owners:
    """The owners of these pieces, which are all tokens."""
    first, stop, name = dealt
    order = first.argsort()
    edges = np.empty(len(order) + 1, np.int64)
    edges[:-1], edges[-1] = first[order], stop[order[-1]]
    return Owners.of_chunks(edges, name[order], ranks)
