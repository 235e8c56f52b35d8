"""The order in which kernels visit the tiles of a block row, and what they may know about each: flags in its entries.

FULL tiles come first: after 64 of their keys row_max (what is subtracted from a row's scores) is close enough to the
maximum for lazy rescaling, also in the masked tiles that follow (kernels/omni/softmax.cuh).
Last come the tiles that some of the block's query rows need not look at.
The Hopper kernel gives each 64 rows of a block to a warpgroup; where none of the 64 sees a key of a tile, at the edges
of windows, documents and images, the warpgroup skips the tile (kernels/omni/sm90/forward/consumer.cuh).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, PARTIAL, BlockMask
from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.schedule.parts import tiles_before

GROUP_ROWS = 64
SKIP_SHIFT = 3  # flag of the block's first 64 rows in entries[:, 0], above the kind and DEAD
LAZY = 64  # flag of entries in which rescaling may be lazy (pieces.py)
LAST = 128  # flag of the last entry of a part of a row


@dataclass(frozen=True)
class Arrangement:
    """entry: which entry stands at each place of the kernels' order, (E,).  flags: of each place, kind and flags of its
    entry, without LAZY.  unskipped: of each place, how many tiles of its row come from it on up to the first skipped
    one.
    """

    entry: NDArray[np.intp]
    flags: IntArray
    unskipped: IntArray


def arrange(block: BlockMask) -> Arrangement:
    """The kernels' order of the entries of a cut (FULL ones are the last ones of their row), and
    their flags but for LAZY (see pieces.py).

    Within a row: FULL entries, the other ones, then those that some group of 64 rows skips; of these the ones of the
    same groups apart from each other, so that the groups skip in turn and work in turn. Entries with dead keys are
    never skipped, because all groups help to clear these; nor are those of blocks that are not two or three whole
    groups.
    """
    offsets, kinds, flags = block.row_offsets, block.kinds, block.entries[:, 0]
    masked = np.flatnonzero(kinds != FULL)
    skipped, skips = _skips(block, kinds, masked)
    if len(offsets) == 2 and not len(skipped):  # one row, as in decoding: the same in fewer steps
        entry = np.concatenate([np.flatnonzero(kinds == FULL), masked])
        before = tiles_before(block.tiles.take(entry))
        return Arrangement(entry, flags.take(entry), (before[-1] - before[:-1]).astype(np.int32))
    ahead = np.searchsorted(skipped, offsets)  # of each row, and in all
    of_row = ahead[1:] - ahead[:-1]
    place = _places(offsets, masked, ahead, skipped[kinds[skipped] == FULL])
    behind = offsets[1:] - of_row  # where the skipped ones of each row begin
    if len(skipped):
        left_out = np.zeros(len(place), np.bool_)
        left_out[skipped] = True
        place -= _counts(left_out)[:-1]
        rows = np.repeat(np.arange(len(of_row)), of_row)
        place[skipped] = _places_of_skipped(rows, skips, behind - ahead[:-1])
        flags = flags.copy()
        flags[skipped] |= skips
    numbers = np.arange(len(kinds))
    entry = np.empty(len(kinds), np.intp)
    entry[place] = numbers
    before = tiles_before(block.tiles.take(entry))
    unskipped = (np.repeat(before[behind], offsets[1:] - offsets[:-1]) - before[:-1]).astype(np.int32)
    return Arrangement(entry, flags.take(entry), np.maximum(unskipped, np.int32(0), out=unskipped))


def ordered(block: BlockMask) -> BlockMask:
    """The same block mask with its entries as `arrange` has them."""
    found = arrange(block)
    entries = block.entries.take(found.entry, axis=0)
    entries[:, 0] = found.flags
    return replace(block, entries=entries)


def shares(block: BlockMask) -> NDArray[np.float64]:
    """Of each entry of `ordered(block)`, the share of its block's groups that look at it."""
    found: NDArray[np.float64] = 1.0 - _count(block.entries[:, 0]).astype(np.float64) * (
        GROUP_ROWS / block.br
    )
    return found


def _count(flags: IntArray) -> IntArray:
    """How many groups skip entries with these flags."""
    bits = flags >> SKIP_SHIFT
    found: IntArray = (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1)
    return found


