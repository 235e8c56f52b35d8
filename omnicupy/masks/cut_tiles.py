"""Tile kinds of a mask held as lists of tiles of another size, one block of query rows after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, FULL, KIND, PARTIAL, BlockMask
from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.masks.pairs import PairSet

Whole = NDArray[np.int64]
Listed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], IntArray, NDArray[np.uint32]]


class _BitTiles:
    """The distinct bit tiles of a cut, (br, bc / 32) words each, numbered as they come."""

    def __init__(self, br: int, bc: int) -> None:
        self._br, self._bc = br, bc
        self._place: dict[bytes, int] = {}
        self._patterns: dict[tuple[bytes, ...], int] = {}

    def of_pairs(self, dense: BoolArray) -> int:
        """The number of the tile with these pairs, (rows, keys) that exist."""
        padded = np.zeros((self._br, self._bc), np.bool_)
        padded[: dense.shape[0], : dense.shape[1]] = dense
        words = np.packbits(padded, axis=1, bitorder="little").tobytes()
        return self._place.setdefault(words, len(self._place))

    def of_patterns(self, some: BoolArray, heights: Whole, parts: _Parts, blocks: Whole) -> IntArray:
        """The numbers of the tiles of these blocks of keys; `some` says which parts of them the rows see.

        some: (strips of rows, key blocks of the grid).  heights: rows of each strip. Few patterns come again and
        again, so each is made once.
        """
        seen = some[:, np.minimum(parts.first[blocks, None] + np.arange(parts.most), some.shape[1] - 1)]
        seen &= np.arange(parts.most) < (parts.stop - parts.first)[blocks, None]
        flags = np.packbits(seen.transpose(1, 0, 2).reshape(len(blocks), -1), axis=1)
        rows = np.concatenate([flags, parts.kind[blocks, None].view(np.uint8)], axis=1)
        keys = np.ascontiguousarray(rows).view([("", f"V{rows.shape[1]}")])[:, 0]
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        numbers = np.empty(len(first), np.int32)
        for i, at in enumerate(first.tolist()):
            block = int(blocks[at])
            part = some[:, parts.first[block] : parts.stop[block]]
            numbers[i] = self._of_pattern(part, heights, parts.lengths(block))
        return numbers[place]

    def _of_pattern(self, some: BoolArray, heights: Whole, widths: Whole) -> int:
        key = (some.tobytes(), heights.tobytes(), widths.tobytes())
        found = self._patterns.get(key)
        if found is None:
            found = self.of_pairs(np.repeat(np.repeat(some, heights, axis=0), widths, axis=1))
            self._patterns[key] = found
        return found

    def words(self) -> NDArray[np.uint32]:
        """All of them, (t, br, bc / 32)."""
        tiles = np.frombuffer(b"".join(self._place), np.uint32)
        return tiles.reshape(len(self._place), self._br, self._bc // 32)


class _Parts:
    """How the blocks of one axis of a grid lie in those of a cut, bounds `cuts`."""

    def __init__(self, edges: Whole, cuts: Whole) -> None:
        self._edges, self._cuts = edges, cuts
        self.first = np.searchsorted(edges, cuts[:-1], "right") - 1
        self.stop = np.searchsorted(edges, cuts[1:], "left")
        self.most = int((self.stop - self.first).max())  # blocks of the grid in one of the cut
        kinds: dict[bytes, int] = {}
        found = [kinds.setdefault(self.lengths(i).tobytes(), len(kinds)) for i in range(len(self.first))]
        self.kind = np.array(found, np.int32)  # equal where a block of the cut is divided alike

    def lengths(self, block: int) -> Whole:
        """Of one block of the cut, the tokens in each block of the grid."""
        edges = self._edges[self.first[block] : self.stop[block] + 1]
        inside: Whole = np.clip(edges, self._cuts[block], self._cuts[block + 1])
        return inside[1:] - inside[:-1]

    def counted(self, some: Any) -> Whole:
        """Of each block of the cut, how many of its blocks of the grid are in `some`."""
        before = np.append(0, np.cumsum(some))
        found: Whole = before[self.stop] - before[self.first]
        return found


def classify_lists(mask: PairSet, br: int, bc: int, inner: BlockMask | None) -> Listed:
    """Query block, key block, kind, payload of each listed tile in list order; bit tiles (t, br, bc / 32).

    inner: the cut of the pairs that the lists allow inside of their tiles, None where they allow all. PARTIAL
    tiles all have a bit tile.
    """
    tiles = mask.tiles
    assert tiles is not None
    q_len, k_len = mask.shape
    cuts = np.minimum(np.arange(-(-k_len // bc) + 1) * bc, k_len)
    rows, columns = tiles.edges(0), _Parts(tiles.edges(1), cuts)
    bits = _BitTiles(br, bc)
    found: list[tuple[Whole, Whole, Whole, IntArray]] = []
    for row, q0 in enumerate(range(0, q_len, br)):
        q1 = min(q0 + br, q_len)
        strips = _Parts(rows, np.array([q0, q1]))
        some = tiles.listed((int(strips.first[0]), int(strips.stop[0])), (0, tiles.grid[1]))
        seen = columns.counted(some.any(axis=0)) > 0
        whole = (columns.counted(some.all(axis=0)) == columns.stop - columns.first) & (np.diff(cuts) == bc)
        theirs = np.full(len(seen), FULL) if inner is None else _kinds(inner, row)
        kind = np.where(seen & (theirs > 0), np.where(whole, theirs, PARTIAL), 0)
        crossed = (cuts[:-1] + (bc - 1) > q0 + mask.diagonal) & (cuts[:-1] < q1 + mask.diagonal)
        payload = np.full(len(kind), -1, np.int32)
        plain = np.flatnonzero((kind == PARTIAL) & (theirs == FULL) & ~crossed)
        if len(plain):
            payload[plain] = bits.of_patterns(some, strips.lengths(0), columns, plain)
        for key in np.flatnonzero((kind == PARTIAL) & ((theirs != FULL) | crossed)).tolist():
            dense = mask.dense(q0, q1, int(cuts[key]), int(cuts[key + 1]))
            causal = np.arange(cuts[key], cuts[key + 1]) <= np.arange(q0, q1)[:, None] + mask.diagonal
            if not dense.any():
                kind[key] = 0
            elif dense.shape[1] == bc and np.array_equal(dense, causal):
                kind[key] = CAUSAL
            else:
                payload[key] = bits.of_pairs(dense)
        block = np.flatnonzero(kind)
        block = block[np.argsort(kind[block] == FULL, kind="stable")]
        found.append((np.full(len(block), row), block, kind[block], payload[block]))
    listed = [np.concatenate(part) for part in zip(*found, strict=True)]
    return listed[0], listed[1], listed[2], listed[3], bits.words()


def _kinds(blocks: BlockMask, row: int) -> Whole:
    """The kind of each tile of a block of query rows, 0 where it is not listed."""
    entries = blocks.entries[blocks.row_offsets[row] : blocks.row_offsets[row + 1]]
    kinds = np.zeros(blocks.k_blocks, np.int64)
    for kind, _, first, keys in entries.tolist():
        kinds[first // blocks.bc : -(-(first + keys) // blocks.bc)] = kind & KIND
    return kinds
