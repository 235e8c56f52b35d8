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
from itertools import accumulate, pairwise

import numpy as np

from omnicupy.parallel.line import Line, Part, Ranges, Text
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Real, Whole, sums_before

EVEN = 0.0025  # of a share of the work: within it, fewer cuts count more

Dealt = list[tuple[int, int, int]]  # first and stop tokens of pieces of documents, and their ranks


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
    def texts(self) -> list[Part]:
        """All documents."""
        bounds = self.before[0][self.ends].tolist()
        work = self.amounts[:, 1].tolist()
        return [Part([two], two[1] - two[0], one) for two, one in zip(pairwise(bounds), work, strict=True)]

    @cached_property
    def line(self) -> Line:
        """All chunks, which must be in their order."""
        edges = [*self.first.tolist(), int(self.stop[-1])]
        lengths = self.stop - self.first
        return Line(
            edges,
            lengths.tolist(),
            self.work.tolist(),
            self.before[1].tolist(),
            (self.work / lengths).tolist(),
        )


def contiguous(size: int, ranks: int) -> Owners:
    """Equal runs in order."""
    edges = np.arange(ranks + 1) * size // ranks
    kept = (edges[1:] - edges[:-1]).nonzero()[0]
    return Owners(np.concatenate([edges[kept], edges[-1:]]), kept, ranks)


def zigzag(size: int, ranks: int) -> Owners:
    """Rank r gets runs r and 2 * ranks - 1 - r of twice as many runs: even for one causal text."""
    shares = np.array(shares_of(size, ranks))
    low = shares // 2
    lengths = np.concatenate([low, (shares - low)[::-1]])
    each = np.arange(ranks)
    owner = np.concatenate([each, each[::-1]])
    kept = lengths.nonzero()[0]
    return Owners.of_chunks(sums_before(lengths[kept]), owner[kept], ranks)


def two_ended(chunks: Chunks, ranks: int) -> Owners:
    """Dense and light documents to each rank."""
    line = chunks.line
    lengths, work, ends = line.lengths, line.work, chunks.ends.tolist()
    texts = [
        Text(one, lengths[first:stop], work[first:stop])
        for one, (first, stop) in zip(chunks.texts, pairwise(ends), strict=True)
    ]
    return joined(taken(texts, [len(texts)], shares_of(line.edges[-1], ranks), [range(ranks)]), ranks)


def shares_of(size: int, ranks: int) -> list[int]:
    """Tokens of each rank: equal, the first ones one more where that does not come out even."""
    share, more = divmod(size, ranks)
    return [share + 1] * more + [share] * (ranks - more)


def taken(texts: list[Text], documents: list[int], shares: list[int], names: list[range]) -> Dealt:
    """Each rank's run from the dense end and from the light end of its node's documents: its share of tokens, and of
    what work is left. documents: of each node, one node's behind the other's.  shares: of all ranks.  names: of each
    node's ranks.
    """
    ends = [0, *accumulate(documents)]
    order, turned, lengths, each = _order(texts, ends)
    edges, work = [0, *accumulate(lengths)], np.array([0.0, *accumulate(each)])
    begins = [0, *accumulate([texts[at].part.tokens for at in order])]
    line = np.array(edges, np.float64), work
    high, runs = 0, []
    for ranks, end in zip(names, ends[1:], strict=False):
        low, high = high, begins[end]
        for name in ranks:
            share = shares[name]
            last = name == ranks[-1]
            take = share if last or not share else _from_dense_end(edges, line, (low, high), share)
            runs += [(low, low + take, name), (high - (share - take), high, name)]
            low, high = low + take, high - (share - take)
        high = begins[end]
    return _pieces([(texts[at].part.ranges, turned[at]) for at in order], runs)


def _order(texts: list[Text], ends: list[int]) -> tuple[list[int], list[bool], list[int], list[float]]:
    """Documents of each node by density, and which of them are turned: the dense end of each comes before its light
    end. Then tokens and work of all chunks in this order. ends: of the nodes' documents.
    """
    turned, thin = [], []
    for part, _, work in texts:
        half = len(work) // 2
        turned.append(half > 0 and sum(work[-half:]) > sum(work[:half]))
        thin.append(-part.total / part.tokens)
    order = [at for first, stop in pairwise(ends) for at in sorted(range(first, stop), key=thin.__getitem__)]
    lengths: list[int] = []
    each: list[float] = []
    for at in order:
        one = texts[at]
        lengths += one.lengths[::-1] if turned[at] else one.lengths
        each += one.work[::-1] if turned[at] else one.work
    return order, turned, lengths, each


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


def _pieces(line: list[tuple[Ranges, bool]], runs: Dealt) -> Dealt:
    """The tokens of runs of the line, (low, high, rank) each. line: documents, and whether they are turned."""
    parts = [(*one, turned) for ranges, turned in line for one in (reversed(ranges) if turned else ranges)]
    begins = [0, *accumulate([stop - first for first, stop, _ in parts])]
    found = []
    for low, high, name in runs:
        at = bisect_right(begins, low) - 1
        while low < high:
            first, stop, turned = parts[at]
            skipped, kept = low - begins[at], min(high, begins[at + 1]) - low
            first = stop - skipped - kept if turned else first + skipped
            found.append((first, first + kept, name))
            low += kept
            at += 1
    return found


def joined(dealt: Dealt, ranks: int) -> Owners:
    """The owners of these pieces, which are all tokens."""
    dealt.sort()
    edges, owner = [], [-1]
    for first, _, name in dealt:
        if name != owner[-1]:
            edges.append(first)
            owner.append(name)
    edges.append(dealt[-1][1])
    return Owners(np.array(edges, np.int64), np.array(owner[1:], np.int64), ranks)
