"""Assignments: which rank gets which rows, in chunks that end with their document.

Every one gives each rank its share of the tokens, exact to a token, and tries to give it its share of the work: kernels
and frameworks want equal shapes, and the slowest rank sets the pace.

`two_ended`: documents by density (work a token). A rank takes a run from the dense end and a run from the light end, so
long that tokens and work both are its share. Each rank meets few documents and so needs few keys of others.
`nodes_first`: the same in each node, whole documents to nodes before: keys that cross a network are the dear ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnicupy.parallel.owners import Owners, spread
from omnicupy.parallel.seen import Real, Whole

EVEN = 0.0025  # of a share of the work: within it, fewer cuts count more

Piece = tuple[int, int, int]  # first token, stop token, rank


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

    def before(self) -> tuple[Whole, Real]:
        """Tokens and work before each chunk, and of all."""
        return np.append(0, np.cumsum(self.stop - self.first)), np.append(0.0, np.cumsum(self.work))

    def pick(self, order: Whole, ends: Whole) -> Chunks:
        """Other chunks or another order."""
        return Chunks(self.first[order], self.stop[order], self.work[order], ends)


def contiguous(size: int, ranks: int) -> Owners:
    """Equal runs in order."""
    edges = np.arange(ranks + 1) * size // ranks
    kept = np.flatnonzero(np.diff(edges))
    return Owners(np.append(edges[kept], size), kept, ranks)


def zigzag(size: int, ranks: int) -> Owners:
    """Rank r gets runs r and 2 * ranks - 1 - r of twice as many runs: even for one causal text."""
    shares = shares_of(size, ranks)
    low = shares // 2
    lengths = np.concatenate([low, (shares - low)[::-1]])
    owner = np.concatenate([np.arange(ranks), np.arange(ranks)[::-1]])
    kept = np.flatnonzero(lengths)
    return Owners.of_chunks(np.append(0, np.cumsum(lengths[kept])), owner[kept], ranks)


def two_ended(chunks: Chunks, ranks: int) -> Owners:
    """Dense and light documents to each rank."""
    size = int((chunks.stop - chunks.first).sum())
    return joined(taken(chunks, shares_of(size, ranks), range(ranks)), ranks)


def shares_of(size: int, ranks: int) -> Whole:
    """Tokens of each rank: equal, the first ones one more where that does not come out even."""
    return size // ranks + (np.arange(ranks) < size % ranks)


def _line(chunks: Chunks) -> tuple[Chunks, np.ndarray]:
    """Documents by density, the dense end of each before its light end; and which chunks are turned so."""
    first, stop = chunks.ends[:-1], chunks.ends[1:]
    tokens, work = chunks.before()
    half = (stop - first) // 2
    turned = work[stop] - work[stop - half] > work[first + half] - work[first]
    density = (work[stop] - work[first]) / (tokens[stop] - tokens[first])
    order = np.argsort(-density, kind="stable")
    first, stop, turned = first[order], stop[order], turned[order]
    lengths = stop - first
    ends = np.append(0, np.cumsum(lengths))
    places = spread(first, stop)
    flags = np.repeat(turned, lengths)
    backward = np.repeat(first + stop - 1, lengths) - places
    return chunks.pick(np.where(flags, backward, places), ends), flags


def taken(chunks: Chunks, shares: Whole, names: range) -> list[Piece]:
    """Each rank's run from the dense end and from the light end: its share of tokens, and of what work is left."""
    line, turned = _line(chunks)
    tokens, work = line.before()
    low, high = 0, int(tokens[-1])
    runs = []
    for at, name in enumerate(names):
        share = int(shares[at])
        left_work = float(np.interp(high, tokens, work) - np.interp(low, tokens, work))
        goal = left_work * share / max(1, high - low)
        last = at == len(shares) - 1
        take = share if last or not share else _from_dense_end(tokens, work, (low, high), share, goal)
        runs += [(low, low + take, name), (high - (share - take), high, name)]
        low, high = low + take, high - (share - take)
    return _pieces(line, turned, tokens, np.array(runs, np.int64))


def _from_dense_end(tokens: Whole, work: Real, left: tuple[int, int], share: int, goal: float) -> int:
    """How many of `share` tokens come from the dense end so that the work is nearest to `goal`.

    Within EVEN of the goal the place that cuts the least chunks is taken.
    """
    low, high = left
    i, p = np.searchsorted(tokens, [low, high - share], "right")
    j, q = np.searchsorted(tokens, [low + share, high], "left")
    places = np.concatenate([[0], tokens[i:j] - low, tokens[p:q] - (high - share), [share]])
    places.sort()
    at = np.interp(np.concatenate([[low, high], low + places, high - share + places]), tokens, work)
    over = at[2 : len(places) + 2] - at[0] + at[1] - at[len(places) + 2 :] - goal
    near = np.flatnonzero(np.abs(over) <= EVEN * goal)
    if len(near):
        return int(places[near[np.argmax(np.abs(places[near] - share / 2))]])
    cross = np.flatnonzero((over[:-1] < 0) != (over[1:] < 0))
    if not len(cross):
        return int(places[int(np.argmin(np.abs(over)))])
    one = int(cross[0])
    part = over[one] / (over[one] - over[one + 1])
    return int(places[one] + round(part * float(places[one + 1] - places[one])))


def _pieces(line: Chunks, turned: np.ndarray, tokens: Whole, runs: Whole) -> list[Piece]:
    """The tokens of runs of the line, (low, high, rank) each, as pieces of chunks."""
    runs = runs[runs[:, 0] < runs[:, 1]]
    begin = np.searchsorted(tokens, runs[:, 0], "right") - 1
    end = np.searchsorted(tokens, runs[:, 1], "left")
    chunk = spread(begin, end)
    low, high, name = (np.repeat(runs[:, side], end - begin) for side in range(3))
    skipped = np.maximum(low - tokens[chunk], 0)
    kept = np.minimum(high, tokens[chunk + 1]) - tokens[chunk] - skipped
    first = np.where(turned[chunk], line.stop[chunk] - skipped - kept, line.first[chunk] + skipped)
    return list(zip(first.tolist(), (first + kept).tolist(), name.tolist(), strict=True))


def joined(pieces: list[Piece], ranks: int) -> Owners:
    ordered = np.array(sorted(pieces), np.int64)
    return Owners.of_chunks(np.append(ordered[:, 0], ordered[-1, 1]), ordered[:, 2], ranks)
