"""Tiles of block rows that see few keys, moved to where those keys begin.

Cuts have tiles at multiples of their width. The 64 rows of a block that holds parts of two windows of 64 keys each see
at most 128 keys in a row, which lie in three such tiles, or in two that begin at the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import PARTIAL, BlockMask
from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.schedule.block_lists import BlockLists, block_lists, key_range
from omnicupy.schedule.order import GROUP_ROWS
from omnicupy.schedule.parts import Workers

MOST_TILES = 8  # of a row: of more, one tile less is no gain
STEP = 2  # keys: the copy of their spans to shared memory begins at a multiple of 16 bytes


def moved_lists(blocks: Sequence[BlockMask], workers: Workers) -> BlockLists:
    """As block_lists, of the same block masks with moved tiles."""
    stop = sum(key_range(blocks))
    return block_lists([moved(block, stop) for block in blocks], workers)


def moved(block: BlockMask, stop: int) -> BlockMask:
    """The same mask with fewer tiles in rows where they need not begin at multiples of their width.

    Such rows hold nothing but neighbouring PARTIAL tiles by the mask's intervals, without dead keys, and are of one
    group, so that nobody skips a tile.  stop: no tile reaches past this key.
    """
    if block.mask.intervals is None or block.br > GROUP_ROWS:
        return block
    rows = _candidates(block)
    if not len(rows):
        return block
    width = int(np.diff(block.row_offsets)[rows].max()) * block.bc
    first = block.entries[block.row_offsets[rows], 2]
    starts, counts = _greedy(_next_seen(block, rows, first, width), block.bc)
    fits = counts < np.diff(block.row_offsets)[rows]
    last = np.take_along_axis(starts, np.maximum(counts - 1, 0)[:, None], 1)[:, 0]
    fits &= first + last + block.bc <= stop
    return _replaced(block, rows[fits], (starts + first[:, None])[fits], counts[fits])


def _candidates(block: BlockMask) -> NDArray[np.intp]:
    """Rows whose tiles may be moved."""
    offsets, entries = block.row_offsets, block.entries
    tiles = np.diff(offsets)
    plain = (entries[:, 0] == PARTIAL) & (entries[:, 1] < 0)
    neighbours = np.ones(len(entries), np.bool_)
    neighbours[1:] = np.diff(entries[:, 2]) == block.bc
    bad = np.concatenate([[0], np.cumsum(~plain)])
    apart = np.concatenate([[0], np.cumsum(~neighbours)])
    found = (tiles > 1) & (tiles <= MOST_TILES) & (bad[offsets[1:]] == bad[offsets[:-1]])
    rows = np.flatnonzero(found)
    together: NDArray[np.intp] = rows[apart[offsets[rows + 1]] == apart[offsets[rows] + 1]]
    return together


def _next_seen(block: BlockMask, rows: NDArray[np.intp], first: IntArray, width: int) -> IntArray:
    """Of each of `width` keys from a row's first tile on, the next one that some query of the row sees, itself or a
    later one; `width` where there is none, also behind them all, int32 (rows, width + 1).
    """
    assert block.mask.intervals is not None
    q0 = (rows * block.br).astype(np.int32)[:, None]
    q1 = np.minimum(q0 + np.int32(block.br), np.int32(block.q_len))
    keys = np.minimum(first[:, None] + np.arange(width, dtype=np.int32), np.int32(block.k_len - 1))
    seen: BoolArray = np.zeros(keys.shape, np.bool_)
    for start, stop in zip(*block.mask.intervals, strict=True):
        seen |= (start[keys] < q1) & (stop[keys] > q0)
    seen &= first[:, None] + np.arange(width, dtype=np.int32) < block.k_len
    found = np.full((len(rows), width + 1), width, np.int32)
    found[:, :-1][seen] = np.broadcast_to(np.arange(width, dtype=np.int32), seen.shape)[seen]
    later: IntArray = np.minimum.accumulate(found[:, ::-1], axis=1)[:, ::-1]
    return later


def _greedy(next_seen: IntArray, bc: int) -> tuple[IntArray, IntArray]:
    """Where each row's tiles begin if each begins at the next key that is seen, and how many there are."""
    width = next_seen.shape[1] - 1
    at, starts = next_seen[:, 0], []
    counts = np.zeros(len(at), np.int32)
    while (at < width).any():
        start = at // STEP * STEP
        starts.append(start)
        counts += at < width
        at = np.take_along_axis(next_seen, np.minimum(start + bc, width)[:, None], 1)[:, 0]
    return np.stack(starts or [at], axis=1), counts


def _replaced(block: BlockMask, rows: NDArray[np.intp], starts: IntArray, counts: IntArray) -> BlockMask:
    """The block mask with other tiles in some rows. starts: of each of these rows, `counts` of which count."""
    if not len(rows):
        return block
    tiles = np.diff(block.row_offsets)
    row_of_entry = block.rows_of_entries()
    changed = np.zeros(len(tiles), np.bool_)
    changed[rows] = True
    kept = block.entries[~changed[row_of_entry]]
    first = starts[np.arange(starts.shape[1]) < counts[:, None]]
    made = np.empty((len(first), 4), np.int32)
    made[:, 0], made[:, 1], made[:, 2] = PARTIAL, -1, first
    made[:, 3] = np.minimum(block.bc, block.k_len - first)
    owner = np.concatenate([row_of_entry[~changed[row_of_entry]], np.repeat(rows, counts)])
    tiles[rows] = counts
    offsets = np.zeros(len(tiles) + 1, block.row_offsets.dtype)
    np.cumsum(tiles, out=offsets[1:])
    entries = np.concatenate([kept, made]).take(np.argsort(owner, kind="stable"), axis=0)
    return replace(block, row_offsets=offsets, entries=entries)