def _places(
    offsets: IntArray, masked: NDArray[np.intp], ahead: NDArray[np.intp], skipped_full: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The place of each entry: FULL ones of a row, then the others, as they are; less the skipped ones before it.

    masked, skipped_full: the entries that are not FULL, the FULL ones that are skipped, ascending.  ahead: skipped
    ones before each row, and in all. Means nothing for skipped ones.
    """
    all_masked, all_full = _in_rows(masked, offsets), _in_rows(skipped_full, offsets)
    of_row = ahead[1:] - ahead[:-1]
    runs = np.stack([all_masked, offsets[1:] - offsets[:-1] - all_masked], axis=1)
    # The masked entries of a row and its FULL ones change sides.
    shifts = np.stack([runs[:, 1] - all_full, of_row - all_full - all_masked], axis=1) + ahead[:-1, None]
    place = np.repeat(shifts.reshape(-1), runs.reshape(-1))
    place += np.arange(len(place))
    return place


def _in_rows(some: NDArray[np.intp], offsets: IntArray) -> NDArray[np.intp]:
    """How many of some entries, ascending, are in each row."""
    before = np.searchsorted(some, offsets)
    return before[1:] - before[:-1]


def _places_of_skipped(rows: NDArray[np.intp], skips: IntArray, first: NDArray[np.intp]) -> NDArray[np.intp]:
    """The places of skipped entries, given in list order. first: of each row, where they begin, less those of the rows
    before it.

    In each row the first entry of each set of groups, then the second ones: FULL ones, which stand last, first.
    """
    backward, skips = rows[::-1], skips[::-1]
    sets = backward << 6 | skips
    by_set = np.argsort(sets, kind="stable")
    numbers = np.arange(len(rows))
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = np.diff(sets[by_set]) != 0
    number = np.empty_like(numbers)
    number[by_set] = numbers - np.maximum.accumulate(numbers * is_first)
    # One sort key of row, number, groups (most of them first) and set: no row has 2^26 tiles, no mask as many rows.
    turns = np.argsort(backward << 34 | number << 8 | (3 - _count(skips)) << 6 | skips)
    place = np.empty_like(numbers)
    place[turns] = first[rows] + numbers
    return place[::-1]


def _counts(chosen: BoolArray) -> IntArray:
    """How many are chosen before each entry, and in all."""
    found = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(chosen, out=found[1:], dtype=np.int32)
    return found


def _skips(block: BlockMask, kinds: IntArray, masked: NDArray[np.intp]) -> tuple[NDArray[np.intp], IntArray]:
    """The entries that not every group looks at, ascending, and their skip flags. masked: those that are not FULL."""
    if block.br % GROUP_ROWS or not GROUP_ROWS < block.br <= 3 * GROUP_ROWS:
        return np.zeros(0, np.intp), np.zeros(0, np.int32)
    some = masked
    if block.q_len % block.br:  # some groups of the last block may have no row at all
        last = int(block.row_offsets[-2])
        some = np.concatenate([masked[: np.searchsorted(masked, last)], np.arange(last, len(kinds))])
    of_entry = block.entries[some, 0]
    if (of_entry & DEAD).any():
        some = some[of_entry & DEAD == 0]
    row0 = (np.searchsorted(block.row_offsets, some, "right") - 1).astype(np.int32) * np.int32(block.br)
    ranges = _row_ranges(block, kinds, some)
    in_bits = np.flatnonzero((kinds[some] == PARTIAL) & (block.entries[some, 1] >= 0))
    flags = np.zeros(len(some), np.int32)
    for group in range(block.br // GROUP_ROWS):
        row1 = np.minimum(row0 + np.int32(GROUP_ROWS), np.int32(block.q_len))
        skipped = np.ones(len(some), np.bool_)
        for first, stop in ranges:
            skipped &= (row1 <= first) | (row0 >= stop)
        if block.q_len % block.br:
            skipped |= row1 <= row0
        if len(in_bits):
            sees = _seen_in_bits(block, group)
            skipped[in_bits] |= ~sees[block.entries[some[in_bits], 1]]
        flags |= skipped.astype(np.int32) << np.int32(SKIP_SHIFT + group)
        row0 += np.int32(GROUP_ROWS)
    found = np.flatnonzero(flags)
    return some[found], flags[found]


def _row_ranges(block: BlockMask, kinds: IntArray, some: NDArray[np.intp]) -> list[tuple[IntArray, IntArray]]:
    """Ranges of rows, first ones and stops, outside of all of which no row sees a key of these entries."""
    offset = block.entries[some, 2]
    if block.mask.intervals is None:
        first = np.zeros(len(some), np.int32)
        causal = kinds[some] == CAUSAL
        first[causal] = offset[causal] - block.diagonal
        return [(first, np.full(len(some), block.q_len, np.int32))]
    live, last = block.mask.live  # no entry is of other blocks of keys
    begin = live // block.bc * block.bc
    tile = (offset - np.int32(begin)) // np.int32(block.bc)
    found = []
    for start, stop in (
        (start[begin:last], stop[begin:last]) for start, stop in zip(*block.mask.intervals, strict=True)
    ):
        starts = start if stop.all() else np.where(stop == 0, np.int32(block.q_len), start)  # unused: (0, 0)
        found.append((_of_blocks(starts, block, np.minimum)[tile], _of_blocks(stop, block, np.maximum)[tile]))
    return found


def _of_blocks(of_key: IntArray, block: BlockMask, reduce: np.ufunc) -> IntArray:
    """The least or greatest of the keys' numbers in each block of bc keys."""
    found: IntArray = reduce.reduceat(of_key, np.arange(0, len(of_key), block.bc))
    return found


def _seen_in_bits(block: BlockMask, group: int) -> BoolArray:
    """Of each bit tile, whether any row of the group sees any key."""
    rows = block.bit_tiles[:, group * GROUP_ROWS : (group + 1) * GROUP_ROWS]
    found: BoolArray = np.bitwise_or.reduce(rows.reshape(len(rows), -1), axis=1) != 0
    return found
