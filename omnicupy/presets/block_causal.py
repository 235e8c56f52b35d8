"""Presets of models that generate in blocks: video in chunks of frames, block diffusion."""

from __future__ import annotations

import numpy as np

from omnicupy.masks import arguments, intervals, segment_masks
from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments as presets_arguments
from omnicupy.presets import streams
from omnicupy.presets.arguments import Lengths

SPLIT, INTERLEAVED, RANKED = LAYOUTS = ("split", "interleaved", "ranked")


def self_forcing(
    frames: int,
    frame_tokens: int,
    frames_per_block: int,
    teacher_forcing: bool = False,
    *,
    layout: str = SPLIT,
    ranks: int | None = None,
    first_frames: int | None = None,
    local_frames: int | None = None,
    sink_frames: int = 0,
    key_frame_tokens: int | None = None,
) -> Mask:
    """Self-Forcing, CausVid, LongLive: video in blocks of frames, each sees itself and the blocks before it.

        k < end(block(q))
        local_frames:  (k < end(block(q)) and (k >= end(block(q)) - local_frames * frame_tokens
                                               or k < sink_frames * frame_tokens)) or q == k
        key_frame_tokens:  the same of frame(q) and frame(k) in place of q and k (Matrix-Game: actions as keys)
        teacher_forcing, two copies of the video, with positions q and k inside their copies:
            clean q:  clean k and k < end(block(q))
            noisy q:  (noisy k and block(k) == block(q)) or (clean k and block(k) < block(q))

    frames, frame_tokens (tokens of a frame), frames_per_block: at least 1; the last block may be short.
    first_frames: frames of the first block where it differs (1: the image of image-to-video).
    layout of the two copies: "split" is [clean | noisy], "interleaved" is [noisy 0, clean 0, noisy 1, ...] by
    block, "ranked" is [clean 0, noisy 0, clean 1, ...] by rank, `ranks` equal parts of each copy (LongLive's
    sequence parallelism); for teacher_forcing alone, as is sink_frames for local_frames. key_frame_tokens: keys of
    each frame, for cross-attention. One interval per key, two for "split", up to two for each rank for "ranked".

    Source: guandeh17/Self-Forcing, wan/modules/causal_model.py (CausVid has the same rule); NVlabs/LongLive;
    SkyworkAI/Matrix-Game (whose `q_idx == kv_idx` compares a token with a frame: frames are compared here).
    Raises TypeError or ValueError for other values, what does not go together, and ranks that divide no copy.
    """
    where = "self_forcing"
    video = arguments.at_least_one(where, "frames", frames)
    size = checked_length(where, "frame_tokens", frame_tokens)
    per_block = arguments.at_least_one(where, "frames_per_block", frames_per_block)
    lead = per_block if first_frames is None else arguments.at_least_one(where, "first_frames", first_frames)
    presets_arguments.choice(where, "layout", layout, LAYOUTS)
    sinks = count(where, "sink_frames", sink_frames)
    local = None if local_frames is None else arguments.at_least_one(where, "local_frames", local_frames)
    of_key = None if key_frame_tokens is None else checked_length(where, "key_frame_tokens", key_frame_tokens)
    parts = None if ranks is None else arguments.at_least_one(where, "ranks", ranks)
    forced = arguments.flag(where, "teacher_forcing", teacher_forcing)
    presets_arguments.tokens(where, "frames", video * max(size * (1 + forced), of_key or 0))
    edges = _edges(video, per_block, lead)
    _check_together((forced, layout, parts), local, sinks, of_key)
    if not forced:
        if local is None and of_key is None:
            sizes = np.diff(edges * size).tolist()
            return segment_masks.packed([segment_lists.IMAGE] * len(sizes), sizes, [len(sizes)])
        return _local(edges, (size, of_key), video if local is None else min(local, video), sinks)
    return _two_copies(edges * size, layout, parts)


def _check_together(
    copies: tuple[bool, str, int | None], local: int | None, sinks: int, of_key: int | None
) -> None:
    """Raises ValueError for arguments of self_forcing that the mask would not have. copies: whether there are two,
    their layout, and ranks.
    """
    forced, layout, ranks = copies
    if (ranks is not None and layout != RANKED) or (layout != SPLIT and not forced):
        raise ValueError(
            'self_forcing: ranks go with layout "ranked", and another layout than "split" with teacher_forcing, got '
            f"ranks={ranks}, layout={layout!r} and teacher_forcing={forced}; pass what they go with"
        )
    if forced and (local is not None or sinks or of_key is not None):
        raise ValueError(
            "self_forcing: teacher_forcing must come without local_frames, sink_frames and key_frame_tokens, got "
            f"local_frames={local}, sink_frames={sinks} and key_frame_tokens={of_key}; combine masks by & for such a "
            "rule"
        )
    if sinks and local is None:
        raise ValueError(
            f"self_forcing: sink_frames go with local_frames, got sink_frames={sinks} without; pass local_frames"
        )


def _two_copies(edges: presets_arguments.Whole, layout: str, ranks: int | None) -> Mask:
    """A clean and a noisy copy of one video in blocks [edges[i], edges[i + 1])."""
    if layout == INTERLEAVED:
        return _interleaved([edges])
    if layout == SPLIT:
        return _clean_then_noisy(edges)
    if ranks is None or int(edges[-1]) % ranks:
        raise ValueError(
            f'self_forcing: layout "ranked" needs ranks, a divisor of the {edges[-1]} tokens of the video, got '
            f"{ranks}; pass how many ranks share the video"
        )
    return streams.ranked(edges, ranks)


