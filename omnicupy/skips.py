"""Tiles that some of a block's query rows need not look at: flags in its entries, and their order.

The Hopper kernel gives each 64 rows of a block to a warpgroup. Where none of the 64 sees a key of a tile, at the edges
of windows, documents and images, the warpgroup gives the tile back unread (kernels/omni/sm90/consumer.cuh).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.blockmask import CAUSAL, DEAD, FULL, PARTIAL, BlockMask
from omnicupy.intervals import BoolArray, IntArray

GROUP_ROWS = 64
SKIP_SHIFT = 3  # flag of the block's first 64 rows in entries[:, 0], above the kind and DEAD
SKIP = 7 << SKIP_SHIFT  # flags of all groups


def with_skips(block: BlockMask) -> BlockMask:
    """The same block mask with a flag in each entry for each group of 64 rows that sees none of its keys.

    Flagged entries come first in their row, those of the same groups apart from each other: so the groups skip in turn
    and work in turn. Entries with dead keys get no flag, because all groups help to clear these. Blocks that are not
    whole groups of rows, up to three, are returned as they are.
    """
    if block.br % GROUP_ROWS or not GROUP_ROWS < block.br <= 3 * GROUP_ROWS or not len(block.entries):
        return block
    rows = block.rows_of_entries()
    flags = _flags(block, rows)
    flagged = np.flatnonzero(flags)
    if not len(flagged):
        return block
    order = _order(rows, flags, flagged)
    entries = block.entries[order]
    entries[:, 0] |= flags[order]
    return replace(block, entries=entries)


def leads(block: BlockMask) -> IntArray:
    """Of each entry of `with_skips(block)`, how many entries of its row have a flag from it on, one after another."""
    flagged = (block.entries[:, 0] & SKIP) != 0
    if not flagged.any():
        return np.zeros(len(flagged), np.int32)
    counts = np.concatenate(([0], np.cumsum(flagged)))
    until = np.repeat(counts[block.row_offsets[1:]], np.diff(block.row_offsets))
    found: IntArray = np.where(flagged, until - counts[:-1], 0).astype(np.int32)
    return found


def shares(block: BlockMask) -> NDArray[np.float64]:
    """Of each entry, the share of its block's groups that look at it."""
    found: NDArray[np.float64] = 1.0 - _skipping(block.entries[:, 0]).astype(np.float64) * (
        GROUP_ROWS / block.br
    )
    return found


def _skipping(flags: IntArray) -> IntArray:
    """How many groups skip entries of these flags."""
    bits = flags >> SKIP_SHIFT
    found: IntArray = (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1)
    return found


def _flags(block: BlockMask, rows: IntArray) -> IntArray:
    """The flags of each entry, 0 for those that every group looks at."""
    kinds = block.kinds
    short = block.q_len % block.br  # rows of a last block that is not whole
    looked_at = (kinds != FULL) | (rows == block.q_blocks - 1) if short else kinds != FULL
    some = np.flatnonzero(looked_at & ((block.entries[:, 0] & DEAD) == 0))
    first, stop = _row_range(block, some)
    flags = np.zeros(len(rows), np.int32)
    in_bits = np.flatnonzero((kinds[some] == PARTIAL) & (block.entries[some, 1] >= 0))
    for group in range(block.br // GROUP_ROWS):
        row0 = rows[some] * np.int32(block.br) + np.int32(group * GROUP_ROWS)
        row1 = np.minimum(row0 + GROUP_ROWS, block.q_len)
        skipped = (row1 <= np.maximum(first, row0)) | (row0 >= stop)
        if len(in_bits):
            sees = _seen_in_bits(block, group)
            skipped[in_bits] |= ~sees[block.entries[some[in_bits], 1]]
        flags[some] |= skipped.astype(np.int32) << np.int32(SKIP_SHIFT + group)
    return flags


def _row_range(block: BlockMask, some: NDArray[np.int64]) -> tuple[IntArray, IntArray]:
    """First row and last one + 1 that may see a key of these entries, by what is quick to tell."""
    first = np.zeros(len(some), np.int32)
    stop = np.full(len(some), block.q_len, np.int32)
    piece = block.entries[some, 2]
    if block.mask.intervals is not None:
        starts, stops = block.mask.intervals
        lives = stops > starts
        of_piece = _bounds(block, np.where(lives, starts, block.q_len).min(axis=0), np.minimum)
        first = of_piece[piece]
        stop = _bounds(block, np.where(lives, stops, 0).max(axis=0), np.maximum)[piece]
        return first, stop
    causal = block.kinds[some] == CAUSAL
    first[causal] = block.pieces[piece[causal], 0] - block.diagonal
    return first, stop


def _bounds(block: BlockMask, of_key: IntArray, reduce: np.ufunc) -> IntArray:
    """The least or greatest of a key's numbers over each piece."""
    offset, length = block.pieces.T
    edges = np.stack([offset, offset + length], axis=1).reshape(-1)
    padded = np.append(of_key, of_key[-1:])  # an edge may be the end of the keys
    found: IntArray = reduce.reduceat(padded, edges)[::2].astype(np.int32)
    return found


def _seen_in_bits(block: BlockMask, group: int) -> BoolArray:
    """Of each bit tile, whether any row of the group sees any key."""
    rows = block.bit_tiles[:, group * GROUP_ROWS : (group + 1) * GROUP_ROWS]
    found: BoolArray = np.bitwise_or.reduce(rows.reshape(len(rows), -1), axis=1) != 0
    return found


def _order(rows: IntArray, flags: IntArray, flagged: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries by row; in a row flagged ones first: the first one of each set of flags, then the second ones ..."""
    group = rows[flagged].astype(np.int64) << 6 | flags[flagged]
    by_group = np.argsort(group, kind="stable")
    sizes = np.unique(group, return_counts=True)[1]
    number = np.empty(len(flagged), np.int64)
    number[by_group] = np.arange(len(flagged)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.lexsort((flags[flagged], -_skipping(flags[flagged]), number))
    others = np.flatnonzero(flags == 0)
    order = np.concatenate([flagged[turns], others])
    return order[np.argsort(rows[order], kind="stable")]
