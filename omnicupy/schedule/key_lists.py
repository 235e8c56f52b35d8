"""Block masks by blocks of keys -> one host buffer that holds every array the kernels of dK and dV read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omnicupy.jit.backward_spec import padded_rows
from omnicupy.jit.spec import round_up
from omnicupy.masks.block_mask import KIND
from omnicupy.masks.cut import cut
from omnicupy.masks.intervals import IntArray
from omnicupy.masks.pairs import PairSet
from omnicupy.masks.transpose import KeyBlocks, by_key_blocks
from omnicupy.schedule.block_lists import (
    KEY_PAD,
    BlockLists,
    fill_parts,
    joined,
    offsets_of_all,
    on_one_diagonal,
    places,
)
from omnicupy.schedule.parts import Schedule, Workers, costs_of, schedule, tiles_before
from omnicupy.schedule.pieces import MOST_KEYS, Pieces, pieces
from omnicupy.schedule.sections import section_of


def key_lists(turned: Sequence[KeyBlocks], workers: Workers, *, n_ranks: int = 0) -> BlockLists:
    """As block_lists, by blocks of keys: an entry is {kind | flags | queries << 8, payload, first query, 0}, a tile of
    queries or a run of FULL ones, a part {first key, mask, first entry, tiles}, a bit tile has bc rows of queries, and
    `q_blocks` counts blocks of keys.

    dead: without masks where every key is seen.  dead_rows: (mask_batch, q_padded / 32), bit set where a row of that
    mask sees no key; without masks where every row sees one.
    workers: who works on each block of keys; its `heads` are heads of keys. `section` is what their additions want,
    where `side_by_side` says how many heads stay in half of the L2 cache; else any number.  n_ranks: room for so many
    (ordered_lists).
    """
    turned, diagonal = _on_one_diagonal(turned)
    first = turned[0]
    offsets = offsets_of_all([one.offsets for one in turned])
    entries = joined([one.entries for one in turned])
    tiles = joined([one.tiles for one in turned])
    kinds = entries[:, 0] & KIND
    work = schedule(offsets, costs_of(entries[:, 3], kinds, first.br) * workers.repeats, workers, tiles)
    cut = _pieces(entries[:, 0], tiles, work, first.br)
    dead = {
        "dead": [one.mask.dead_keys() for one in turned],
        "dead_rows": [one.dead_rows for one in turned],
    }
    has = {name: any(one.any() for one in of) for name, of in dead.items()}
    lists = _empty_lists(turned, (len(cut.entry), _bit_tiles(turned), n_ranks), work, diagonal, has)
    if workers.side_by_side:
        lists = replace(lists, section=section_of(turned, len(work.rows), workers))
    lists.array("row_offsets")[...] = np.searchsorted(cut.entry, offsets)
    _fill_entries(lists, turned, entries, cut)
    fill_parts(lists, work, cut, first.bc)
    _fill_spans(lists, [one.mask for one in turned])
    for name, flags in dead.items():
        for words, of_mask in zip(lists.array(name), flags, strict=False):  # none where the array is empty
            bits = np.packbits(of_mask, bitorder="little")
            words.view(np.uint8)[: len(bits)] = bits
    return lists


def _pieces(flags: IntArray, tiles: IntArray, work: Schedule, br: int) -> Pieces:
    """Entries cut where parts begin: whole ones, where all parts are whole rows."""
    if work.n_split_rows or tiles.max(initial=0) > MOST_KEYS // br:
        return pieces(flags, tiles, work.first, br, lazy_keys=0)
    nothing = np.zeros_like(tiles)
    return Pieces(np.arange(len(tiles)), tiles, nothing, nothing > 0, tiles_before(tiles)[:-1])


def _on_one_diagonal(turned: Sequence[KeyBlocks]) -> tuple[Sequence[KeyBlocks], int]:
    """The same block masks with CAUSAL entries of one diagonal alone, and that one."""
    if len({one.mask.diagonal for one in turned}) == 1:
        return turned, turned[0].mask.diagonal
    blocks, diagonal = on_one_diagonal([cut(one.mask, one.br, one.bc) for one in turned])
    return [by_key_blocks(block) for block in blocks], diagonal


def _empty_lists(
    turned: Sequence[KeyBlocks],
    counts: tuple[int, int, int],
    work: Schedule,
    diagonal: int,
    has: dict[str, bool],
) -> BlockLists:
    """All arrays, filled with zeros. counts: of entries, bit tiles, ranks.  has: are there dead keys, and dead rows?"""
    first, masks = turned[0], [one.mask for one in turned]
    q_len, k_len = first.mask.shape
    k_padded = round_up(round_up(k_len, first.bc), KEY_PAD)
    n_spans = max(0 if mask.intervals is None else len(mask.intervals[0]) for mask in masks)
    shapes: dict[str, tuple[int, ...]] = {
        "row_offsets": (len(turned) * first.k_blocks + 1,),
        "entries": (counts[0], 4),
        "parts": (len(work.rows), 4),
        "splits": (len(work.rows), 4),
        "bit_tiles": (counts[1], first.bc, first.br // 32),
        "spans": (len(turned), n_spans, k_padded, 2),
        "dead": (len(turned) if has["dead"] else 0, k_padded // 32),
        "dead_rows": (len(turned) if has["dead_rows"] else 0, padded_rows(q_len) // 32),
        **({"ranks": (counts[2],)} if counts[2] else {}),
    }
    return BlockLists(
        *places(shapes),
        shapes,
        first.br,
        first.bc,
        first.k_blocks,
        len(turned),
        diagonal,
        n_spans,
        k_padded,
        work.tiers,
        work.n_slots,
        work.n_split_rows,
    )


def _fill_spans(lists: BlockLists, masks: Sequence[PairSet]) -> None:
    """The spans of each key."""
    for spans, mask in zip(lists.array("spans"), masks, strict=True):
        if mask.intervals is not None:
            first, last = mask.live  # other keys have no spans, and the buffer holds zeros
            start, stop = (side[:, first:last] for side in mask.intervals)
            mine = spans[: len(start), first:last]
            mine[..., 0] = start
            np.subtract(stop, start, out=mine[..., 1])


def _bit_tiles(turned: Sequence[KeyBlocks]) -> int:
    return sum(len(one.bit_tiles) for one in turned)


def _fill_entries(lists: BlockLists, turned: Sequence[KeyBlocks], found: IntArray, cut: Pieces) -> None:
    """The entries as kernels read them, one mask after the other. found: of all masks, not yet cut."""
    entries, br, ahead = lists.array("entries"), np.int32(lists.br), cut.tiles_ahead
    whole = found.take(cut.entry, axis=0)
    entries[:, 0] = whole[:, 0] | np.minimum(whole[:, 3] - ahead * br, cut.tiles * br) << np.int32(8)
    entries[:, 1] = whole[:, 1]
    entries[:, 2] = whole[:, 2] + ahead * br
    if not _bit_tiles(turned):
        return
    before = np.cumsum([0, *(len(one.bit_tiles) for one in turned)])[:-1]  # of each mask
    first = np.repeat(before, [len(one.entries) for one in turned]).take(cut.entry).astype(np.int32)
    entries[:, 1] = np.where(entries[:, 1] >= 0, entries[:, 1] + first, entries[:, 1])
    np.concatenate([one.bit_tiles for one in turned], out=lists.array("bit_tiles"))
