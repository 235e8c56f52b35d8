"""Presets of packing and padding, windows with sinks, cross-attention to images and draft trees."""

from __future__ import annotations

import numpy as np

from omnicupy.masks import arguments as masks_arguments
from omnicupy.masks import bits as masks_bits
from omnicupy.masks import intervals, segment_masks
from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments
from omnicupy.presets.arguments import Lengths, Spans

SIDES = ("right", "left")


def packed(lengths: Lengths, causal: bool = True) -> Mask:
    """Packed sequences (NaViT: causal=False), each of which sees itself alone; one interval per key.

        same_sequence(q, k) and (k <= q or not causal)

    lengths: tokens of each sequence; those of length 0 are skipped.

    Source: lucidrains/vit-pytorch, vit_pytorch/na_vit.py; huggingface/transformers, masking_utils.py.
    Raises TypeError or ValueError for other types, no token at all and lengths below 0.
    """
    hint = "pass the number of tokens of each sequence"
    sizes = arguments.numbers("packed", "lengths", lengths, 0, hint)
    if not sizes.any():
        raise ValueError(f"packed: lengths must hold at least one token, got none; {hint}")
    return _documents("packed", "lengths", sizes[sizes > 0], masks_arguments.flag("packed", "causal", causal))


def varlen(cu_seqlens: Lengths, causal: bool = False, *, cu_seqlens_k: Lengths | None = None) -> Mask:
    """Packed sequences given by their bounds, as FlashAttention takes them (Qwen-VL's vision windows).

        same_sequence(q, k) and (k <= q or not causal)
        with cu_seqlens_k:  same_sequence(q, k) and (k' <= q' + keys - rows or not causal)
                            (q', k': places in the sequence; rows, keys: how many it has of both)

    cu_seqlens: 0 and the running sums of the lengths; equal neighbours are an empty sequence. cu_seqlens_k: the
    same for the keys, where these have bounds of their own (cross-attention of packs, packed caches); rows of a
    sequence without keys see nothing. One interval per key.

    Source: huggingface/transformers, models/qwen2_5_vl/modeling_qwen2_5_vl.py and vision_utils.py;
    Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py.
    Raises TypeError or ValueError for other types and bounds that do not start at 0, descend or end at 0.
    """
    rows = _sizes("cu_seqlens", cu_seqlens)
    is_causal = masks_arguments.flag("varlen", "causal", causal)
    if cu_seqlens_k is None:
        return _documents("varlen", "cu_seqlens", rows[rows > 0], is_causal)
    keys = _sizes("cu_seqlens_k", cu_seqlens_k)
    if len(rows) != len(keys):
        raise ValueError(
            f"varlen: cu_seqlens and cu_seqlens_k must bound as many sequences, got {len(rows)} and "
            f"{len(keys)}; repeat a bound for an empty one"
        )
    q_len, k_len = (arguments.tokens("varlen", "bounds", int(sizes.sum())) for sizes in (rows, keys))
    stop = np.cumsum(rows)
    first, end = np.repeat(stop - rows, keys), np.repeat(stop, keys)
    start = first
    if is_causal:  # the key's place, counted from the end of the sequence on both sides
        start = np.clip(np.arange(k_len) + np.repeat(stop - np.cumsum(keys), keys), first, end)
    pairs = intervals.tidy(start.astype(np.int32)[None], end.astype(np.int32)[None])
    return Mask((q_len, k_len), intervals=pairs)


def _sizes(name: str, bounds: Lengths) -> arguments.Whole:
    """The lengths between the checked bounds of sequences."""
    hint = "pass 0 and the running sums of the lengths"
    found = arguments.numbers("varlen", name, bounds, 0, hint)
    if found[0] != 0:
        raise ValueError(f"varlen: {name} must start at 0, got {found[0]}; {hint}")
    sizes = np.diff(found)
    if (sizes < 0).any():
        i = int(np.argmax(sizes < 0))
        raise ValueError(
            f"varlen: {name} must not descend, got {found[i]} and {found[i + 1]} at places {i} and {i + 1}; {hint}"
        )
    if found[-1] == 0:
        raise ValueError(f"varlen: {name} must hold at least one token, got an end of 0; {hint}")
    return sizes


