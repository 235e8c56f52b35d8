"""How a rank's share of tokens is split between the dense end and the light end of a line of chunks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from omnicupy.parallel.runs import Real

EVEN = 0.0025  # of a share of the work: within it, fewer cuts count more

Run = tuple[int, int, int]  # first and stop tokens, and their rank


def runs_of_ranks(
    edges: list[int], line: tuple[Real, Real], stops: list[int], shares: list[int], names: list[range]
) -> list[Run]:
    """A run from the dense end and one from the light end of a node's documents for each of its ranks, as long as its
    share together. edges, line: of all documents, node by node, as below.  stops: where each node's end.
    shares: of all ranks.  names: of each node's ranks.
    """
    high, runs = 0, []
    for ranks, stop in zip(names, stops, strict=False):
        low, high = high, stop
        for name in ranks:
            share = shares[name]
            last = name == ranks[-1]
            take = share if last or not share else _from_dense_end(edges, line, (low, high), share)
            runs += [(low, low + take, name), (high - (share - take), high, name)]
            low, high = low + take, high - (share - take)
        high = stop
    return runs


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
