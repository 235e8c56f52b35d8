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
    # Where the dense end's run may stop; the light end's begins as far behind `after` as that is behind `low`.
    stops = np.concatenate([places[a:b], places[c:d] - (after - low), [low, low + share]])
    stops.sort()
    dense, light = np.interp(stops, places, work), np.interp(stops + (after - low), places, work)
    left_work = float(light[-1] - dense[0])
    goal = left_work * share / (high - low)
    over = dense - light
    over += left_work - goal
    near = (np.abs(over) <= EVEN * goal).nonzero()[0]
    if len(near):
        return int(stops[near[np.abs(stops[near] - (low + share / 2)).argmax()]]) - low
    below = over < 0
    cross = (below[:-1] != below[1:]).nonzero()[0]
    if not len(cross):
        return int(stops[np.abs(over).argmin()]) - low
    one = int(cross[0])
    part = over[one] / (over[one] - over[one + 1])
    return int(stops[one]) - low + round(float(part) * float(stops[one + 1] - stops[one]))
