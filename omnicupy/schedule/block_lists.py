"""Block masks -> one host buffer that holds every array the kernels read, in the kernels' layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnicupy.jit.spec import round_up
from omnicupy.masks.block_mask import CAUSAL, DEAD, KIND, PARTIAL, BlockMask
from omnicupy.masks.intervals import IntArray
from omnicupy.schedule.order import LAST, LAZY, Arrangement, arrange
from omnicupy.schedule.parts import Schedule, Workers, costs_of, schedule
from omnicupy.schedule.pieces import Pieces, pieces

KEY_PAD = 256  # spans and dead bits are padded: a tile may read past k_len, but finds nothing there
SPAN_BYTES = 8  # {first row, number of rows}
ALIGN_BYTES = 16  # of every array in the buffer: kernels copy 16 bytes at a time

# name of the array (and of its pointer in the kernel's struct) -> dtype
ARRAYS = {
    "row_offsets": np.int32,
    "entries": np.int32,
    "parts": np.int32,
    "splits": np.int32,
    "bit_tiles": np.uint32,
    "spans": np.int32,
    "dead": np.uint32,
}
_DTYPES = {**ARRAYS, "dead_rows": np.uint32, "ranks": np.int32}  # the last two are of lists by blocks of keys
_STRUCT_FIELDS = (
    *("q_blocks", "mask_batch", "diagonal", "n_spans", "k_padded"),
    *("tiers", "n_slots", "n_split_rows"),
)


@dataclass(frozen=True)
class BlockLists:
    """`mask_batch` block masks of one tile size; block row b * q_blocks + i is query block i of mask b.

    buffer: uint8, all arrays one after the other.  offsets: byte offset of each array of ARRAYS, a multiple
    of 16.
    diagonal: that of every CAUSAL entry.  n_spans: intervals a key, 0 when no mask has the interval form.
    k_first, k_padded: the per-key arrays are of k_padded keys from k_first on, multiples of 256: of all listed tiles.
    tiers, n_slots, n_split_rows: see Schedule.
    section: heads that are to be worked on side by side, 0 where any number may be.
    Shapes: row_offsets (mask_batch * q_blocks + 1,), entries (E, 4) of {kind | flags | keys << 8, payload, first key,
    unskipped} as order.py orders them and pieces.py cuts them, parts (P, 4) of {first query, mask, first entry, tiles},
    splits (P, 4),
    bit_tiles (T, br, bc / 32), spans (mask_batch, n_spans, k_padded, 2) of {first row, number of rows}, dead
    (mask_batch, k_padded / 32), bit set where a key < k_len is seen by no row of that mask.
    """

    buffer: NDArray[np.uint8]
    offsets: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    br: int
    bc: int
    q_blocks: int
    mask_batch: int
    diagonal: int
    n_spans: int
    k_padded: int
    tiers: tuple[int, ...]
    n_slots: int
    n_split_rows: int
    k_first: int = 0
    section: int = 0

    @property
    def struct_fields(self) -> dict[str, Any]:
        """What a kernel's parameter struct takes over as it is, by the names of its fields."""
        return {name: getattr(self, name) for name in _STRUCT_FIELDS}

    @property
    def n_parts(self) -> int:
        """Parts that each head works on."""
        return self.shapes["parts"][0]

    def array(self, name: str) -> NDArray[Any]:
        """A view of one array of the buffer."""
        return _view(self.buffer, self.offsets[name], self.shapes[name], _DTYPES[name])

    def without_buffer(self) -> BlockLists:
        """The sizes alone, for the device copy to keep."""
        return replace(self, buffer=np.zeros(0, np.uint8))


class _Placed(NamedTuple):
    """A cut, the kernels' order of its entries, and the keys and tiles of the entry at each place."""

    block: BlockMask
    arrangement: Arrangement
    keys: IntArray
    tiles: IntArray

    @classmethod
    def of(cls, block: BlockMask) -> _Placed:
        arrangement = arrange(block)
        keys, tiles = (array.take(arrangement.entry) for array in (block.entries[:, 3], block.tiles))
        return cls(block, arrangement, keys, tiles)


