"""BlockMask: one mask cut into tiles of br query rows and bc keys, as the lists that the kernels walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.masks.pairs import PairSet

TileArray: TypeAlias = NDArray[np.uint32]

FULL = 1  # all bc keys exist and every existing row of the tile sees each
CAUSAL = 2  # all bc keys exist and key k is seen by row q iff k <= q + diagonal
PARTIAL = 3  # the element rule: the mask's intervals, or a bit tile
DEAD = 4  # flag beside the kind: the entry holds a key (< k_len) that no row of the mask sees
KIND = 3  # entries[:, 0] & KIND is the kind without the flag


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class BlockMask:
    """For each block of br query rows the list of key tiles to visit: read-only CSR arrays of int32.

    mask: the allowed pairs (a PairSet: the mask without its caches, so that dropping the mask frees them).
    row_offsets: (q_blocks + 1,); the entries of query block i are row_offsets[i] : row_offsets[i + 1].
    entries: (E, 4) of kind | DEAD, payload, first key, key count (never past k_len). A CAUSAL or PARTIAL entry is one
        tile, at most bc keys; a FULL one is a run of all neighbouring FULL tiles, a multiple of bc keys. Within a
        row CAUSAL and PARTIAL entries come first, then FULL ones, both by ascending key. payload: -1 = the rule is
        the mask's intervals, else an index into bit_tiles. Tiles without an allowed pair are not listed, so an
        empty row block has no entries.
    bit_tiles: uint32 (T, br, ceil(bc / 32)), bit b of word w of row r is key offset 32 * w + b of the tile;
        only for masks held as bits, equal tiles stored once; (0, br, ceil(bc / 32)) for the others.
    """

    mask: PairSet
    br: int
    bc: int
    row_offsets: IntArray
    entries: IntArray
    bit_tiles: TileArray

    def __reduce__(self) -> tuple[Any, ...]:
        lists = (self.br, self.bc, self.row_offsets, self.entries, self.bit_tiles)
        return type(self)._rebuilt, (self.mask._content(), *lists)

    @classmethod
    def _rebuilt(cls, mask: dict[str, Any], *lists: Any) -> Self:
        return cls(PairSet._rebuilt(mask), *lists)

    @property
    def q_len(self) -> int:
        """Query rows."""
        return self.mask.shape[0]

    @property
    def k_len(self) -> int:
        """Keys."""
        return self.mask.shape[1]

    @property
    def diagonal(self) -> int:
        """Key minus row of the diagonal of CAUSAL tiles, in tokens."""
        return self.mask.diagonal

    @property
    def q_blocks(self) -> int:
        """Blocks of query rows, the last one maybe short."""
        return -(-self.q_len // self.br)

    @property
    def k_blocks(self) -> int:
        """Blocks of keys, the last one maybe short."""
        return -(-self.k_len // self.bc)

    @property
    def kinds(self) -> IntArray:
        """Kind of each entry without the DEAD flag, (E,)."""
        kinds: IntArray = self.entries[:, 0] & KIND
        return kinds

    @property
    def tiles(self) -> IntArray:
        """Tiles of each entry, (E,): one, or as many as a run of FULL ones has."""
        tiles: IntArray = -(-self.entries[:, 3] // self.bc)
        return tiles

    def rows_of_entries(self) -> IntArray:
        """Query block of each entry, (E,)."""
        return np.repeat(np.arange(self.q_blocks, dtype=np.int32), np.diff(self.row_offsets))

    def to_dense(self) -> BoolArray:
        """The mask again, (q_len, k_len) booleans: the exact inverse of the cut.

        Raises ValueError where a pair lies in more than one entry of its row.
        """
        out = np.empty((self.q_len, self.k_len), np.bool_)
        for block in range(self.q_blocks):
            q0, q1 = block * self.br, min((block + 1) * self.br, self.q_len)
            count = self._count(block, q0, q1)
            if (count > 1).any():
                row, key = np.argwhere(count > 1)[0]
                raise ValueError(
                    f"entries: each allowed pair must lie in one entry, row {q0 + row} and key {key} lie in "
                    f"{count[row, key]}; cut the mask again"
                )
            out[q0:q1] = count > 0
        return out

    def _count(self, block: int, q0: int, q1: int) -> NDArray[np.int64]:
        """Entries that allow each pair of rows [q0, q1), int64 (q1 - q0, k_len)."""
        entries = self.entries[self.row_offsets[block] : self.row_offsets[block + 1]]
        kinds = entries[:, 0] & KIND
        by_rule = (kinds == PARTIAL) & (entries[:, 1] < 0)
        diagonal = np.arange(self.k_len) <= np.arange(q0, q1)[:, None] + self.diagonal
        count = np.zeros((q1 - q0, self.k_len), np.int64)
        count += self._coverage(entries[kinds == FULL])
        count += self._coverage(entries[kinds == CAUSAL]) * diagonal
        if by_rule.any():
            count += self._coverage(entries[by_rule]) * self.mask.dense(q0, q1, 0, self.k_len)
        for _, payload, first, keys in entries[(kinds == PARTIAL) & ~by_rule]:
            words = np.ascontiguousarray(self.bit_tiles[payload, : q1 - q0])
            tile = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
            count[:, first : first + keys] += tile[:, :keys]
        return count

    def _coverage(self, entries: IntArray) -> NDArray[np.int64]:
        """How many of these entries hold each key, (k_len,)."""
        first, keys = entries[:, 2], entries[:, 3]
        edges = np.bincount(first, minlength=self.k_len + 1) - np.bincount(
            first + keys, minlength=self.k_len + 1
        )
        covered: NDArray[np.int64] = np.cumsum(edges[:-1])
        return covered
