"""Why a cut mask computes more pairs than it allows: where each pair for nothing lies, and which segment makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import FULL, BlockMask
from omnicupy.masks.mask import Mask
from omnicupy.masks.pairs import Segment
from omnicupy.schedule.parts import number_in_run

Counts = NDArray[np.int64]

ORIGINS = 10  # of waste that are printed
CHUNK = 4096  # tiles that are looked at together
# Why a row of a visited tile does not see a key of it.
DIAGONAL, BEFORE, AFTER, BETWEEN, TAIL = range(5)
_WORDS = {
    ("text", DIAGONAL): "its causal diagonal",
    ("", DIAGONAL): "the diagonal",
    ("", BEFORE): "rows before it share its tiles",
    ("noise", AFTER): "hidden from the rows after it",
    ("", AFTER): "rows after its document, or out of reach, share its tiles",
    ("", BETWEEN): "rows between those that see it",
    ("", TAIL): "no such rows or keys: tiles reach past the end",
}


@dataclass(frozen=True)
class Waste:
    """Pairs that are computed for nothing, of one origin. what: the segment or keys.  first, stop: its keys.

    why: the reason in words.  tiles: visited tiles that hold some.  pairs: their number.
    """

    what: str
    first: int
    stop: int
    why: str
    tiles: int
    pairs: int


def waste_lines(found: Sequence[Waste], executed: int) -> list[str]:
    """All of them in text, the largest ones a line each. executed: pairs that are computed."""
    total = sum(one.pairs for one in found)
    lines = [f"waste      {total:,} executed pairs are not allowed ({total / executed:.2%})"]
    for one in found[:ORIGINS]:
        lines.append(f"  {one.pairs / executed:6.2%}   {one.what}: {one.why} ({one.tiles} tiles)")
    if hidden := found[ORIGINS:]:
        lines.append(f"  {sum(one.pairs for one in hidden) / executed:6.2%}   {len(hidden)} other origins")
    return lines


def wastes(mask: Mask, blocks: BlockMask) -> list[Waste]:
    """Every origin of executed pairs that are not allowed, largest first; [] where there are none.

    mask: the mask that `blocks` is a cut of; where it names its segments, they are the origins, else the key
    blocks are. The pairs of all of them add up to executed less allowed ones.
    """
    parts = _key_parts(mask, blocks)
    firsts = np.array([part[1] for part in parts], np.int64)
    kinds = [kind for kind, *_ in parts]
    pairs = np.zeros((len(parts) + 1, TAIL + 1), np.int64)
    tiles = np.zeros_like(pairs)
    for q0, k0 in _wasteful(blocks):
        keys = k0[:, None] + np.arange(blocks.bc)
        exists = keys < blocks.k_len
        part = np.searchsorted(firsts, np.minimum(keys, blocks.k_len - 1), side="right") - 1
        q1 = np.minimum(q0 + blocks.br, blocks.q_len)
        for why, count in _unseen(mask, blocks, (q0, q1), keys, exists, firsts[part]):
            _add(pairs, tiles, part, why, np.where(exists, count, 0))
        beyond = np.where(exists, (q0 + blocks.br - q1)[:, None], blocks.br)
        _add(pairs, tiles, np.full_like(part, len(parts)), TAIL, beyond)
    found = []
    for place, why in zip(*np.nonzero(pairs), strict=True):
        what, first, stop = _named(parts, int(place), blocks)
        kind = kinds[place] if place < len(kinds) else ""
        words = _WORDS.get((kind, int(why)), _WORDS["", int(why)])
        found.append(Waste(what, first, stop, words, int(tiles[place, why]), int(pairs[place, why])))
    return sorted(found, key=lambda one: (-one.pairs, one.first, one.why))


def _key_parts(mask: Mask, blocks: BlockMask) -> list[Segment]:
    """Segments that cover all keys: the mask's own, or the key blocks."""
    named = mask.segments
    if named and named[0][1] == 0 and named[-1][2] == blocks.k_len:
        return list(named)
    return [
        ("keys", first, min(first + blocks.bc, blocks.k_len), 0)
        for first in range(0, blocks.k_len, blocks.bc)
    ]


