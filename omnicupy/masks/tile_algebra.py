"""The algebra of sets of pairs that are held as lists of tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from omnicupy.masks.bits import ByteArray
from omnicupy.masks.intervals import Intervals, rectangles
from omnicupy.masks.intervals import intersection as intervals_in_both
from omnicupy.masks.pairs import PairSet
from omnicupy.masks.tiles import Tiles, Whole


def of_codes(base: Tiles, codes: Whole) -> Tiles:
    """The tiles of codes row block * key blocks + key block, ascending, on the grid of `base`, all pairs allowed."""
    rows, keys = base.grid
    offsets = np.searchsorted(codes, np.arange(rows + 1) * keys)
    return replace(base, offsets=offsets, keys=(codes % keys).astype(np.int32), inner=None)


def codes_of(tiles: Tiles) -> Whole:
    """row block * key blocks + key block of each listed tile, ascending."""
    return tiles.rows() * tiles.grid[1] + tiles.keys


def intersection(a: PairSet, b: PairSet) -> Tiles:
    """Pairs in both, of which at least one is held as tiles: its lists, with the other inside of them."""
    one, other = (a.tiles, b) if a.tiles is not None else (b.tiles, a)
    assert one is not None
    second = other.tiles
    if second is not None and one.same_grid(second):
        both = of_codes(one, np.intersect1d(codes_of(one), codes_of(second), assume_unique=True))
        inside = [tiles.inner for tiles in (one, second) if tiles.inner is not None]
        return replace(both, inner=inside[0] & inside[1] if len(inside) == 2 else next(iter(inside), None))
    return replace(one, inner=other if one.inner is None else one.inner & other)


def union(a: PairSet, b: PairSet) -> Tiles | None:
    """Pairs in either, where both are whole tiles of one grid; None for others."""
    one, other = a.tiles, b.tiles
    if one is None or other is None or not one.same_grid(other) or not one.inner is other.inner is None:
        return None
    return of_codes(one, np.union1d(codes_of(one), codes_of(other)))


def complement(tiles: Tiles) -> Tiles | None:
    """Pairs in none of whole tiles; None where they hide pairs inside."""
    if tiles.inner is not None:
        return None
    absent = np.ones(tiles.grid[0] * tiles.grid[1], np.bool_)
    absent[codes_of(tiles)] = False
    return of_codes(tiles, np.flatnonzero(absent))


def other_form(pairs: PairSet) -> tuple[Intervals | None, ByteArray | None]:
    """A set held as tiles as intervals or bits, whichever is smaller; for what lists of tiles cannot express."""
    tiles = pairs.tiles
    assert tiles is not None
    q_len, k_len = tiles.shape
    most = int(np.bincount(tiles.keys, minlength=1).max())  # tiles over each other, each at most one interval
    if (tiles.inner is None or tiles.inner.intervals is not None) and 64 * most <= q_len:
        rows, keys, row = tiles.edges(0), tiles.edges(1), tiles.rows()
        bounds = np.stack([rows[row], rows[row + 1], keys[tiles.keys], keys[tiles.keys + 1]], axis=1)
        found = rectangles(bounds, q_len, k_len)
        if tiles.inner is not None:
            found = intervals_in_both(found, tiles.inner.intervals)
        return found, None
    return None, pairs.packed_bits()
