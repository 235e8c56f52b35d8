"""Presets of models that generate in blocks: video in chunks of frames, block diffusion."""

from __future__ import annotations

import numpy as np

from omnicupy.masks import arguments, intervals, segment_masks
from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments as presets_arguments
from omnicupy.presets.arguments import Lengths

SPLIT, INTERLEAVED = LAYOUTS = ("split", "interleaved")


def self_forcing(
    frames: int,
    frame_tokens: int,
    frames_per_block: int,
    teacher_forcing: bool = False,
    *,
    layout: str = SPLIT,
    local_frames: int | None = None,
    sink_frames: int = 0,
) -> Mask:
    """Self-Forcing and CausVid: video in blocks of frames, each sees itself and the blocks before it.

        k < end(block(q))
        local_frames:  (k < end(block(q)) and (k >= end(block(q)) - local_frames * frame_tokens
                                               or k < sink_frames * frame_tokens)) or q == k
        teacher_forcing, two copies of the video, with positions q and k inside their copies:
            clean q:  clean k and k < end(block(q))
            noisy q:  (noisy k and block(k) == block(q)) or (clean k and block(k) < block(q))

    frames, frame_tokens (tokens of a frame), frames_per_block: at least 1; the last block may be short.
    layout of the two copies: "split" is [clean | noisy], "interleaved" is [noisy 0, clean 0, noisy 1, ...];
    it means nothing without teacher_forcing. sink_frames means nothing without local_frames. One interval per
    key, two for "split".

    Source: guandeh17/Self-Forcing, wan/modules/causal_model.py (CausVid has the same rule).
    Raises TypeError or ValueError for other values, and for local_frames or sink_frames with teacher_forcing.
    """
    where = "self_forcing"
    video, size = (
        arguments.at_least_one(where, "frames", frames),
        checked_length(where, "frame_tokens", frame_tokens),
    )
    per_block = arguments.at_least_one(where, "frames_per_block", frames_per_block)
    presets_arguments.choice(where, "layout", layout, LAYOUTS)
    sinks = count(where, "sink_frames", sink_frames)
    local = None if local_frames is None else arguments.at_least_one(where, "local_frames", local_frames)
    forced = arguments.flag(where, "teacher_forcing", teacher_forcing)
    presets_arguments.tokens(where, "frames", video * size * (1 + forced))
    edges = _edges(video, per_block)
    if not forced:
        if local is None:
            return segment_masks.packed(
                [segment_lists.IMAGE] * (len(edges) - 1), np.diff(edges * size).tolist(), [len(edges) - 1]
            )
        return _local(edges, size, min(local, video), sinks)
    if local is not None or sinks:
        raise ValueError(
            "self_forcing: teacher_forcing must come without local_frames and sink_frames, got "
            f"local_frames={local_frames} and sink_frames={sink_frames}; combine masks by & for such a rule"
        )
    return _streams(edges * size, layout, clean_first=True)


def _edges(length: int, block: int) -> presets_arguments.Whole:
    """Bounds of blocks of `block` in [0, length]: 0, block, ..., length."""
    return np.minimum(np.arange(0, length + min(block, length), min(block, length), dtype=np.int64), length)


def _local(edges: presets_arguments.Whole, size: int, local: int, sinks: int) -> Mask:
    """Blocks [edges[i], edges[i + 1]) of frames of `size` tokens; a row sees `local` frames and the sinks."""
    frames = int(edges[-1])
    frame = np.arange(frames)
    first = np.repeat(edges[:-1], np.diff(edges))
    # a block sees frame f while its end is at most f + local
    stop = edges[np.searchsorted(edges, frame + local, side="right") - 1]
    stop[:sinks] = frames
    alone = stop <= first
    start = np.repeat(first * size, size).astype(np.int32)
    ends = np.repeat(stop * size, size).astype(np.int32)
    if alone.any():  # out of reach of its own block: seen by its own row only
        own = np.flatnonzero(np.repeat(alone, size)).astype(np.int32)
        start[own], ends[own] = own, own + 1
    return Mask((frames * size, frames * size), intervals=(start[None], ends[None]))


