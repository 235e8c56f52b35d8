"""A block mask by blocks of keys, as the backward pass walks it: for each the tiles of queries that see one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits as masks_bits
from omnicupy.masks.block_mask import KIND, BlockMask, TileArray
from omnicupy.masks.columns import IntArray
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.pairs import PairSet

_TILES_AT_ONCE = 256  # of bits that are turned at once: they are a byte a pair meanwhile


@dataclass(frozen=True, eq=False, slots=True)
class KeyBlocks:
    """For each block of bc keys the list of query tiles to visit: read-only CSR arrays of int32.

    mask: the allowed pairs.  offsets: (k_blocks + 1,); the entries of key block i are offsets[i] : offsets[i + 1].
    entries: (E, 4) of kind | DEAD, payload, first query, queries (at most br, never past q_len), in the order of the
        queries; one tile an entry. They hold exactly the pairs of the BlockMask that they were made of.
    bit_tiles: uint32 (T, bc, br / 32), bit b of word w of row r is query offset 32 * w + b of the key at offset r.
    """

    mask: PairSet
    br: int
    bc: int
    offsets: IntArray
    entries: IntArray
    bit_tiles: TileArray

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
    rows, entries = _single_tiles(block)
    column = entries[:, 2] // np.int32(block.bc)
    k_blocks = -(-block.k_len // block.bc)
    # Stable, so that the queries of a block ascend; of 16-bit keys by radix.
    order = np.argsort(column.astype(np.uint16) if k_blocks < 1 << 16 else column, kind="stable")
    turned = np.empty_like(entries)
    turned[:, :2] = entries[order, :2]
    turned[:, 2] = rows[order] * np.int32(block.br)
    np.minimum(np.int32(block.q_len) - turned[:, 2], np.int32(block.br), out=turned[:, 3])
    offsets = np.zeros(k_blocks + 1, np.int32)
    np.cumsum(np.bincount(column, minlength=k_blocks), out=offsets[1:])
    tiles = _turned(block.bit_tiles, block.br, block.bc)
    for array in (offsets, turned, tiles):
        array.setflags(write=False)
    return KeyBlocks(block.mask, block.br, block.bc, offsets, turned, tiles)


def dead_rows(mask: PairSet) -> BoolArray:
    """Boolean (q_len,): query rows that see no key."""
    q_len, k_len = mask.shape
    if mask.intervals is not None:
        start, stop = (np.bincount(side.ravel(), minlength=q_len + 1) for side in mask.intervals)
        covered = np.cumsum(start - stop)[:q_len]
        return np.equal(covered, 0)
    if mask.bits is not None:
        return np.logical_not(mask.bits.any(axis=1))
    parts = [~mask.dense(*q, 0, k_len).any(axis=1) for q in masks_bits.chunks(q_len, k_len)]
    return np.concatenate(parts)


def _single_tiles(block: BlockMask) -> tuple[IntArray, IntArray]:
    """The query block of each tile, and an entry for each: one that holds several tiles of keys is taken apart.

    The numbers of keys stay as they were; who turns the entries needs none.
    """
    rows, entries = block.rows_of_entries(), block.entries
    tiles = -(-entries[:, 3] // np.int32(block.bc))
    if len(tiles) == 0 or int(tiles.max()) <= 1:
        return rows, entries
    before = np.cumsum(tiles) - tiles
    number = (np.arange(int(tiles.sum())) - np.repeat(before, tiles)).astype(np.int32)
    single = np.repeat(entries, tiles, axis=0)
    single[:, 2] += number * np.int32(block.bc)
    return np.repeat(rows, tiles), single


def _turned(bit_tiles: TileArray, br: int, bc: int) -> TileArray:
    """Bit tiles whose rows are queries, as ones whose rows are keys."""
    turned = np.empty((len(bit_tiles), bc, br // 32), np.uint32)
    for first in range(0, len(bit_tiles), _TILES_AT_ONCE):
        some = np.ascontiguousarray(bit_tiles[first : first + _TILES_AT_ONCE])
        pairs: NDArray[np.uint8] = np.unpackbits(some.view(np.uint8), axis=2, bitorder="little")[..., :bc]
        packed = np.packbits(pairs.transpose(0, 2, 1), axis=2, bitorder="little")
        # packbits lays out its result as it found the bits, queries innermost.
        turned[first : first + len(some)] = np.ascontiguousarray(packed).view("<u4")
    return turned