def block_lists(blocks: Sequence[BlockMask], workers: Workers) -> BlockLists:
    """One block mask, or one per batch element (all of one shape and tile size), in one buffer.

    workers: who works on each block row; decides their order and how they are cut.
    """
    blocks, diagonal = on_one_diagonal(blocks)
    placed = [_Placed.of(block) for block in blocks]
    first = blocks[0]
    batch, q_blocks = len(blocks), first.q_blocks
    k_first, k_padded = key_range(blocks)
    n_spans = max(0 if b.mask.intervals is None else len(b.mask.intervals[0]) for b in blocks)
    rows = offsets_of_all([b.row_offsets for b in blocks])
    flags = joined([one.arrangement.flags for one in placed])
    tiles = joined([one.tiles for one in placed])
    costs = costs_of(joined([one.keys for one in placed]), flags & KIND, first.bc)
    work = schedule(rows, costs, workers, tiles)
    cut = pieces(flags, tiles, work.first, first.bc)
    shapes: dict[str, tuple[int, ...]] = {
        "row_offsets": (batch * q_blocks + 1,),
        "entries": (len(cut.entry), 4),
        "parts": (len(work.rows), 4),
        "splits": (len(work.rows), 4),
        "bit_tiles": (sum(len(b.bit_tiles) for b in blocks), first.br, first.bc // 32),
        "spans": (batch, n_spans, k_padded, 2),
        "dead": (batch, k_padded // 32),
    }
    lists = BlockLists(
        *places(shapes),
        shapes,
        first.br,
        first.bc,
        q_blocks,
        batch,
        diagonal,
        n_spans,
        k_padded,
        work.tiers,
        work.n_slots,
        work.n_split_rows,
        k_first,
    )
    lists.array("row_offsets")[...] = np.searchsorted(cut.entry, rows)
    _fill_entries(lists, placed, cut)
    fill_parts(lists, work, cut, first.br)
    fill_spans(lists, blocks)
    _fill_dead(lists, blocks)
    return lists


def places(shapes: dict[str, tuple[int, ...]]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """A buffer of zeros for arrays of these shapes, and where in it each begins."""
    offsets: dict[str, int] = {}
    size = 0
    for name, shape in shapes.items():
        offsets[name] = size
        size += round_up(4 * prod(shape), ALIGN_BYTES)
    return np.zeros(size, np.uint8), offsets


def _view(buffer: NDArray[np.uint8], offset: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.ndarray(shape, dtype, buffer, offset)


def joined(arrays: Sequence[IntArray]) -> IntArray:
    """One after the other."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def offsets_of_all(offsets: Sequence[IntArray]) -> IntArray:
    """Where the entries of each row of all masks begin, in one list. offsets: of each mask, in its own list."""
    if len(offsets) == 1:
        return offsets[0]
    before = np.cumsum([int(one[-1]) for one in offsets])
    later = [one[1:] + np.int32(first) for one, first in zip(offsets[1:], before, strict=False)]
    return np.concatenate([offsets[0], *later])


def _fill_entries(lists: BlockLists, placed: Sequence[_Placed], cut: Pieces) -> None:
    """The entries as kernels read them, one mask after the other."""
    entries, bc = lists.array("entries"), np.int32(lists.bc)
    ahead = cut.tiles_ahead
    keys = joined([one.keys for one in placed]).take(cut.entry)
    keys = np.minimum(keys - ahead * bc, cut.tiles * bc)
    entries[:, 0] = joined([one.arrangement.flags for one in placed]).take(cut.entry)
    entries[:, 0] |= keys << np.int32(8)
    entries[:, 0] |= cut.lazy * np.int32(LAZY)
    entries[:, 1] = -1 if not len(lists.array("bit_tiles")) else _payloads(placed).take(cut.entry)
    entries[:, 2] = joined([one.block.entries[:, 2].take(one.arrangement.entry) for one in placed]).take(
        cut.entry
    )
    entries[:, 2] += ahead * bc
    unskipped = joined([one.arrangement.unskipped for one in placed]).take(cut.entry)
    np.maximum(unskipped - ahead, 0, out=entries[:, 3])
    tiles = [one.block.bit_tiles for one in placed]
    np.concatenate(tiles, out=lists.array("bit_tiles"))


def _payloads(placed: Sequence[_Placed]) -> IntArray:
    """Of each entry, the bit tiles of all masks in one list."""
    found, before = [], 0
    for one in placed:
        payload = one.block.entries[:, 1].take(one.arrangement.entry)
        found.append(np.where(payload >= 0, payload + np.int32(before), payload))
        before += len(one.block.bit_tiles)
    return joined(found)


def fill_parts(lists: BlockLists, work: Schedule, cut: Pieces, owned: int) -> None:
    """The parts, the mark of the last entry of each, and how rows are split. owned: tokens of a row."""
    parts = lists.array("parts")
    mask, block = np.divmod(work.rows, np.int32(lists.q_blocks))
    parts[:, 0] = block * owned
    parts[:, 1] = mask
    parts[:, 2] = cut.first_from(work.first)
    parts[:, 3] = work.end - work.first
    lists.array("entries")[cut.first_from(work.end[work.end > work.first]) - 1, 0] |= LAST
    lists.array("splits")[...] = work.splits


def key_range(blocks: Sequence[BlockMask]) -> tuple[int, int]:
    """First key and number of keys of the per-key arrays: those of all listed tiles, in whole units of KEY_PAD."""
    bc = blocks[0].bc
    first = min(block.mask.live[0] for block in blocks) // bc * bc // KEY_PAD * KEY_PAD
    last = max(1, *(block.mask.live[1] for block in blocks))
    return first, round_up(round_up(last, bc), KEY_PAD) - first


def fill_spans(lists: BlockLists, blocks: Sequence[BlockMask]) -> None:
    """The spans of each key."""
    spans = lists.array("spans")
    for b, block in enumerate(blocks):
        if block.mask.intervals is not None:
            live, last = block.mask.live  # other keys have no spans, and the buffer holds zeros
            start, stop = (side[:, live:last] for side in block.mask.intervals)
            mine = spans[b, : len(start), live - lists.k_first : last - lists.k_first]
            mine[..., 0] = start
            np.subtract(stop, start, out=mine[..., 1])


def _fill_dead(lists: BlockLists, blocks: Sequence[BlockMask]) -> None:
    """The bits of keys that no row sees."""
    dead = lists.array("dead").view(np.uint8)
    for b, block in enumerate(blocks):
        if len(block.entries) and not (block.entries[:, 0] & DEAD).any():
            continue  # no visited tile holds a dead key: the kernels never read the bits
        bits = np.packbits(
            block.mask.dead_keys(lists.k_first, lists.k_first + lists.k_padded), bitorder="little"
        )
        dead[b, : len(bits)] = bits


def on_one_diagonal(blocks: Sequence[BlockMask]) -> tuple[Sequence[BlockMask], int]:
    """The same block masks with CAUSAL entries of one diagonal alone, and that one."""
    if len({b.diagonal for b in blocks}) == 1:
        return blocks, blocks[0].diagonal
    diagonal = next((b.diagonal for b in blocks if (b.kinds == CAUSAL).any()), blocks[0].diagonal)
    return [_on_diagonal(b, diagonal) for b in blocks], diagonal


def _on_diagonal(block: BlockMask, diagonal: int) -> BlockMask:
    """The same block mask without CAUSAL entries of another diagonal: a launch has one diagonal for all."""
    causal = block.kinds == CAUSAL
    if block.diagonal == diagonal or not causal.any():
        return block
    entries = block.entries.copy()
    entries[causal, 0] += PARTIAL - CAUSAL
    if block.mask.intervals is not None:
        return replace(block, entries=entries)
    # The bits form needs a bit tile for each of them; they differ only by where the diagonal enters the tile.
    enters = block.rows_of_entries()[causal] * block.br + block.diagonal - entries[causal, 2]
    distinct, index = np.unique(enters, return_inverse=True)
    entries[causal, 1] = len(block.bit_tiles) + index.astype(np.int32)
    rows, keys = np.arange(block.br), np.arange(block.bc)
    visible = keys <= distinct[:, None, None] + rows[:, None]
    tiles = np.packbits(visible, axis=2, bitorder="little").view("<u4")
    return replace(block, entries=entries, bit_tiles=np.concatenate([block.bit_tiles, tiles]))
