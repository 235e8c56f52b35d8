"""The order in which kernels visit the tiles of a block row, and what they may know about each: flags in its entries.

FULL tiles come first: after 64 keys of them a row's peak is no accident of a few keys and may stand, in masked
tiles, too (kernels/omni/softmax.cuh). Last come the tiles that some of the block's query rows need not look at. The
Hopper kernel gives each 64 rows of a block to a warpgroup; where none of the 64 sees a key of a tile, at the edges of
windows, documents and images, the warpgroup gives the tile back unread (kernels/omni/sm90/consumer.cuh).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.blockmask import CAUSAL, DEAD, FULL, KIND, PARTIAL, BlockMask
from omnicupy.intervals import BoolArray, IntArray
from omnicupy.schedule import number_in_run

GROUP_ROWS = 64
SKIP_SHIFT = 3  # flag of the block's first 64 rows in entries[:, 0], above the kind and DEAD
STANDS = 64  # flag of entries that come after STANDING_KEYS keys in FULL ones of their part of a row
# The peak of 32 keys is too often far below the row's: weights far above 1, rounded, took one case in 15,857 over its
# budget.
STANDING_KEYS = 64


@dataclass(frozen=True)
class Arrangement:
    """entry: which entry stands at each place of the kernels' order, (E,).  words: kind and flags of each entry,
    without STANDS.  common: of each place, how many entries of its row come from it on up to the first skipped one.
    """

    entry: IntArray
    words: IntArray
    common: IntArray


def arrange(block: BlockMask) -> Arrangement:
    """The kernels' order of the entries of a cut (entry i is piece i), and their flags but for STANDS (see `standing`).

    Within a row: FULL entries, the other ones, then those that some group of 64 rows skips; of these the ones of the
    same groups apart from each other, so that the groups skip in turn and work in turn. Entries with dead keys are
    never skipped, because all groups help to clear these; nor are those of blocks that are not two or three whole
    groups.
    """
    offsets, rows = block.row_offsets, block.rows_of_entries()
    lengths = offsets[1:] - offsets[:-1]
    skips = _skips(block, rows)
    skipped = np.flatnonzero(skips)
    skipped_of_row = np.bincount(rows[skipped], minlength=len(lengths)).astype(np.int32)
    place = _places(offsets, block.kinds == FULL, skips, skipped)
    if len(skipped):
        place[skipped] = _places_of_skipped(rows[skipped], skips[skipped], offsets[1:] - skipped_of_row)
    common = np.repeat(offsets[1:] - skipped_of_row, lengths)
    common -= np.arange(len(rows), dtype=np.int32)
    entry = np.empty_like(place)
    entry[place] = np.arange(len(rows), dtype=np.int32)
    return Arrangement(entry, block.entries[:, 0] | skips, np.maximum(common, np.int32(0), out=common))


def standing(words: IntArray, firsts: IntArray, bc: int) -> BoolArray:
    """Of each entry in the kernels' order, whether peaks may stand there, STANDING_KEYS keys of FULL tiles behind.

    words: of all entries, (E,).  firsts: the first entry of each part of a block row, also of parts without entries;
    one thread block works on a part, whose peaks start anew.
    """
    full = words & KIND == FULL
    starts = np.sort(np.append(firsts, np.array([0, len(words)], np.int32)))
    found: BoolArray = _ranks(full, starts)[0] * bc >= STANDING_KEYS
    return found


def ordered(block: BlockMask) -> BlockMask:
    """The same block mask with its entries as `arrange` has them."""
    found = arrange(block)
    entries = block.entries.take(found.entry, axis=0)
    entries[:, 0] = found.words.take(found.entry)
    return replace(block, entries=entries)


def shares(block: BlockMask) -> NDArray[np.float64]:
    """Of each entry of `ordered(block)`, the share of its block's groups that look at it."""
    found: NDArray[np.float64] = 1.0 - _count(block.entries[:, 0]).astype(np.float64) * (
        GROUP_ROWS / block.br
    )
    return found


def _count(words: IntArray) -> IntArray:
    """How many groups skip entries with these words."""
    bits = words >> SKIP_SHIFT
    found: IntArray = (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1)
    return found


def _places(offsets: IntArray, full: BoolArray, skips: IntArray, skipped: NDArray[np.int64]) -> IntArray:
    """The place of each entry in the new order, but for the skipped ones: FULL ones, then the others, as they are."""
    lengths = offsets[1:] - offsets[:-1]
    first = full & (skips == 0) if len(skipped) else full
    before = _counts(first)
    at_start = before[offsets]
    # A first entry is behind the first ones of its row; another one behind all of them and the others before it.
    others = np.arange(len(first), dtype=np.int32) - before[:-1]
    if not len(skipped):
        others += np.repeat(at_start[1:], lengths)
    else:
        left_out = _counts(skips != 0)
        others -= left_out[:-1]
        others += np.repeat(at_start[1:] + left_out[offsets[:-1]], lengths)
    return np.where(first, np.repeat(offsets[:-1] - at_start[:-1], lengths) + before[:-1], others)


