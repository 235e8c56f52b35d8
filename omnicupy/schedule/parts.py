"""What is worked on, in which order: block rows or parts of them, so that all multiprocessors end together.

A block row so long that it would delay the end of the launch is split over its keys into parts; the warp that ends last
merges them (kernels/omni/sm90/forward/merge.cuh). The K and V of a section's heads fit half of the L2 cache, so work
is taken section by section. Tiers come first: the long parts of all sections precede the short parts of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
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
# The same of what a part of a packed tile leaves, in units of PACKED_UNIT bytes of K and V: few rows are live, and all
# warps of the last thread block merge them.
PACKED_LEAVE, PACKED_UNIT = 1.0, 1 << 16
LEAST_TILES = 2  # of a part
MOST_PARTS = 64  # of a row
# What is tried: parts no longer than 1 / share of the whole time, and some rows in so many parts.
SHARES = (1, 2, 3, 4, 6, 8)
CUTS = (2, 3, 4, 6)
ENOUGH = 0.98  # of the multiprocessors' time in use: no split can gain more than it costs
# Where additions have an order, rows that take more than the first share of the whole time are cut in parts of the
# second, if they would keep less than so many of the multiprocessors busy: what waits for them would wait long.
LONG_SHARE, CUT_SHARE, FEW = 1 / 2, 1 / 8, 1 / 4
# Of the whole time: longer parts are in the tier, shorter ones in the next.
TIER_SHARES = (1 / 16, 1 / 32, 1 / 64)
# The same where a part takes more than the first of them, as blocks of keys do that a whole group of heads works on: of
# one tier, such parts of the last heads would begin late and end long after all others.
LONG_SHARES = (1 / 2, 1 / 4, 1 / 8)


@dataclass(frozen=True)
class Workers:
    """Who works: `heads` times each block row on `sm_count` multiprocessors.

    split_slots: parts of split rows a head that the merge has memory for; 0 where rows may not be split.
    repeats: how often an entry is worked on in a row: by each query head of a group, where parts are of keys.
    leave: what a part of a split row leaves for the merge, in FULL tiles.  split_tiles: tiles of each part but the last
    one of a row, whoever works; 0 where the parts are free.  ordered_sums: what parts add to the same rows is added in
    one order, so that a part waits for those ahead of it.  side_by_side: heads that stay in half of the L2 cache, of a
    kernel that makes all gradients (sections.py); 0 of others.
    """

    heads: int
    sm_count: int
    split_slots: int = 0
    repeats: int = 1
    leave: float = LEAVE
    split_tiles: int = 0
    ordered_sums: bool = False
    side_by_side: int = 0


@dataclass(frozen=True)
class Schedule:
    """rows: block row of each part, (P,), longest first. first, end: its tiles, all rows' in one row, int64 (P,) each.

    splits: (P, 4) of {row among the split ones or -1, number of the part, parts of the row, slot of the first}.
    tiers: where each tier ends in P.  n_slots: parts of split rows.  n_split_rows: split rows.
    """

    rows: IntArray
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    splits: IntArray
    tiers: tuple[int, ...]
    n_slots: int
    n_split_rows: int


def entry_costs(block: BlockMask) -> FloatArray:
    """Of each entry, in FULL tiles of bc keys, (E,): of a run of them, their number."""
    return costs_of(block.entries[:, 3], block.kinds, block.bc)


def costs_of(keys: IntArray, kinds: IntArray, bc: int) -> FloatArray:
    """Of entries of so many keys and such kinds, in FULL tiles of bc keys."""
    costs = np.where(kinds == FULL, 1.0, MASKED)
    costs *= keys
    costs /= bc
    return costs


def tiles_before(tiles: IntArray) -> NDArray[np.int64]:
    """How many tiles come before each entry, and in all, int64 (E + 1,). tiles: of each entry."""
    before = np.zeros(len(tiles) + 1, np.int64)
    np.cumsum(tiles, out=before[1:])
    return before


def schedule(
    offsets: IntArray, costs: FloatArray, workers: Workers, tiles: IntArray | None = None
) -> Schedule:
    """Order and cut the block rows whose entries are offsets[i] : offsets[i + 1].

    costs: of each entry, in whole tiles, (E,).  tiles: of each entry, which a part may begin between; None: one.
    """
    total = np.zeros(len(costs) + 1)
    np.cumsum(costs, out=total[1:])
    of_row = total[offsets[1:]] - total[offsets[:-1]]
    before = np.arange(len(costs) + 1) if tiles is None else tiles_before(tiles)
    bounds = before[offsets]
    counts = np.diff(bounds)
    parts = _parts_of_rows(of_row, counts, workers)
    if workers.ordered_sums:
        parts = _few_long_cut(parts, of_row, counts, workers)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), parts)
    number = number_in_run(parts)
    of_part = parts[rows]
    first = bounds[rows] + _tiles_ahead(counts[rows], number, of_part, workers)
    end = bounds[rows] + _tiles_ahead(counts[rows], number + 1, of_part, workers)
    is_split = parts > 1
    slot = np.cumsum(np.where(is_split, parts, 0)) - np.where(is_split, parts, 0)
    among = np.where(is_split, np.cumsum(is_split) - 1, -1)
    splits = np.stack([among[rows], number, of_part, slot[rows]], axis=1).astype(np.int32)
    cost = np.interp(end, before, total) - np.interp(first, before, total) + ITEM
    order = np.argsort(-np.round(cost, 6), kind="stable")  # equal ones as their rows are, however sums round
    whole = float(cost.sum()) * workers.heads / workers.sm_count
    shares = LONG_SHARES if len(cost) and cost.max() > LONG_SHARES[0] * whole else TIER_SHARES
    tiers = [int((cost > share * whole).sum()) for share in shares]
    return Schedule(
        rows[order],
        first[order],
        end[order],
        splits[order],
        (*tiers, len(rows)),
        int(parts[is_split].sum()),
        int(is_split.sum()),
    )


assert len(TIER_SHARES) == len(LONG_SHARES) == TIERS - 1


def _tiles_ahead(
    counts: NDArray[np.int64], number: NDArray[np.int64], parts: NDArray[np.int64], workers: Workers
) -> NDArray[np.int64]:
    """Tiles of a row before one of its parts, of `parts` alike, or of split_tiles each."""
    if workers.split_tiles:
        return np.minimum(counts, number * workers.split_tiles)
    found: NDArray[np.int64] = counts * number // parts
    return found


def number_in_run(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... within each run of the given lengths."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _parts_of_rows(of_row: FloatArray, counts: NDArray[np.int64], workers: Workers) -> NDArray[np.int64]:
    """Into how many parts each row is cut: what ends soonest of a few ways to cut, none if that is about as good."""
    if workers.split_tiles:
        return np.maximum(-(-counts // workers.split_tiles), 1)
    best = np.ones(len(of_row), np.int64)
    if not workers.split_slots or not counts.any():
        return best
    if len(of_row) == 1:
        best[0] = parts_of_one_row(float(of_row[0]), int(counts[0]), workers)
        return best
    soonest = ends(of_row, best, workers)
    least = float(of_row.sum() + ITEM * len(of_row)) * workers.heads / workers.sm_count
    ways, tried = _ways(of_row, counts, workers), {best.tobytes()}
    while ENOUGH * soonest > least and (parts := next(ways, None)) is not None:
        if (way := parts.tobytes()) in tried:
            continue  # of few rows most ways are the same
        tried.add(way)
        slots = int(parts[parts > 1].sum())
        if 0 < slots <= workers.split_slots and (end := ends(of_row, parts, workers)) < soonest:
            best, soonest = parts, end
    return best


def _few_long_cut(
    parts: NDArray[np.int64], of_row: FloatArray, counts: NDArray[np.int64], workers: Workers
) -> NDArray[np.int64]:
    """The same cut, but the rows that are far longer than most are cut further, if the merge has memory for it."""
    whole = (float(of_row.sum()) + ITEM * len(of_row)) * workers.heads / workers.sm_count
    long = of_row > LONG_SHARE * whole
    if not 0 < int(long.sum()) * workers.heads < FEW * workers.sm_count:
        return parts
    wanted = np.ceil(of_row / (CUT_SHARE * whole)).astype(np.int64)
    cut = np.where(long, np.maximum(parts, np.minimum(wanted, counts // LEAST_TILES)), parts)
    return cut if int(cut[cut > 1].sum()) <= workers.split_slots else parts


def parts_of_one_row(cost: float, count: int, workers: Workers) -> int:
    """Into how many parts a row is cut that is the only one, as in decoding: as of many rows, without arrays.

    cost: of its tiles.  count: of them, at least one.
    """

    def end(parts: int) -> float:
        each = cost / parts + ITEM + (workers.leave if parts > 1 else 0.0)
        return -(-parts * workers.heads // workers.sm_count) * each

    most = min(max(count // LEAST_TILES, 1), MOST_PARTS)
    least = (cost + ITEM) * workers.heads / workers.sm_count
    best, soonest = 1, end(1)
    rounds = [share * workers.sm_count / workers.heads for share in SHARES]
    for wanted in (*map(ceil, rounds), *CUTS, *map(floor, rounds)):
        parts = min(wanted, most)
        if ENOUGH * soonest <= least:
            break
        if 1 < parts <= workers.split_slots and end(parts) < soonest:
            best, soonest = parts, end(parts)
    return best


def ends(of_row: FloatArray, parts: NDArray[np.int64], workers: Workers) -> float:
    """When the work ends, in whole tiles: a bound from below that handing out the longest first comes near to.

    Of the n * w + 1 longest parts, on n multiprocessors, some w + 1 are on one.
    """
    cost = np.repeat(of_row / parts + ITEM + np.where(parts > 1, workers.leave, 0.0), parts)
    cost = -np.sort(-cost)
    at = np.arange(0, len(cost) * workers.heads, workers.sm_count)
    together = (np.arange(len(at)) + 1) * cost[at // workers.heads]
    return max(float(cost.sum()) * workers.heads / workers.sm_count, float(together.max()))


def _ways(of_row: FloatArray, counts: NDArray[np.int64], workers: Workers) -> Iterator[NDArray[np.int64]]:
    """Cuts worth a look: no part longer than a share of the whole time; only as many rows as fill the last round.

    The last round of all rows, or of those that are longer than half of the longest.
    """
    most = np.clip(counts // LEAST_TILES, 1, MOST_PARTS)
    whole = float(of_row.sum()) * workers.heads / workers.sm_count
    shares = np.array(SHARES)[:, None]
    yield from np.minimum(np.maximum(np.ceil(of_row * shares / whole).astype(np.int64), 1), most)
    longest = np.argsort(-of_row, kind="stable")
    long = int((of_row > of_row.max() / 2).sum())
    rounds = (
        long * workers.heads % workers.sm_count,
        len(of_row) * workers.heads % workers.sm_count,
        workers.sm_count,
    )
    for count in dict.fromkeys(min(-(-items // workers.heads), len(of_row)) for items in rounds):
        rows = longest[:count]
        for many in CUTS:
            parts = np.ones(len(of_row), np.int64)
            parts[rows] = np.minimum(many, most[rows])
            yield parts