def _documents(where: str, name: str, sizes: arguments.Whole, causal: bool) -> Mask:
    arguments.tokens(where, name, int(sizes.sum()))
    kind = segment_lists.KINDS.index(segment_lists.TEXT if causal else segment_lists.IMAGE)
    return segment_masks.from_codes(np.full(len(sizes), kind, np.int8), sizes, np.ones_like(sizes))


def padding(mask: Mask, query_lengths: Lengths, key_lengths: Lengths, *, side: str = "right") -> list[Mask]:
    """One mask for each batch element: `mask` without the padding; rows of padding see nothing.

        mask(q, k) and q < query_lengths[b] and k < key_lengths[b]                                "right"
        mask(q, k) and q >= q_len - query_lengths[b] and k >= k_len - key_lengths[b]              "left"

    query_lengths, key_lengths: real rows and keys of each batch element, from 0 to those of `mask`.
    side: where the padding is. Elements of equal lengths share one mask.

    Source: huggingface/transformers, masking_utils.py; Gen-Verse/MMaDA, models/modeling_mmada.py.
    Raises TypeError or ValueError for other types, sides and lengths.
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"padding: mask must be a Mask, got {type(mask).__name__}; build one first")
    arguments.choice("padding", "side", side, SIDES)
    sizes = []
    for name, values, most in (
        ("query_lengths", query_lengths, mask.shape[0]),
        ("key_lengths", key_lengths, mask.shape[1]),
    ):
        found = arguments.numbers("padding", name, values, 0, "give one length a batch element")
        if (found > most).any():
            i = int(np.argmax(found > most))
            raise ValueError(
                f"padding: {name}[{i}] must be from 0 to {most}, the length of the mask, got {found[i]}; "
                "build a longer mask"
            )
        sizes.append(found.tolist())
    if len(sizes[0]) != len(sizes[1]):
        raise ValueError(
            f"padding: query_lengths and key_lengths must have one length, got {len(sizes[0])} and "
            f"{len(sizes[1])}; give one length a batch element"
        )
    batch = list(zip(*sizes, strict=True))
    cut = {lengths: _cut(mask, lengths, side) for lengths in dict.fromkeys(batch)}
    return [cut[lengths] for lengths in batch]


def _cut(mask: Mask, lengths: tuple[int, int], side: str) -> Mask:
    if lengths == mask.shape:
        return mask
    (rows, keys), (q_len, k_len) = lengths, mask.shape
    start, stop = np.zeros((1, k_len), np.int32), np.zeros((1, k_len), np.int32)
    if rows:
        seen = slice(0, keys) if side == "right" else slice(k_len - keys, k_len)
        start[0, seen], stop[0, seen] = (0, rows) if side == "right" else (q_len - rows, q_len)
    return mask & Mask(mask.shape, intervals=(start, stop))


def streaming(length: int, sink: int, window: int) -> Mask:
    """StreamingLLM: a causal window, and the first tokens always; one interval per key.

        k <= q and (k < sink or q - k < window)

    length: tokens. sink: tokens that stay visible, 0 or more. window: tokens, the row's own included.

    Source: mit-han-lab/streaming-llm, streaming_llm/kv_cache.py.
    Raises TypeError or ValueError for other types, a negative sink and a window below 1.
    """
    total = checked_length("streaming", "length", length)
    kept = count("streaming", "sink", sink)
    reach = min(masks_arguments.at_least_one("streaming", "window", window), total)
    start = np.arange(total, dtype=np.int32)
    stop = np.minimum(start, total - reach) + np.int32(reach)
    stop[:kept] = total
    return Mask((total, total), intervals=(start[None], stop[None]))


def mllama(query_length: int, images: Spans, tile_tokens: int = 1601, max_tiles: int = 4) -> Mask:
    """Cross-attention of Llama 3.2 Vision: text rows against the tiles of images; one interval per key.

        position(image(k)) <= q < end(image(k)) and tile(k) < tiles(image(k))

    where an image ends at the next one, and images at consecutive places end together. Rows before the first
    image see nothing (out = 0, where transformers makes such rows see all and drops them later).

    query_length: text tokens. images: [(position, tiles), ...], positions ascending, tiles from 0 to max_tiles
    (an image without tiles keeps its keys, which nobody sees). tile_tokens: tokens of a tile. Keys:
    len(images) * max_tiles * tile_tokens.

    Source: huggingface/transformers, models/mllama/processing_mllama.py and modeling_mllama.py.
    Raises TypeError or ValueError for other types, no images and images out of order or range.
    """
    rows = checked_length("mllama", "query_length", query_length)
    size = checked_length("mllama", "tile_tokens", tile_tokens)
    most = masks_arguments.at_least_one("mllama", "max_tiles", max_tiles)
    given = arguments.pairs("mllama", "images", images, "position, tiles")
    if not given:
        raise ValueError("mllama: images must hold at least one image, got none; skip the cross-attention")
    arguments.tokens("mllama", "images", len(given) * most * size)
    end = last = rows
    ends = []
    for i in reversed(range(len(given))):
        position, tiles = given[i]
        if not 0 <= position < last:
            raise ValueError(
                f"mllama: images[{i}] must be at a place from 0 to {last - 1} (the text has {rows} tokens, "
                f"positions ascend), got {position}; give the images in the order of the text"
            )
        if not 0 <= tiles <= most:
            raise ValueError(
                f"mllama: images[{i}] must have from 0 to max_tiles={most} tiles, got {tiles}; raise max_tiles"
            )
        if position != last - 1:
            end = last
        ends.append(end)
        last = position
    positions, tiles_of = np.array(given, np.int64).T
    start = np.stack([positions, np.zeros_like(positions)], axis=1).ravel().astype(np.int32)
    stop = np.stack([np.array(ends[::-1]), np.zeros_like(positions)], axis=1).ravel().astype(np.int32)
    sizes = np.stack([tiles_of * size, (most - tiles_of) * size], axis=1).ravel()
    keys = (np.repeat(start, sizes)[None], np.repeat(stop, sizes)[None])
    return Mask((rows, len(keys[0][0])), intervals=keys)


def tree(context: int, parents: Lengths) -> Mask:
    """Verification of a draft tree (EAGLE, Medusa): the rows are the drafts, the keys context and drafts.

        k < context or k - context == q or k - context is an ancestor of q

    context: tokens before the drafts, 0 or more. parents: for each draft the index of its parent among the
    drafts, -1 for a root; a parent stands before its children. Intervals where no key needs more than 4
    (drafts in depth-first order need one), else bits.

    Source: SafeAILab/EAGLE, eagle/model/utils.py; sgl-project/sglang, speculative/eagle_utils.py.
    Raises TypeError or ValueError for other types, no drafts and parents out of range.
    """
    before = count("tree", "context", context)
    hint = "give each draft the index of its parent, -1 for a root"
    drafts = arguments.numbers("tree", "parents", parents, -1, hint).tolist()
    sees = np.eye(len(drafts), dtype=np.bool_)
    for i, parent in enumerate(drafts):
        if parent >= i:
            raise ValueError(
                f"tree: parents[{i}] must be from -1 to {i - 1}, got {parent}; sort parents before their children"
            )
        if parent >= 0:
            sees[i] |= sees[parent]
    rows = len(drafts)
    keys = arguments.tokens("tree", "context and parents", before + rows)
    short = masks_bits.short_intervals(lambda q0, q1: sees[q0:q1], rows, rows)
    if short is not None:
        start = np.zeros((len(short[0]), keys), np.int32)
        stop = np.zeros_like(start)
        stop[0, :before] = rows
        start[:, before:], stop[:, before:] = short
        return Mask((rows, keys), intervals=(start, stop), diagonal=before)
    bits = np.full((rows, -(-keys // 8)), 255, np.uint8)
    whole = before // 8  # bytes of context alone
    tail = np.ones((rows, keys - 8 * whole), np.bool_)
    tail[:, before - 8 * whole :] = sees
    bits[:, whole:] = np.packbits(tail, axis=1, bitorder="little")
    return Mask((rows, keys), bits=bits, diagonal=before)
