"""What is worked on, in which order: block rows or parts of them, so that all multiprocessors end together.

A block row so long that it would delay the end of the launch is split over its keys into parts; the warp that ends last
merges them (kernels/omni/sm90/forward/merge.cuh). The K and V of a section's heads fit half of the L2 cache, so work
is taken section by section. Tiers come first: the long parts of all sections precede the short parts of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.jit.params import TIERS
from omnicupy.masks.block_mask import FULL, BlockMask

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int32]

# What scheduling takes work to cost, in FULL tiles: a masked tile, a part of a block row beside its tiles (it fetches
# Q, starts and stores O), and what a part of a split row leaves for the merge (measured: docs/tries.md).
MASKED, ITEM, LEAVE = 1.1, 1.2, 6.0
LEAST_TILES = 2  # of a part
MOST_PARTS = 64  # of a row
ENOUGH = 0.98  # of the multiprocessors' time in use: no split can gain more than it costs
# Of the whole time: longer parts are in the tier, shorter ones in the next.
TIER_SHARES = (1 / 16, 1 / 32, 1 / 64)


@dataclass(frozen=True)
class Workers:
    """Who works: `heads` times each block row on `sm_count` multiprocessors.

    split_slots: parts of split rows a head that the merge has memory for; 0 where rows may not be split.
    repeats: how often an entry is worked on in a row: by each query head of a group, where parts are of keys.
    """

    heads: int
    sm_count: int
    split_slots: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Schedule:
    """rows: block row of each part, (P,), longest first. first, end: its entries, (P,) each.

    splits: (P, 4) of {row among the split ones or -1, number of the part, parts of the row, slot of the first}.
    tiers: where each tier ends in P.  n_slots: parts of split rows.  n_split_rows: split rows.
    """

    rows: IntArray
    first: IntArray
    end: IntArray
    splits: IntArray
    tiers: tuple[int, ...]
    n_slots: int
    n_split_rows: int


def entry_costs(block: BlockMask) -> FloatArray:
    """Of each entry, in FULL tiles of bc keys, (E,)."""
    return costs_of(block.entries[:, 3], block.kinds, block.bc)


def costs_of(keys: IntArray, kinds: IntArray, bc: int) -> FloatArray:
    """Of entries of so many keys and such kinds, in FULL tiles of bc keys."""
    costs = np.where(kinds == FULL, 1.0, MASKED)
    costs *= keys
    costs /= bc
    return costs


def schedule(offsets: IntArray, costs: FloatArray, workers: Workers) -> Schedule:
    """Order and cut the block rows whose entries are offsets[i] : offsets[i + 1].

    costs: of each entry, in whole tiles, (E,).
    """
    total = np.zeros(len(costs) + 1)
    np.cumsum(costs, out=total[1:])
    of_row = total[offsets[1:]] - total[offsets[:-1]]
    counts = np.diff(offsets)
    parts = _parts_of_rows(of_row, counts, workers)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), parts)
    number = number_in_run(parts)
    of_part = parts[rows]
    first = offsets[rows] + counts[rows].astype(np.int64) * number // of_part
    end = offsets[rows] + counts[rows].astype(np.int64) * (number + 1) // of_part
    is_split = parts > 1
    slot = np.cumsum(np.where(is_split, parts, 0)) - np.where(is_split, parts, 0)
    among = np.where(is_split, np.cumsum(is_split) - 1, -1)
    splits = np.stack([among[rows], number, of_part, slot[rows]], axis=1).astype(np.int32)
    cost = total[end] - total[first] + ITEM
    order = np.argsort(-cost, kind="stable")
    whole = float(cost.sum()) * workers.heads / workers.sm_count
    tiers = [int((cost > share * whole).sum()) for share in TIER_SHARES]
    return Schedule(
        rows[order],
        first[order].astype(np.int32),
        end[order].astype(np.int32),
        splits[order],
        (*tiers, len(rows)),
        int(parts[is_split].sum()),
        int(is_split.sum()),
    )


assert len(TIER_SHARES) == TIERS - 1


def number_in_run(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... within each run of the given lengths."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _parts_of_rows(of_row: FloatArray, counts: IntArray, workers: Workers) -> NDArray[np.int64]:
    """Into how many parts each row is cut: what ends soonest of a few ways to cut, none if that is about as good."""
    best = np.ones(len(of_row), np.int64)
    if not workers.split_slots or not counts.any():
        return best
    soonest = ends(of_row, best, workers)
    least = float(of_row.sum() + ITEM * len(of_row)) * workers.heads / workers.sm_count
    ways = _ways(of_row, counts, workers)
    while ENOUGH * soonest > least and (parts := next(ways, None)) is not None:
        slots = int(parts[parts > 1].sum())
        if 0 < slots <= workers.split_slots and (end := ends(of_row, parts, workers)) < soonest:
            best, soonest = parts, end
    return best


def ends(of_row: FloatArray, parts: NDArray[np.int64], workers: Workers) -> float:
    """When the work ends, in whole tiles: a bound from below that handing out the longest first comes near to.

    Of the n * w + 1 longest parts, on n multiprocessors, some w + 1 are on one.
    """
    cost = np.repeat(of_row / parts + ITEM + np.where(parts > 1, LEAVE, 0.0), parts)
    cost = -np.sort(-cost)
    at = np.arange(0, len(cost) * workers.heads, workers.sm_count)
    together = (np.arange(len(at)) + 1) * cost[at // workers.heads]
    return max(float(cost.sum()) * workers.heads / workers.sm_count, float(together.max()))


def _ways(of_row: FloatArray, counts: IntArray, workers: Workers) -> Iterator[NDArray[np.int64]]:
    """Cuts worth a look: no part longer than a share of the whole time; only as many rows as fill the last round.

    The last round of all rows, or of those that are longer than half of the longest.
    """
    most = np.clip(counts.astype(np.int64) // LEAST_TILES, 1, MOST_PARTS)
    whole = float(of_row.sum()) * workers.heads / workers.sm_count
    for share in (1, 2, 3, 4, 6, 8):
        yield np.minimum(np.ceil(of_row * share / whole).astype(np.int64).clip(1), most)
    longest = np.argsort(-of_row, kind="stable")
    long = int((of_row > of_row.max() / 2).sum())
    rounds = (
        long * workers.heads % workers.sm_count,
        len(of_row) * workers.heads % workers.sm_count,
        workers.sm_count,
    )
    for count in dict.fromkeys(-(-items // workers.heads) for items in rounds):
        rows = longest[:count]
        for many in (2, 3, 4, 6):
            parts = np.ones(len(of_row), np.int64)
            parts[rows] = np.minimum(many, most[rows])
            yield parts
