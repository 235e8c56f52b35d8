"""What several assignments to the ranks of one node should take, found for all of them at once.

A plan of a node is made of a few hundred numbers: NumPy then takes as long for all assignments as for one. They stand
one behind the other, as one assignment to as many times the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from omnicupy.parallel.owners import Owners
from omnicupy.parallel.prediction import Setting
from omnicupy.parallel.runs import Real, Whole, spread
from omnicupy.parallel.seen import Rectangles

MOST = 1 << 15  # runs of keys times ranks of all assignments

Part = tuple[Rectangles, float]


def serves(parts: Sequence[Part], assignments: int, setting: Setting) -> bool:
    """Whether all ranks are of one node, and the numbers few."""
    runs = max(len(found.key_edges) for found, _ in parts)
    return setting.ranks <= setting.node and runs * assignments * setting.ranks <= MOST


def seconds(
    rows: Sequence[Owners],
    keys: Sequence[Owners],
    work: tuple[Real, Real],
    parts: Sequence[Part],
    setting: Setting,
) -> Real:
    """Of each assignment: the slowest rank of each mask, as often as the mask has layers.

    work: places, and the pairs of the rows before each.  parts: of each mask, and its layers.
    """
    count = len(rows)
    all_rows = _behind(rows)
    all_keys = all_rows if all(a is b for a, b in zip(rows, keys, strict=True)) else _behind(keys)
    pairs = _pairs(work, rows, all_rows.owner)
    found: Real = np.zeros(count)
    for one, layers in parts:
        sent = _sent(one, all_rows, all_keys, count)
        wait = setting.near_s((sent.sum(axis=2), sent.sum(axis=1)))
        found += layers * setting.rank_s(pairs, wait).max(axis=1)
    return found


def _pairs(work: tuple[Real, Real], assignments: Sequence[Owners], owner: Whole) -> Real:
    """What `pairs_of` says of each assignment, (count, ranks). owner: of the runs of all of them."""
    count, ranks = len(assignments), assignments[0].ranks
    at = np.interp(np.concatenate([one.edges for one in assignments]), *work)
    # Between the end of one and the first edge of the next one lies no run.
    kept = np.ones(len(at), np.bool_)
    kept[list(accumulate([len(one.edges) for one in assignments[:-1]], initial=0))] = False
    found = np.bincount(owner, (at[1:] - at[:-1])[kept[1:]], count * ranks)
    return found.reshape(count, ranks).astype(np.float64, copy=False)


def _behind(assignments: Sequence[Owners]) -> Owners:
    """One behind the other, each with ranks of its own."""
    size, ranks = assignments[0].tokens, assignments[0].ranks
    edges = [one.edges[:-1] + at * size for at, one in enumerate(assignments)]
    owner = [one.owner + at * ranks for at, one in enumerate(assignments)]
    end = np.array([len(assignments) * size])
    return Owners(np.concatenate([*edges, end]), np.concatenate(owner), len(assignments) * ranks)


def _sent(found: Rectangles, rows: Owners, keys: Owners, count: int) -> Real:
    """What `expected_traffic` says of each assignment: keys from each rank to each other one, (count, ranks, ranks)."""
    runs, ranks = len(found.key_edges) - 1, rows.ranks
    again = np.arange(count)[:, None]
    low, high = ((side + again * (rows.tokens // count)).ravel() for side in (found.first, found.stop))
    first = rows.edges.searchsorted(low, "right") - 1
    lengths = rows.edges.searchsorted(high) - first
    seen = np.zeros((runs, count, ranks // count))
    line = np.concatenate([found.run * ranks] * count)
    seen.reshape(-1)[line.repeat(lengths) + rows.owner[spread(first, first + lengths)]] = 1.0
    key_edges = (found.key_edges[:-1] + again * (keys.tokens // count)).ravel()
    # Segments between bounds of both kinds; those without keys count nothing.
    edges = np.concatenate([key_edges, keys.edges])
    order = edges.argsort(kind="stable")
    edges = edges[order]
    run = (order < len(key_edges)).cumsum()
    owner = keys.owner[np.arange(len(run) - 1) - run[:-1]]
    cells = np.bincount((run[:-1] - 1) % runs * ranks + owner, edges[1:] - edges[:-1], seen.size)
    tokens = cells.reshape(seen.shape)
    sent: Real = np.matmul(tokens.transpose(1, 2, 0), seen.transpose(1, 0, 2))
    each: Whole = np.arange(ranks // count)
    sent[:, each, each] = 0.0
    return sent
