"""Block masks by blocks of keys -> one host buffer that holds every array the kernels of dK and dV read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from omnicupy.jit.backward_spec import padded_rows
from omnicupy.jit.spec import round_up
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.transpose import KeyBlocks, by_key_blocks, dead_rows
from omnicupy.schedule.block_lists import ALIGN_BYTES, KEY_PAD, BlockLists, fill_spans, on_one_diagonal
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import Schedule, Workers, costs_of, schedule


def key_lists(blocks: Sequence[BlockMask], workers: Workers) -> BlockLists:
    """As block_lists, by blocks of keys: an entry is {kind | flags | queries << 8, payload, first query, 0}, a part
    {first key, mask, first entry, tiles}, a bit tile has bc rows of queries, and `q_blocks` counts blocks of keys.

    dead: without masks where every key is seen.  dead_rows: (mask_batch, q_padded / 32), bit set where a row of that
    mask sees no key; without masks where every row sees one.
    workers: who works on each block of keys; its `heads` are heads of keys.
    """
    blocks, diagonal = on_one_diagonal(blocks)
    turned = [by_key_blocks(block) for block in blocks]
    first = blocks[0]
    counts = np.cumsum([0, *(len(one.entries) for one in turned)])
    later = (one.offsets[1:] + np.int32(at) for one, at in zip(turned[1:], counts[1:], strict=False))
    offsets = np.concatenate([turned[0].offsets, *later])
    queries = np.concatenate([one.entries[:, 3] for one in turned])
    kinds = np.concatenate([one.kinds for one in turned])
    work = schedule(offsets, costs_of(queries, kinds, first.br) * workers.repeats, workers)
    dead = {
        "dead": [block.mask.dead_keys() for block in blocks],
        "dead_rows": [dead_rows(block) for block in blocks],
    }
    lists = _empty_lists(
        blocks, turned, work, diagonal, {name: any(map(np.any, of)) for name, of in dead.items()}
    )
    lists.array("row_offsets")[...] = offsets
    _fill_entries(lists, turned)
    parts = lists.array("parts")
    mask, block = np.divmod(work.rows, np.int32(first.k_blocks))
    parts[:, 0] = block * first.bc
    parts[:, 1] = mask
    parts[:, 2] = work.first
    parts[:, 3] = work.end - work.first
    lists.array("entries")[work.end[work.end > work.first] - 1, 0] |= LAST
    lists.array("splits")[...] = work.splits
    fill_spans(lists, blocks)
    for name, flags in dead.items():
        for words, of_mask in zip(lists.array(name), flags, strict=False):  # none where the array is empty
            bits = np.packbits(of_mask, bitorder="little")
            words.view(np.uint8)[: len(bits)] = bits
    return lists


def _empty_lists(
    blocks: Sequence[BlockMask],
    turned: Sequence[KeyBlocks],
    work: Schedule,
    diagonal: int,
    has: dict[str, bool],
) -> BlockLists:
    """All arrays, filled with zeros. has: are there dead keys, and dead rows?"""
    first, masks = blocks[0], [block.mask for block in blocks]
    k_padded = round_up(round_up(first.k_len, first.bc), KEY_PAD)
    n_spans = max(0 if mask.intervals is None else len(mask.intervals[0]) for mask in masks)
    shapes: dict[str, tuple[int, ...]] = {
        "row_offsets": (len(blocks) * first.k_blocks + 1,),
        "entries": (sum(len(one.entries) for one in turned), 4),
        "parts": (len(work.rows), 4),
        "splits": (len(work.rows), 4),
        "bit_tiles": (sum(len(one.bit_tiles) for one in turned), first.bc, first.br // 32),
        "spans": (len(blocks), n_spans, k_padded, 2),
        "dead": (len(blocks) if has["dead"] else 0, k_padded // 32),
        "dead_rows": (len(blocks) if has["dead_rows"] else 0, padded_rows(first.q_len) // 32),
    }
    offsets: dict[str, int] = {}
    size = 0
    for name, shape in shapes.items():
        offsets[name] = size
        size += round_up(4 * prod(shape), ALIGN_BYTES)
    return BlockLists(
        np.zeros(size, np.uint8),
        offsets,
        shapes,
        first.br,
        first.bc,
        first.k_blocks,
        len(blocks),
        diagonal,
        n_spans,
        k_padded,
        work.tiers,
        work.n_slots,
        work.n_split_rows,
    )


def _fill_entries(lists: BlockLists, turned: Sequence[KeyBlocks]) -> None:
    """The entries as kernels read them, one mask after the other."""
    entries, tiles = lists.array("entries"), lists.array("bit_tiles")
    e = t = 0
    for one in turned:
        mine = entries[e : e + len(one.entries)]
        mine[:, 0] = one.entries[:, 0] | one.entries[:, 3] << 8
        payload = one.entries[:, 1]
        mine[:, 1] = np.where(payload >= 0, payload + t, payload)
        mine[:, 2] = one.entries[:, 2]
        tiles[t : t + len(one.bit_tiles)] = one.bit_tiles
        e, t = e + len(one.entries), t + len(one.bit_tiles)