def _named(parts: list[Segment], place: int, blocks: BlockMask) -> tuple[str, int, int]:
    if place == len(parts):
        return "the end of the mask", 0, blocks.k_len
    kind, first, stop, document = parts[place]
    if kind == "keys":
        return f"keys {first} to {stop - 1}", first, stop
    number = 1 + sum(1 for other in parts[:place] if other[0] == kind)
    return f"{kind} {number}, tokens {first} to {stop - 1}, document {document + 1}", first, stop


def _wasteful(blocks: BlockMask) -> Iterator[tuple[Counts, Counts]]:
    """First row and first key of the tiles that may hold a pair for nothing, some at a time."""
    q0 = blocks.rows_of_entries().astype(np.int64) * blocks.br
    chosen = (blocks.kinds != FULL) | (q0 + blocks.br > blocks.q_len)  # keys past the end are in no FULL tile
    tiles = blocks.tiles[chosen]
    q0, k0 = (array[chosen].repeat(tiles) for array in (q0, blocks.entries[:, 2].astype(np.int64)))
    k0 += number_in_run(tiles) * blocks.bc
    for start in range(0, len(q0), CHUNK):
        yield q0[start : start + CHUNK], k0[start : start + CHUNK]


def _unseen(
    mask: Mask,
    blocks: BlockMask,
    rows: tuple[Counts, Counts],
    keys: Counts,
    exists: NDArray[np.bool_],
    part_first: Counts,
) -> Iterator[tuple[int, Counts]]:
    """For each reason the number of existing rows of a tile that do not see a key, (tiles, bc).

    part_first: first key of the segment that each key lies in.
    """
    q0, q1 = rows[0][:, None], rows[1][:, None]
    if mask.intervals is None:
        yield BETWEEN, _unseen_bits(mask, rows, keys, exists)
        return
    start, stop = (bound[:, np.minimum(keys, blocks.k_len - 1)] for bound in mask.intervals)
    used = start < stop
    first = np.where(used, start, blocks.q_len).min(axis=0)
    last = np.where(used, stop, 0).max(axis=0)
    seen = np.clip(np.minimum(stop, q1) - np.maximum(start, q0), 0, None).sum(axis=0)
    before = np.clip(np.minimum(first, q1) - q0, 0, q1 - q0)
    after = np.where(last > 0, np.clip(q1 - np.maximum(last, q0), 0, q1 - q0), 0)
    # Rows and keys are the same tokens where the diagonal is 0: rows of the key's own segment are its diagonal.
    own = np.clip(np.minimum(first, q1) - np.maximum(part_first - blocks.diagonal, q0), 0, before)
    yield DIAGONAL, own
    yield BEFORE, before - own
    yield AFTER, after
    yield BETWEEN, q1 - q0 - seen - before - after


def _unseen_bits(mask: Mask, rows: tuple[Counts, Counts], keys: Counts, exists: NDArray[np.bool_]) -> Counts:
    found = np.zeros(keys.shape, np.int64)
    for tile, (q0, q1) in enumerate(zip(*rows, strict=True)):
        count = int(exists[tile].sum())
        k0 = int(keys[tile, 0])
        dense = mask.dense(int(q0), int(q1), k0, k0 + count)
        found[tile, :count] = (~dense).sum(axis=0)
    return found


def _add(pairs: Counts, tiles: Counts, part: Counts, why: int, count: Counts) -> None:
    """Add the counts (tiles, bc) of one reason to those of the parts that their keys lie in."""
    np.add.at(pairs[:, why], part.reshape(-1), count.reshape(-1))
    tile, key = np.nonzero(count)
    hit = np.unique(tile * len(pairs) + part[tile, key])
    np.add.at(tiles[:, why], hit % len(pairs), 1)
