"""Presets of models whose text is causal and whose images see themselves whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import arguments as masks_arguments
from omnicupy.masks import constructors, segment_masks
from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.intervals import IntArray
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments
from omnicupy.presets.arguments import Lengths, Spans

MODES = {"causal": segment_lists.TEXT, "full": segment_lists.IMAGE, "noise": segment_lists.NOISE}
OVER_ALL, OVER_CAUSAL = COMPOSITIONS = ("window_over_all", "window_over_causal")


def bagel(sample_lens: Lengths, split_lens: Lengths, attn_modes: Sequence[str]) -> Mask:
    """A packed row of BAGEL, as its data pipeline describes it; one interval per key.

        same_sample(q, k) and (k <= q or (same_split(q, k) and mode in ("full", "noise")))
            and not (mode(k) == "noise" and not same_split(q, k))

    sample_lens: tokens of each packed sample. split_lens: tokens of each split, one flat list over all
    samples. attn_modes: "causal", "full" or "noise" for each split. Lengths of 0 (a pack without padding)
    are skipped.

    Source: ByteDance-Seed/Bagel, data/data_utils.py and data/dataset_base.py.
    Raises TypeError or ValueError for other types and modes, and where a sample does not end with a split.
    """
    hint = "pass the number of tokens of each"
    lengths = arguments.numbers("bagel", "sample_lens", sample_lens, 0, hint)
    splits = arguments.numbers("bagel", "split_lens", split_lens, 0, hint)
    modes = attn_modes.tolist() if isinstance(attn_modes, np.ndarray) else attn_modes
    if not isinstance(modes, Sequence) or isinstance(modes, str):
        raise TypeError(
            f"bagel: attn_modes must be a list of modes, got {type(modes).__name__} {modes!r}; make it a list"
        )
    if len(modes) != len(splits):
        raise ValueError(
            f"bagel: attn_modes must have one mode for each split, got {len(modes)} for {len(splits)} splits; "
            "give both lists over all samples"
        )
    kinds = [
        MODES[arguments.choice("bagel", f"attn_modes[{i}]", mode, tuple(MODES))]
        for i, mode in enumerate(modes)
    ]
    last = _last_splits(lengths, splits)
    used = splits > 0
    before = np.concatenate([[0], np.cumsum(used)])
    counts = np.diff(before[last + 1], prepend=0)
    kept = [kind for kind, keep in zip(kinds, used.tolist(), strict=True) if keep]
    return segment_masks.packed(kept, splits[used].tolist(), counts[counts > 0].tolist())


def _last_splits(lengths: arguments.Whole, splits: arguments.Whole) -> arguments.Whole:
    """The split with which each sample ends."""
    ends, stops = np.cumsum(lengths), np.cumsum(splits)
    if ends[-1] != stops[-1]:
        raise ValueError(
            f"bagel: sample_lens and split_lens must add up to the same, got {ends[-1]} and {stops[-1]} "
            "tokens; pass the splits of all samples"
        )
    if ends[-1] == 0:
        raise ValueError("bagel: sample_lens must hold at least one token, got 0 tokens; drop the empty pack")
    arguments.tokens("bagel", "sample_lens", int(ends[-1]))
    last = np.searchsorted(stops, ends)
    cut = np.flatnonzero((stops[last] != ends) & (ends > 0))
    if len(cut):
        i, j = int(cut[0]), int(last[cut[0]])
        raise ValueError(
            f"bagel: a sample must end where a split ends, but sample_lens[{i}] ends at token {ends[i]}, inside "
            f"split_lens[{j}] of tokens [{stops[j] - splits[j]}, {stops[j]}); make the splits of each sample "
            "add up to it"
        )
    last[ends == 0] = -1  # empty samples in front end before the first split
    return last


def transfusion(length: int, spans: Spans) -> Mask:
    """Transfusion: causal, and each modality sees itself whole; one interval per key.

        k <= q or any(offset <= q and k < offset + size for offset, size in spans)

    length: tokens. spans: [(offset, length), ...] of the modalities, disjoint, in any order.

    Source: lucidrains/transfusion-pytorch, transfusion_pytorch/transfusion.py.
    Raises TypeError or ValueError for other types and spans outside or overlapping.
    """
    return _with_images("transfusion", length, spans)


def show_o2(length: int, spans: Spans) -> Mask:
    """Show-o2: causal, and each image or video sees itself whole; one interval per key.

        k <= q or any(offset <= q and k < offset + size for offset, size in spans)

    length: tokens. spans: [(offset, length), ...] of the modalities, disjoint, in any order.

    Source: showlab/Show-o, show-o2/models/omni_attention.py.
    Raises TypeError or ValueError for other types and spans outside or overlapping.
    """
    return _with_images("show_o2", length, spans)


def hunyuan_image3(length: int, spans: Spans) -> Mask:
    """HunyuanImage-3.0: causal, and each image sees itself whole; one interval per key.

        k <= q or same_span(q, k)

    length: tokens. spans: [(offset, length), ...]; VAE and ViT tokens of one condition image are one span.
    A denoising step is `mask.rows(first, stop)` of the timestep and image tokens.

    Source: Tencent-Hunyuan/HunyuanImage-3.0, hunyuan_image_3/hunyuan.py.
    Raises TypeError or ValueError for other types and spans outside or overlapping.
    """
    return _with_images("hunyuan_image3", length, spans)


def gemma3(length: int, image_spans: Spans, window: int | None = None, compose: str = OVER_ALL) -> Mask:
    """Gemma 3: causal text, images that see themselves; one interval per key.

        window None (global layer):           k <= q or same_image(q, k)
        compose "window_over_all":            (k <= q or same_image(q, k)) and k > q - window
        compose "window_over_causal":         (k <= q and k > q - window) or same_image(q, k)

    length: tokens. image_spans: [(offset, length), ...]. window: tokens, the row's own included. transformers
    has had the first composition since June 2026, the second before.

    Source: huggingface/transformers, models/gemma3/modeling_gemma3.py.
    Raises TypeError or ValueError for other types, spans outside or overlapping, a window
    below 1, other compositions, and the second one without a window.
    """
    total = checked_length("gemma3", "length", length)
    images = arguments.spans("gemma3", "image_spans", image_spans, total)
    arguments.choice("gemma3", "compose", compose, COMPOSITIONS)
    if window is None:
        if compose != OVER_ALL:
            raise ValueError(f"gemma3: compose {compose!r} goes with a window, got none; pass window")
        return _interleaved(total, images)
    return _within(total, images, masks_arguments.at_least_one("gemma3", "window", window), compose)


def gemma4(length: int, image_spans: Spans, window: int | None = None) -> Mask:
    """Gemma 4: images see themselves in the layers with a window alone; one interval per key.

        window None (global layer):           k <= q
        window (local layer):                 (k <= q or same_image(q, k)) and k > q - window

    length: tokens. image_spans: [(offset, length), ...] of images and videos; () for the smaller models, whose
    use_bidirectional_attention is unset. window: tokens, the row's own included.

    Source: huggingface/transformers, models/gemma4/modeling_gemma4.py.
    Raises TypeError or ValueError for other types, spans outside or overlapping and a window below 1.
    """
    total = checked_length("gemma4", "length", length)
    images = arguments.spans("gemma4", "image_spans", image_spans, total)
    if window is None:
        return constructors.causal(total)
    return _within(total, images, masks_arguments.at_least_one("gemma4", "window", window), OVER_ALL)


def _within(total: int, images: list[tuple[int, int]], reach: int, compose: str) -> Mask:
    """Causal text and images [start, stop) under a window of `reach` tokens."""
    key = np.arange(total, dtype=np.int32)
    stop = (
        np.minimum(key, total - reach) + np.int32(reach) if reach < total else np.full(total, total, np.int32)
    )
    start = key.copy()
    for first, end in images:
        start[first:end] = first
        if compose == OVER_CAUSAL:  # the window keeps row k itself, so that both parts touch
            np.maximum(stop[first:end], end, out=stop[first:end])
    return _one(start, stop, _segments(total, images))


def paligemma(prefix: int, length: int) -> Mask:
    """PaliGemma: the image and the prompt see each other, the answer is causal; one interval per key.

        k <= q or (q < prefix and k < prefix)

    prefix: tokens of image and prompt, from 0 to `length`. length: tokens in all.

    Source: huggingface/transformers, models/paligemma/modeling_paligemma.py.
    Raises TypeError or ValueError for other values.
    """
    total = checked_length("paligemma", "length", length)
    first = count("paligemma", "prefix", prefix, total, "the prefix comes first: paligemma(prefix, length)")
    return constructors.prefix(total, first)


def janus_cfg(length: int, prompt: int, cond: bool | Sequence[bool] | NDArray[np.bool_]) -> Mask | list[Mask]:
    """JanusFlow's classifier-free guidance: without the condition, the prompt but its first token is hidden.

        k <= q and (cond or k == 0 or k >= prompt)

    length: tokens in all. prompt: tokens of the prompt, from 0 to `length`. cond: a bool gives a mask, a list
    or array of bools gives a list with one mask each. One interval per key.

    Source: deepseek-ai/Janus, demo/app_janusflow.py.
    Raises TypeError or ValueError for other values.
    """
    total = checked_length("janus_cfg", "length", length)
    hidden = count("janus_cfg", "prompt", prompt, total)
    if isinstance(cond, bool | np.bool_):
        return _guided(total, hidden, bool(cond))
    values = cond.tolist() if isinstance(cond, np.ndarray) else cond
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(
            f"janus_cfg: cond must be a bool or a list of bools, got {type(values).__name__} {values!r}; "
            "pass True for the conditional half"
        )
    flags = [masks_arguments.flag("janus_cfg", f"cond[{i}]", value) for i, value in enumerate(values)]
    if not flags:
        raise ValueError("janus_cfg: cond must hold at least one bool, got none; give one a batch element")
    masks = {value: _guided(total, hidden, value) for value in set(flags)}
    return [masks[value] for value in flags]


def _guided(total: int, prompt: int, cond: bool) -> Mask:
    start = np.arange(total, dtype=np.int32)
    stop = np.full(total, total, np.int32)
    if not cond:
        start[1:prompt] = 0
        stop[1:prompt] = 0
    return _one(start, stop)


def _with_images(where: str, length: int, spans: Spans) -> Mask:
    total = checked_length(where, "length", length)
    return _interleaved(total, arguments.spans(where, "spans", spans, total))


def _interleaved(total: int, images: list[tuple[int, int]]) -> Mask:
    """Causal text around images [start, stop)."""
    kinds, firsts, stops, _ = zip(*_segments(total, images), strict=True)
    sizes = [stop - first for first, stop in zip(firsts, stops, strict=True)]
    return segment_masks.packed(list(kinds), sizes, [len(sizes)])


def _segments(total: int, images: list[tuple[int, int]]) -> tuple[tuple[str, int, int, int], ...]:
    """The images and the text between them, as a mask keeps them for drawing."""
    marks = [(0, 0), *images, (total, total)]
    found: list[tuple[str, int, int, int]] = []
    for (_, before), (first, stop) in pairwise(marks):
        if before < first:
            found.append((segment_lists.TEXT, before, first, 0))
        if first < stop:
            found.append((segment_lists.IMAGE, first, stop, 0))
    return tuple(found)


def _one(start: IntArray, stop: IntArray, segments: tuple[tuple[str, int, int, int], ...] = ()) -> Mask:
    """The square mask of one interval per key; unused ones are (0, 0)."""
    return Mask((len(start), len(start)), intervals=(start[None], stop[None]), segments=segments)