def bd3lm(length: int, block: int, layout: str = SPLIT) -> Mask:
    """Block diffusion (BD3-LM, LLaDA2, SDAR): a noisy and a clean copy of one text, in blocks.

        with positions q and k inside their copies:
            clean q:  clean k and block(k) <= block(q)
            noisy q:  (noisy k and block(k) == block(q)) or (clean k and block(k) < block(q))

    length: tokens of the clean copy; the mask has 2 * length rows and keys. block: tokens of a block; the last
    may be short. layout: "split" is [noisy | clean], two intervals per key; "interleaved" is
    [noisy 0, clean 0, noisy 1, ...], one.

    Source: kuleshov-group/bd3lms, models/dit.py.
    Raises TypeError or ValueError for other values.
    """
    total = checked_length("bd3lm", "length", length)
    size = arguments.at_least_one("bd3lm", "block", block)
    presets_arguments.choice("bd3lm", "layout", layout, LAYOUTS)
    presets_arguments.tokens("bd3lm", "length", 2 * total)
    return _streams(_edges(total, size), layout, clean_first=False)


def _streams(edges: presets_arguments.Whole, layout: str, clean_first: bool) -> Mask:
    """Two copies of one sequence in blocks [edges[i], edges[i + 1]); clean_first: their order in "split"."""
    first, stop, half = edges[:-1], edges[1:], int(edges[-1])
    sizes = stop - first
    if layout == INTERLEAVED:
        code = np.array(
            [segment_lists.KINDS.index(kind) for kind in (segment_lists.NOISE, segment_lists.IMAGE)], np.int8
        )
        blocks = len(sizes)
        return segment_masks.from_codes(np.tile(code, blocks), np.repeat(sizes, 2), np.array([2 * blocks]))
    nothing = np.zeros_like(first)
    if clean_first:
        seen = [(first, nothing + half), (half + stop, nothing + 2 * half)]
        own = [(half + first, half + stop), (nothing, nothing)]
    else:  # clean block 0 is seen by all rows but those of noisy block 0: one range
        begins, ends = np.where(first == 0, 2 * half, half + first), np.where(first == 0, 2 * half, half)
        seen = [(stop, ends), (begins, nothing + 2 * half)]
        own = [(first, stop), (nothing, nothing)]
    halves = (seen, own) if clean_first else (own, seen)
    start, end = (
        np.array([np.concatenate([copy[slot][side] for copy in halves]) for slot in (0, 1)], np.int32)
        for side in (0, 1)
    )
    return _repeated(intervals.tidy(start, end), np.tile(sizes, 2), 2 * half)


def magi(chunks: int, chunk_tokens: int, reach: int | Lengths) -> Mask:
    """MAGI-1: chunks of video; each sees itself and the chunks before it, `reach` in all.

        chunk(q) - reach[chunk(q)] < chunk(k) <= chunk(q)

    chunks, chunk_tokens (tokens of a chunk): at least 1. reach: chunks, at least 1, one number or one for each
    chunk. One interval per key where no later chunk reaches further back than an earlier one.

    Source: SandAI-org/MAGI-1, inference/pipeline/video_generate.py.
    Raises TypeError or ValueError for other values.
    """
    number = arguments.at_least_one("magi", "chunks", chunks)
    size = checked_length("magi", "chunk_tokens", chunk_tokens)
    total = presets_arguments.tokens("magi", "chunks", number * size)
    chunk = np.arange(number, dtype=np.int64)
    if isinstance(reach, int | np.integer) or (isinstance(reach, np.ndarray) and not reach.ndim):
        back = np.full(number, min(arguments.at_least_one("magi", "reach", reach), number))
    else:
        back = presets_arguments.numbers(
            "magi", "reach", reach, 1, "give the number of chunks that each chunk sees"
        )
        if len(back) != number:
            raise ValueError(
                f"magi: reach must have one number for each of the {number} chunks, got {len(back)}; "
                "pass one number for all or one for each"
            )
    low = np.maximum(chunk + 1 - back, 0)
    if (low[1:] >= low[:-1]).all():
        seen = np.searchsorted(low, chunk, side="right")
        pairs: intervals.Intervals = (chunk.astype(np.int32)[None], seen.astype(np.int32)[None])
    else:
        pairs = intervals.rectangles(np.stack([chunk, chunk + 1, low, chunk + 1], axis=1), number, number)
    scaled = (pairs[0] * np.int32(size), pairs[1] * np.int32(size))
    return _repeated(scaled, np.full(number, size), total)


def _repeated(blocks: intervals.Intervals, sizes: presets_arguments.Whole, q_len: int) -> Mask:
    """The mask in which all keys of a block, of `sizes` tokens, have the canonical intervals of the block."""
    start, stop = (np.repeat(side, sizes, axis=1) for side in blocks)
    return Mask((q_len, start.shape[1]), intervals=(start, stop))
