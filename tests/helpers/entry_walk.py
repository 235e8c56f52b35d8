"""The walk over the tiles of block lists, transcribed from kernels/omni/entries.cuh, and the lists tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from omnicupy.masks.block_mask import FULL, KIND, BlockMask
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.order import LAST, LAZY

FLAGS = 255  # kind and flags of an entry's first word


class Tile(NamedTuple):
    """One tile: kind and flags, payload, first key, and keys that exist of it."""

    flags: int
    payload: int
    first: int
    keys: int


class EntryWalk:
    """As the struct of this name: no entry is read before it is due, or once the part has ended."""

    def __init__(self, entries: np.ndarray, first: int, tiles: int, step: int) -> None:
        self.entries, self.index, self.step = entries, first, step
        self.next = [0, 0, 0]
        if tiles:
            self.fetch()

    def fetch(self) -> None:
        self.next = [int(word) for word in self.entries[self.index, :3]]

    def has_next(self) -> bool:
        return self.next[0] != 0

    def take(self) -> Tile:
        packed, payload, first = self.next
        if packed >= self.step + 1 << 8:
            self.next[0] -= self.step << 8
            self.next[2] += self.step
        elif packed & LAST:
            self.next[0] = 0
        else:
            self.index += 1
            self.fetch()
        return Tile(packed & FLAGS, payload, first, min(packed >> 8, self.step))


def tiles_of_part(lists: BlockLists, part: int) -> list[Tile]:
    """What a thread block walks."""
    _, _, first, tiles = (int(word) for word in lists.array("parts")[part])
    walk = EntryWalk(lists.array("entries"), first, tiles, lists.bc)
    found = []
    while walk.has_next():
        found.append(walk.take())
    assert len(found) == tiles
    return found


def tiles_of_row(lists: BlockLists, row: int) -> Iterator[Tile]:
    """What the plain kernel walks: the entries of a block row, without the parts."""
    first, end = lists.array("row_offsets")[row : row + 2]
    for packed, payload, k0, _ in lists.array("entries")[first:end].tolist():
        for ahead in range(0, packed >> 8, lists.bc):
            yield Tile(packed & FLAGS, payload, k0 + ahead, min((packed >> 8) - ahead, lists.bc))


def without_place(tile: Tile) -> Tile:
    """Without the flags that depend on the part."""
    return tile._replace(flags=tile.flags & ~(LAZY | LAST))


def tile_by_tile(blocks: BlockMask) -> BlockMask:
    """The same block mask with an entry for each tile."""
    entries, offsets = [], [0]
    for row in range(blocks.q_blocks):
        for kind, payload, first, keys in blocks.entries[
            blocks.row_offsets[row] : blocks.row_offsets[row + 1]
        ].tolist():
            assert keys <= blocks.bc or (kind & KIND == FULL and keys % blocks.bc == 0)
            entries += [
                (kind, payload, first + ahead, min(keys - ahead, blocks.bc))
                for ahead in range(0, keys, blocks.bc)
            ]
        offsets.append(len(entries))
    return replace(
        blocks,
        row_offsets=np.array(offsets, np.int32),
        entries=np.array(entries, np.int32).reshape(-1, 4),
    )