def _places_of_skipped(rows: IntArray, skips: IntArray, first: IntArray) -> IntArray:
    """The places of skipped entries, given in list order. first: the first of them, in each row.

    In each row the first entry of each set of groups, then the second ones: FULL ones, which stand last, first.
    """
    rows, skips = rows[::-1], skips[::-1]
    sets = rows << np.int32(6) | skips
    by_set = np.argsort(sets, kind="stable")
    number = np.empty(len(rows), np.int64)
    number[by_set] = number_in_run(np.unique(sets, return_counts=True)[1])
    turns = np.lexsort((skips, -_count(skips), number, rows))
    of_row = np.bincount(rows, minlength=len(first))
    place = np.empty(len(rows), np.int32)
    place[turns] = np.repeat(first, of_row) + number_in_run(of_row)
    return place[::-1]


def _counts(chosen: BoolArray) -> IntArray:
    """How many are chosen before each entry, and in all."""
    found = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(chosen, out=found[1:], dtype=np.int32)
    return found


def _ranks(chosen: BoolArray, offsets: IntArray) -> tuple[IntArray, IntArray]:
    """The number of chosen entries before each entry in its row, and of those in each row."""
    counts = _counts(chosen)
    at_start = counts[offsets]
    return counts[:-1] - np.repeat(at_start[:-1], offsets[1:] - offsets[:-1]), at_start[1:] - at_start[:-1]


def _skips(block: BlockMask, rows: IntArray) -> IntArray:
    """The skip flags of each entry, 0 for those that every group looks at."""
    flags = np.zeros(len(rows), np.int32)
    if block.br % GROUP_ROWS or not GROUP_ROWS < block.br <= 3 * GROUP_ROWS:
        return flags
    looked_at = block.kinds != FULL
    if block.q_len % block.br:  # some groups of the last block may have no row at all
        looked_at |= rows == block.q_blocks - 1
    some = np.flatnonzero(looked_at & ((block.entries[:, 0] & DEAD) == 0))
    ranges = _row_ranges(block, some)
    in_bits = np.flatnonzero((block.kinds[some] == PARTIAL) & (block.entries[some, 1] >= 0))
    for group in range(block.br // GROUP_ROWS):
        row0 = rows[some] * np.int32(block.br) + np.int32(group * GROUP_ROWS)
        row1 = np.minimum(row0 + np.int32(GROUP_ROWS), np.int32(block.q_len))
        skipped = row1 <= row0
        apart = np.ones(len(some), np.bool_)
        for first, stop in ranges:
            apart &= (row1 <= first) | (row0 >= stop)
        skipped |= apart
        if len(in_bits):
            sees = _seen_in_bits(block, group)
            skipped[in_bits] |= ~sees[block.entries[some[in_bits], 1]]
        flags[some] |= skipped.astype(np.int32) << np.int32(SKIP_SHIFT + group)
    return flags


def _row_ranges(block: BlockMask, some: NDArray[np.int64]) -> list[tuple[IntArray, IntArray]]:
    """Ranges of rows, first ones and stops, outside of all of which no row sees a key of these entries."""
    offset, length = block.pieces[:, 0].take(some), block.pieces[:, 1].take(some)
    if block.mask.intervals is None:
        first = np.zeros(len(some), np.int32)
        causal = block.kinds[some] == CAUSAL
        first[causal] = offset[causal] - block.diagonal
        return [(first, np.full(len(some), block.q_len, np.int32))]
    low, high = offset // block.bc, (offset + length - 1) // block.bc  # blocks of keys that the piece lies in
    found = []
    for start, stop in zip(*block.mask.intervals, strict=True):
        lives = stop > start
        starts = _of_blocks(np.where(lives, start, np.int32(block.q_len)), block, np.minimum)
        stops = _of_blocks(np.where(lives, stop, np.int32(0)), block, np.maximum)
        found.append((np.minimum(starts[low], starts[high]), np.maximum(stops[low], stops[high])))
    return found


def _of_blocks(of_key: IntArray, block: BlockMask, reduce: np.ufunc) -> IntArray:
    """The least or greatest of the keys' numbers in each block of bc keys."""
    whole = block.k_len // block.bc * block.bc
    found = reduce.reduce(of_key[:whole].reshape(-1, block.bc), axis=1)
    if whole < block.k_len:
        found = np.append(found, reduce.reduce(of_key[whole:]))
    return np.asarray(found, np.int32)


def _seen_in_bits(block: BlockMask, group: int) -> BoolArray:
    """Of each bit tile, whether any row of the group sees any key."""
    rows = block.bit_tiles[:, group * GROUP_ROWS : (group + 1) * GROUP_ROWS]
    found: BoolArray = np.bitwise_or.reduce(rows.reshape(len(rows), -1), axis=1) != 0
    return found