def _edges(length: int, block: int, first: int | None = None) -> presets_arguments.Whole:
    """Bounds of blocks in [0, length]: the first of `first` (None: of `block`), the others of `block`."""
    step, lead = min(block, length), min(block if first is None else first, length)
    edges: presets_arguments.Whole = np.arange(lead - step, length + step, step, dtype=np.int64)
    edges[0] = 0
    return np.minimum(edges, length)


def _local(edges: presets_arguments.Whole, sizes: tuple[int, int | None], local: int, sinks: int) -> Mask:
    """Blocks [edges[i], edges[i + 1]) of frames; a row sees `local` frames and the sinks.

    sizes: tokens of a frame of rows, and of keys (None: the rows are the keys).
    """
    size, of_key = sizes
    frames = int(edges[-1])
    frame = np.arange(frames)
    first = np.repeat(edges[:-1], np.diff(edges))
    # a block sees frame f while its end is at most f + local
    stop = edges[np.searchsorted(edges, frame + local, side="right") - 1]
    stop[:sinks] = frames
    alone = stop <= first
    if of_key is not None:  # out of reach of its own block: seen by its own frame only
        start = np.where(alone, frame, first)
        stop = np.where(alone, frame + 1, stop)
        lo, hi = (np.repeat(bound * size, of_key).astype(np.int32)[None] for bound in (start, stop))
        return Mask((frames * size, frames * of_key), intervals=(lo, hi))
    lo = np.repeat(first * size, size).astype(np.int32)
    hi = np.repeat(stop * size, size).astype(np.int32)
    if alone.any():  # out of reach of its own block: seen by its own row only
        own = np.flatnonzero(np.repeat(alone, size)).astype(np.int32)
        lo[own], hi[own] = own, own + 1
    return Mask((frames * size, frames * size), intervals=(lo[None], hi[None]))


def bd3lm(
    length: int | None = None,
    block: int | None = None,
    layout: str = SPLIT,
    *,
    lengths: Lengths | None = None,
) -> Mask:
    """Block diffusion (BD3-LM, LLaDA2, SDAR): a noisy and a clean copy of one text, in blocks.

        with positions q and k inside their copies, of one sample:
            clean q:  clean k and block(k) <= block(q)
            noisy q:  (noisy k and block(k) == block(q)) or (clean k and block(k) < block(q))

    length: tokens of the clean copy; the mask has 2 * length rows and keys. lengths, in place of it: those of
    packed samples, each with both copies, one after the other; samples of length 0 are skipped. block: tokens of
    a block; the last of a sample may be short. layout: "split" is [noisy | clean], two intervals per key;
    "interleaved" is [noisy 0, clean 0, noisy 1, ...], one.

    Source: kuleshov-group/bd3lms, models/dit.py; JetAstra/SDAR (packed).
    Raises TypeError or ValueError for other values, and for both or none of length and lengths.
    """
    size = arguments.at_least_one("bd3lm", "block", block)
    presets_arguments.choice("bd3lm", "layout", layout, LAYOUTS[:2])
    if (length is None) == (lengths is None):
        raise ValueError(
            f"bd3lm: one of length and lengths must be given, got length={length!r} and lengths={lengths!r}; "
            "pass lengths for packed samples"
        )
    if lengths is None:
        total = checked_length("bd3lm", "length", length)
        presets_arguments.tokens("bd3lm", "length", 2 * total)
        each = [total]
    else:
        hint = "pass the number of tokens of each sample"
        each = [n for n in presets_arguments.numbers("bd3lm", "lengths", lengths, 0, hint).tolist() if n]
        presets_arguments.tokens("bd3lm", "lengths", 2 * sum(each))
        if not each:
            raise ValueError(f"bd3lm: lengths must hold at least one token, got none; {hint}")
    edges = [_edges(n, size) for n in each]
    return _interleaved(edges) if layout == INTERLEAVED else streams.packed(edges)


def _interleaved(of_samples: list[presets_arguments.Whole]) -> Mask:
    """Blocks of two copies of each sample as [noisy 0, clean 0, noisy 1, ...]."""
    sizes = [np.diff(edges) for edges in of_samples]
    code = np.array(
        [segment_lists.KINDS.index(kind) for kind in (segment_lists.NOISE, segment_lists.IMAGE)], np.int8
    )
    every = np.concatenate(sizes)
    counts = np.array([2 * len(one) for one in sizes])
    return segment_masks.from_codes(np.tile(code, len(every)), np.repeat(every, 2), counts)


def _clean_then_noisy(edges: presets_arguments.Whole) -> Mask:
    first, stop, half = edges[:-1], edges[1:], int(edges[-1])
    nothing = np.zeros_like(first)
    seen = [(first, nothing + half), (half + stop, nothing + 2 * half)]
    own = [(half + first, half + stop), (nothing, nothing)]
    start, end = (
        np.array([np.concatenate([copy[slot][side] for copy in (seen, own)]) for slot in (0, 1)], np.int32)
        for side in (0, 1)
    )
    return _repeated(intervals.tidy(start, end), np.tile(stop - first, 2), 2 * half)


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
