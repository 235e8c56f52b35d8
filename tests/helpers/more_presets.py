"""Random cases of presets, beside those of test_presets: block diffusion, video, slices, labels, chunks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import preset_oracles as oracle

from omnicupy import presets
from omnicupy.masks.mask import Mask

Rng = np.random.Generator
Case = tuple[Mask, np.ndarray[Any, Any]]
NAMES = ("full", "causal", "inverse_causal", "both")


def upto(rng: Rng, most: int, least: int = 0) -> int:
    return int(rng.integers(least, most, endpoint=True))


def spans_of(rng: Rng, length: int) -> list[tuple[int, int]]:
    cuts = np.unique(rng.integers(0, length, 7, endpoint=True))
    spans = [(int(a), int(b - a)) for a, b in pairwise(cuts) if rng.random() < 0.6]
    return [spans[i] for i in rng.permutation(len(spans))]


def gemma4(rng: Rng) -> Case:
    length = upto(rng, 30, 1)
    spans, window = spans_of(rng, length), upto(rng, 34) or None
    return presets.gemma4(length, spans, window), oracle.gemma4(length, spans, window)


def slices(rng: Rng) -> Case:
    q_len, k_len = upto(rng, 24, 1), upto(rng, 90, 1)
    given = []
    for _ in range(upto(rng, 6)):
        (q0, q1), (k0, k1) = (np.sort(rng.integers(0, n, 2, endpoint=True)).tolist() for n in (q_len, k_len))
        given.append((q0, q1, k0, k1, upto(rng, 3)))
    way = upto(rng, 2)
    passed: Any = given if way == 0 else [(*one[:4], NAMES[one[4]]) for one in given]
    if way == 2 and given:
        passed = np.array(given)
    return presets.slices(passed, q_len, k_len), oracle.slices(given, q_len, k_len)


def one_label(rng: Rng) -> Case:
    length = upto(rng, 30, 1)
    spans = spans_of(rng, length)
    return presets.one_label(length, spans), oracle.one_label(length, spans)


def chunks(rng: Rng) -> Case:
    length, chunk, left = upto(rng, 30, 1), upto(rng, 40, 1), upto(rng, 6)
    back = None if left == 6 else left
    return presets.chunks(length, chunk, back), oracle.chunks(length, chunk, back)


def block_causal(rng: Rng) -> Case:
    length, block, causal = upto(rng, 30, 1), upto(rng, 34, 1), bool(rng.random() < 0.5)
    prompt = upto(rng, length)
    made = presets.block_causal(length, block, prompt=prompt, causal_prompt=causal)
    return made, oracle.block_causal(length, block, prompt, causal)


def packed_bd3lm(rng: Rng) -> Case:
    lengths, block = [upto(rng, 9) for _ in range(upto(rng, 4))] + [upto(rng, 9, 1)], upto(rng, 5, 1)
    layout = str(rng.choice(["split", "interleaved"]))
    order = "noisy clean" if layout == "split" else layout
    made = presets.bd3lm(lengths=np.array(lengths), block=block, layout=layout)
    return made, oracle.block_diagonal([oracle.streams(n, block, order) for n in lengths if n])


def video(rng: Rng) -> Case:
    """self_forcing with a first block of its own, or keys of another size."""
    frames, size, per_block = upto(rng, 8, 1), upto(rng, 3, 1), upto(rng, 4, 1)
    first = upto(rng, 5, 1) if rng.random() < 0.7 else None
    of_key = upto(rng, 3, 1) if rng.random() < 0.5 else None
    local, sinks = upto(rng, 9) or None, upto(rng, 3)
    sinks = sinks if local else 0
    made = presets.self_forcing(
        frames,
        size,
        per_block,
        first_frames=first,
        local_frames=local,
        sink_frames=sinks,
        key_frame_tokens=of_key,
    )
    ends = oracle.self_forcing_edges(frames, per_block, first or per_block)
    return made, oracle.video((frames, size, of_key), ends, local, sinks)


def two_videos(rng: Rng) -> Case:
    frames, size, per_block, ranks = upto(rng, 6, 1), upto(rng, 3, 1), upto(rng, 3, 1), upto(rng, 4, 1)
    first, layout = upto(rng, 4, 1), str(rng.choice(["split", "ranked"]))
    frames = frames * ranks if layout == "ranked" else frames
    how = {"layout": layout, "ranks": ranks if layout == "ranked" else None, "first_frames": first}
    made = presets.self_forcing(frames, size, per_block, True, **how)
    parts = ranks if layout == "ranked" else 1
    each = frames * size // parts
    order = [(copy, r * each + x) for r in range(parts) for copy in ("clean", "noisy") for x in range(each)]
    return made, oracle.two_videos(order, oracle.self_forcing_edges(frames, per_block, first), size)


CASES: dict[str, Callable[[Rng], Case]] = {
    "gemma4": gemma4,
    "slices": slices,
    "one_label": one_label,
    "chunks": chunks,
    "block_causal": block_causal,
    "bd3lm, packed": packed_bd3lm,
    "self_forcing, video": video,
    "self_forcing, two videos": two_videos,
}
