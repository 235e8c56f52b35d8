"""Presets of models that read or write in blocks which see themselves whole: text diffusion, streaming speech."""

from __future__ import annotations

import numpy as np

from omnicupy.masks import arguments, segment_masks
from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.mask import Mask


def block_causal(length: int, block: int, *, prompt: int = 0, causal_prompt: bool = False) -> Mask:
    """Inference of block diffusion (LLaDA2, SDAR, DiffusionGemma): blocks see themselves and all before.

        k < end(block(q))                                    block(p) = (p - prompt) // block from the prompt on
        in the prompt:  k < prompt, or with causal_prompt:  k <= q

    length: tokens in all. block: tokens of a block; the last may be short. prompt: tokens in front, which are a
    block of their own, or causal text; 0 where blocks begin at the first token. One interval per key.

    Source: inclusionAI/LLaDA2.X and JetAstra/SDAR (generate.py); huggingface/transformers,
    models/diffusion_gemma/modeling_diffusion_gemma.py (causal_prompt, one block for the canvas).
    Raises TypeError or ValueError for other values.
    """
    total = checked_length("block_causal", "length", length)
    size = min(arguments.at_least_one("block_causal", "block", block), total)
    first = count("block_causal", "prompt", prompt, total)
    kind = (
        segment_lists.TEXT
        if arguments.flag("block_causal", "causal_prompt", causal_prompt)
        else segment_lists.IMAGE
    )
    edges = np.append(np.arange(first, total, size), total) if first < total else np.array([total])
    sizes = np.diff(edges).tolist()
    kinds = [segment_lists.IMAGE] * len(sizes)
    if first:
        sizes, kinds = [first, *sizes], [kind, *kinds]
    return segment_masks.packed(kinds, sizes, [len(sizes)])


def chunks(length: int, chunk: int, left: int | None = None) -> Mask:
    """Streaming speech recognition (FastConformer, Nemotron): a chunk sees itself and the `left` chunks before it.

        chunk(q) - left <= chunk(k) <= chunk(q)              chunk(p) = p // chunk

    length, chunk: tokens (frames of the encoder); the last chunk may be short. left: chunks, 0 or more; None is
    all before. One interval per key.

    Source: NVIDIA/NeMo, nemo/collections/asr/modules/conformer_encoder.py ("chunked_limited", where left is its
    left context divided by the chunk).
    Raises TypeError or ValueError for other values.
    """
    total = checked_length("chunks", "length", length)
    size = min(arguments.at_least_one("chunks", "chunk", chunk), total)
    number = -(-total // size)
    back = number if left is None else min(count("chunks", "left", left), number)
    first = np.arange(number, dtype=np.int64)
    bounds = (first * size, np.minimum((first + back + 1) * size, total))
    start, stop = (np.repeat(bound, size)[:total].astype(np.int32)[None] for bound in bounds)
    return Mask((total, total), intervals=(start, stop))
