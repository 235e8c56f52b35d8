"""A block mask by blocks of keys, as the backward pass walks it: for each the tiles of queries that see one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, FULL, KIND, PARTIAL, BlockMask, TileArray
from omnicupy.masks.columns import IntArray
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.pairs import PairSet

_TILES_AT_ONCE = 256  # of bits that are turned at once: they stay in the cache


@dataclass(frozen=True, eq=False, slots=True)
class KeyBlocks:
    """For each block of bc keys the list of query tiles to visit: read-only CSR arrays of int32.

    mask: the allowed pairs.  offsets: (k_blocks + 1,); the entries of key block i are offsets[i] : offsets[i + 1].
    entries: (E, 4) of kind | DEAD, payload, first query, queries (never past q_len), in the order of the queries. An
        entry is a tile of br queries, or of FULL ones a run of neighbours, as long as it goes on. They hold exactly the
        pairs of the BlockMask that they were made of.
    tiles: of each entry, (E,): one, or those of a run.
    bit_tiles: uint32 (T, bc, br / 32), bit b of word w of row r is query offset 32 * w + b of the key at offset r.
    dead_rows: boolean (q_len,), query rows that see no key.
    """

    mask: PairSet
    br: int
    bc: int
    offsets: IntArray
    entries: IntArray
    tiles: IntArray
    bit_tiles: TileArray
    dead_rows: BoolArray

    @property
    def q_blocks(self) -> int:
        """Blocks of query rows, the last one maybe short."""
        return -(-self.mask.shape[0] // self.br)

    @property
    def k_blocks(self) -> int:
        """Blocks of keys, the last one maybe short."""
        return len(self.offsets) - 1

    @property
    def kinds(self) -> IntArray:
        """Kind of each entry without the DEAD flag, (E,)."""
        kinds: IntArray = self.entries[:, 0] & KIND
        return kinds


def by_key_blocks(block: BlockMask) -> KeyBlocks:
    """The same tiles by their blocks of keys. br must be a multiple of 32, as bit tiles hold words of queries."""
    if block.br % 32:
        raise ValueError(
            f"by_key_blocks: br must be a multiple of 32, got {block.br}; cut the mask for another tile"
        )
    rows, entries = block.rows_of_entries(), block.entries
    lone = np.flatnonzero(block.kinds != FULL)
    column, first, stop = _runs_of_full(block)
    count = len(column)
    columns = np.concatenate([column, entries[lone, 2] // np.int32(block.bc)])
    firsts = np.concatenate([first, rows[lone]])
    k_blocks = -(-block.k_len // block.bc)
    order = np.argsort(columns.astype(np.int64) * block.q_blocks + firsts)  # each of another tile
    turned = np.empty((len(order), 4), np.int32)
    turned[:count, :2], turned[:count, 3] = (FULL, -1), stop
    turned[count:, :2], turned[count:, 3] = entries[lone, :2], rows[lone] + 1
    turned[:, 2] = firsts
    turned[:, 2:] *= np.int32(block.br)
    np.minimum(turned[:, 3], np.int32(block.q_len), out=turned[:, 3])
    turned[:, 3] -= turned[:, 2]
    turned = turned.take(order, axis=0)  # whole entries: far faster than some of their columns
    offsets = np.zeros(k_blocks + 1, np.int32)
    np.cumsum(np.bincount(columns, minlength=k_blocks), out=offsets[1:])
    tiles = -(-turned[:, 3] // np.int32(block.br))
    bit_tiles = _turned(block.bit_tiles, block.br, block.bc)
    for array in (offsets, turned, tiles, bit_tiles):
        array.setflags(write=False)
    return KeyBlocks(block.mask, block.br, block.bc, offsets, turned, tiles, bit_tiles, dead_rows(block))


def _runs_of_full(block: BlockMask) -> tuple[IntArray, IntArray, IntArray]:
    """The runs of FULL tiles down the rows: block of keys, first block row and the one past the last, int32 (R,) each.

    In no order. A run begins where a row has a FULL tile and the row before it has none: what costs is how many entries
    begin and end, not how many tiles they have.
    """
    full = np.flatnonzero(block.kinds == FULL)
    rows, entries = block.rows_of_entries()[full].astype(np.int64), block.entries[full]
    first = entries[:, 2] // np.int32(block.bc)
    stop = first - (-entries[:, 3] // np.int32(block.bc))
    width = -(-block.k_len // block.bc) + 1
    # Along each row, by how much "is FULL here" less "is FULL in the row before" changes, and where.
    here = rows * width
    places = np.concatenate([here + first, here + stop, here + width + first, here + width + stop])
    order = np.argsort(places, kind="stable")  # sorted runs are merged
    places = places[order]
    signs = np.where((order // max(1, len(full)) % 3) == 0, 1, -1)
    level = np.cumsum(signs)
    last = np.flatnonzero(
        places[1:] != places[:-1]
    )  # of each place; behind the last one of all nothing changes
    level, begin, end = level[last], places[last], places[last + 1]
    begins, ends = (_spread(begin[level == sign], end[level == sign], width) for sign in (1, -1))
    # Down each block of keys, beginnings and ends take turns.
    found = [np.lexsort(one[::-1]) for one in (begins, ends)]
    column, row = (one.take(found[0]) for one in begins)
    return column, row, ends[1].take(found[1])


def _spread(begin: Any, end: Any, width: int) -> tuple[IntArray, IntArray]:
    """Column and row of each place of these ranges, each inside a row of `width` places."""
    lengths = end - begin
    places = np.arange(int(lengths.sum())) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    row, column = np.divmod(places, width)
    return column.astype(np.int32), row.astype(np.int32)


def dead_rows(block: BlockMask) -> BoolArray:
    """Boolean (q_len,): query rows that see no key."""
    q_len, mask = block.q_len, block.mask
    if mask.intervals is not None:
        start, stop = (np.concatenate(one) for one in zip(*map(_unions, *mask.intervals), strict=True))
        return outside(start, stop, q_len)
    if mask.bits is not None:
        return np.logical_not(mask.bits.any(axis=1))
    rows, first, kinds = block.rows_of_entries(), block.entries[:, 2], block.kinds
    seen = np.zeros((block.q_blocks, block.br), np.bool_)
    seen[rows[kinds == FULL]] = True
    causal = kinds == CAUSAL
    begin = np.full(
        block.q_blocks, seen.size
    )  # from which row on a CAUSAL tile of the block has a visible key
    np.minimum.at(begin, rows[causal], first[causal] - block.diagonal)
    seen |= np.arange(seen.size).reshape(seen.shape) >= begin[:, None]
    partial = rows[kinds == PARTIAL]
    if len(partial):
        of_tiles: Any = block.bit_tiles.any(axis=2)
        of_entries = of_tiles[block.entries[kinds == PARTIAL, 1]]
        runs = np.flatnonzero(np.diff(partial, prepend=-1))
        seen[partial[runs]] |= np.logical_or.reduceat(of_entries, runs, axis=0)
    return np.logical_not(seen.ravel()[:q_len])


def _unions(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """The intervals of neighbouring keys as one as long as they overlap or touch: of most masks few are left."""
    apart = start[1:] > stop[:-1]
    apart |= stop[1:] < start[:-1]
    first = np.flatnonzero(np.append(len(start) > 0, apart))
    return np.minimum.reduceat(start, first), np.maximum.reduceat(stop, first)


def outside(start: NDArray[Any], stop: NDArray[Any], length: int) -> BoolArray:
    """Boolean (length,): what no interval covers."""
    order = np.argsort(start, kind="stable")
    begin = np.append(start[order], length)
    end = np.maximum.accumulate(np.append(0, stop[order]))  # of all before
    outside = np.zeros(length, np.bool_)
    for gap in np.flatnonzero(begin > end).tolist():
        outside[end[gap] : begin[gap]] = True
    return outside


def _turned(bit_tiles: TileArray, br: int, bc: int) -> TileArray:
    """Bit tiles whose rows are queries, as ones whose rows are keys."""
    number, _, words = bit_tiles.shape
    turned = np.empty((number, bc, br // 32), np.uint32)
    for first in range(0, number, _TILES_AT_ONCE):
        some = bit_tiles[first : first + _TILES_AT_ONCE]
        squares = some.reshape(len(some), br // 32, 32, words).transpose(2, 0, 3, 1)
        keys = _transposed(np.array(squares, order="C")).transpose(1, 2, 0, 3)
        turned[first : first + len(some)] = keys.reshape(len(some), 32 * words, br // 32)[:, :bc]
    return turned


def _transposed(squares: TileArray) -> TileArray:
    """32 x 32 bits each, (32, ...), which are overwritten: bit c of word r becomes bit r of word c.

    Quarters are swapped, then quarters of these (Warren, Hacker's Delight, section 7-3).
    """
    for half, low in ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        pairs = squares.reshape(16 // half, 2, half, *squares.shape[1:])
        upper, lower = pairs[:, 0], pairs[:, 1]
        swap = ((upper >> np.uint32(half)) ^ lower) & np.uint32(low)
        upper ^= swap << np.uint32(half)
        lower ^= swap
    return squares
