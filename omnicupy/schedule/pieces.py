"""Entries as kernels read them: runs of FULL tiles, cut where a part of a row begins and where flags change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import FULL, KIND
from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.schedule.parts import tiles_before

# Behind so many keys of FULL tiles of its part of a row, rescaling may be lazy. The maximum of 32 keys is too often far
# below the row's: weights far above 1, rounded, took one case in 15,857 over its budget.
LAZY_KEYS = 64
MOST_KEYS = 2**23 - 1  # of an entry: a word holds them beside 8 bits of kind and flags


@dataclass(frozen=True)
class Pieces:
    """Entries cut into pieces, in their order. entry: which one each piece is of, (P,).  tiles: of each.  tiles_ahead:
    tiles of the entry before the piece.  lazy: whether rescaling may be lazy in it.  place: tiles before each piece in
    all, int64 (P,), ascending.
    """

    entry: NDArray[np.intp]
    tiles: IntArray
    tiles_ahead: IntArray
    lazy: BoolArray
    place: NDArray[np.int64]

    def first_from(self, places: NDArray[np.int64]) -> IntArray:
        """The first piece at or behind each of these places, which are bounds of entries or parts, in tiles."""
        return np.searchsorted(self.place, places).astype(np.int32)


def pieces(
    flags: IntArray, tiles: IntArray, parts: NDArray[np.int64], bc: int, lazy_keys: int = LAZY_KEYS
) -> Pieces:
    """Cut the entries, in the kernels' order, so that each part begins with a piece, and flags are those of all tiles.

    flags: kind and flags of each entry, (E,).  tiles: of each entry, one but for FULL ones.  parts: tiles before each
    part of a block row, in any order, also of parts without tiles; one thread block works on a part, whose row_max
    starts anew.  lazy_keys: behind so many keys of FULL tiles rescaling is lazy; 0 where nothing is rescaled.
    """
    before, full = tiles_before(tiles), flags & KIND == FULL
    full_before, is_full = tiles_before(tiles * full), np.append(full, False)

    def full_at(places: NDArray[np.int64]) -> NDArray[np.int64]:
        """FULL tiles before each place."""
        entry = before.searchsorted(places, "right") - 1
        found: NDArray[np.int64] = full_before[entry] + (places - before[entry]) * is_full[entry]
        return found

    begins = np.sort(parts)
    need = -(-lazy_keys // bc)  # FULL tiles
    full_ahead = full_at(begins)
    if need:
        turns = full_before.searchsorted(full_ahead + need) - 1  # the entry in which rescaling turns lazy
        found = turns < len(flags)
        turns = turns[found]
        lazy = before[turns] + (full_ahead[found] + need - full_before[turns])
    else:
        lazy = begins[:0]
    cuts = np.sort(np.concatenate([before, begins, lazy, *_within_long(tiles, before, MOST_KEYS // bc)]))
    place = cuts[:-1][cuts[1:] != cuts[:-1]]  # the last one is the end of all
    entry = before.searchsorted(place, "right") - 1
    full_behind = full_at(place) - full_ahead[begins.searchsorted(place, "right") - 1]
    counts = np.append(place[1:], before[-1]) - place
    ahead = place - before[entry]
    return Pieces(
        entry, counts.astype(np.int32), ahead.astype(np.int32), (full_behind >= need) & (need > 0), place
    )


def _within_long(tiles: IntArray, before: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Where entries of more than `most` tiles are cut."""
    return [before[i] + np.arange(most, tiles[i], most) for i in np.flatnonzero(tiles > most)]
