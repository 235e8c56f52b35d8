"""The mask rules of the presets, pair by pair, transcribed from the models' formulas; slow and plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Pair = Callable[[int, int], bool]
Spans = Sequence[tuple[int, int]]


def table(q_len: int, k_len: int, rule: Pair) -> Bools:
    """rule(q, k) for every pair."""
    return np.array([[bool(rule(q, k)) for k in range(k_len)] for q in range(q_len)], np.bool_).reshape(
        q_len, k_len
    )


def labels(lengths: Sequence[int]) -> list[int]:
    """The number of the part that holds each token."""
    return [part for part, size in enumerate(lengths) for _ in range(size)]


def bagel(sample_lens: Sequence[int], split_lens: Sequence[int], modes: Sequence[str]) -> Bools:
    sample, split = labels(sample_lens), labels(split_lens)

    def rule(q: int, k: int) -> bool:
        same = split[q] == split[k]
        inside = same and modes[split[q]] in ("full", "noise")
        hidden = modes[split[k]] == "noise" and not same
        return sample[q] == sample[k] and (k <= q or inside) and not hidden

    return table(len(split), len(split), rule)


def transfusion(length: int, spans: Spans) -> Bools:
    return table(length, length, lambda q, k: k <= q or any(o <= q and k < o + n for o, n in spans))


def same_span(spans: Spans, q: int, k: int) -> bool:
    return any(o <= q < o + n and o <= k < o + n for o, n in spans)


def in_span(spans: Spans, token: int) -> bool:
    return any(o <= token < o + n for o, n in spans)


def images(length: int, spans: Spans) -> Bools:
    return table(length, length, lambda q, k: k <= q or same_span(spans, q, k))


def gemma3(length: int, spans: Spans, window: int | None, compose: str) -> Bools:
    def rule(q: int, k: int) -> bool:
        near = window is None or k > q - window
        if compose == "window_over_all":
            return near and (k <= q or same_span(spans, q, k))
        return (near and k <= q) or same_span(spans, q, k)

    return table(length, length, rule)


def paligemma(prefix: int, length: int) -> Bools:
    return table(length, length, lambda q, k: k <= q or (q < prefix and k < prefix))


def show_o(length: int, task: str, pad_end: int, prefix: int, spans: Spans) -> Bools:
    def rule(q: int, k: int) -> bool:
        if task == "t2i":
            return (k <= q and k >= pad_end) or q == k or same_span(spans, q, k)
        if task == "mmu":
            return k <= q or k < prefix or in_span(spans, k)
        if task == "lvg":
            if k == 0 or same_span(spans, q, k):
                return True
            text_hidden = in_span(spans, k) and not in_span(spans, q)
            return k <= q and k >= pad_end and not text_hidden
        return k <= q

    return table(length, length, rule)


def janus_cfg(length: int, prompt: int, cond: bool) -> Bools:
    return table(length, length, lambda q, k: k <= q and (cond or k == 0 or k >= prompt))


def documents(lengths: Sequence[int], causal: bool) -> Bools:
    part = labels(lengths)
    return table(len(part), len(part), lambda q, k: part[q] == part[k] and (k <= q or not causal))


def streaming(length: int, sink: int, window: int) -> Bools:
    return table(length, length, lambda q, k: k <= q and (k < sink or q - k < window))


def mllama(rows: int, shown: Spans, tile_tokens: int, max_tiles: int) -> Bools:
    """As transformers does it: from the ranges of rows of each image, the last first."""
    ranges = [[p, after] for (p, _), after in zip(shown, [p for p, _ in shown[1:]] + [rows], strict=True)]
    end = ranges[-1][1]
    for one in reversed(ranges):
        if one[0] == one[1] - 1:
            one[1] = end
        end = one[1]
    out = np.zeros((rows, len(shown), max_tiles, tile_tokens), np.bool_)
    for i, (_, tiles) in enumerate(shown):
        out[ranges[i][0] : ranges[i][1], i, :tiles] = True
    return out.reshape(rows, -1)


def block_end(position: int, block: int, length: int) -> int:
    return min((position // block + 1) * block, length)


def self_forcing(frames: int, size: int, per_block: int, local: int | None, sinks: int) -> Bools:
    length, block = frames * size, size * per_block

    def rule(q: int, k: int) -> bool:
        end = block_end(q, block, length)
        near = local is None or k >= end - local * size or k < sinks * size
        return (k < end and near) or q == k

    return table(length, length, rule)


def streams(length: int, block: int, layout: str) -> Bools:
    """layout: "clean noisy" or "noisy clean" (halves), "interleaved" (noisy 0, clean 0, noisy 1, ...)."""
    tokens = [(kind, x) for kind in layout.split() for x in range(length)]
    if layout == "interleaved":
        tokens = [
            (kind, x)
            for first in range(0, length, block)
            for kind in ("noisy", "clean")
            for x in range(first, min(first + block, length))
        ]

    def rule(q: int, k: int) -> bool:
        (q_kind, q_at), (k_kind, k_at) = tokens[q], tokens[k]
        q_block, k_block = q_at // block, k_at // block
        if q_kind == "clean":
            return k_kind == "clean" and k_block <= q_block
        return k_block == q_block if k_kind == "noisy" else k_block < q_block

    return table(2 * length, 2 * length, rule)


def self_forcing_edges(frames: int, per_block: int, first: int) -> list[int]:
    """The end of the block of each frame."""
    return [
        min(first if f < first else first + ((f - first) // per_block + 1) * per_block, frames)
        for f in range(frames)
    ]


def video(sizes: tuple[int, int, int | None], ends: Sequence[int], local: int | None, sinks: int) -> Bools:
    """self_forcing with a first block or keys of its own. sizes: frames, tokens of a frame of rows and of keys."""
    frames, size, of_key = sizes

    def rule(q: int, k: int) -> bool:
        f, g = q // size, k // (of_key or size)
        near = local is None or g >= ends[f] - local or g < sinks
        return (g < ends[f] and near) or (f == g if of_key else q == k)

    return table(frames * size, frames * (of_key or size), rule)


def two_videos(order: Sequence[tuple[str, int]], ends: Sequence[int], size: int) -> Bools:
    """Teacher forcing: `order` names (copy, place in the copy) of each token; ends: of the block of each frame."""

    def rule(q: int, k: int) -> bool:
        (q_copy, q_at), (k_copy, k_at) = order[q], order[k]
        q_end, k_end = ends[q_at // size], ends[k_at // size]
        if q_copy == "clean":
            return k_copy == "clean" and k_end <= q_end
        return k_end == q_end if k_copy == "noisy" else k_end < q_end

    return table(len(order), len(order), rule)


def block_diagonal(parts: Sequence[Bools]) -> Bools:
    out = np.zeros((sum(map(len, parts)),) * 2, np.bool_)
    at = 0
    for part in parts:
        out[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return out


def gemma4(length: int, spans: Spans, window: int | None) -> Bools:
    if window is None:
        return table(length, length, lambda q, k: k <= q)
    return table(length, length, lambda q, k: (k <= q or same_span(spans, q, k)) and k > q - window)


def slices(given: Sequence[tuple[int, int, int, int, int]], q_len: int, k_len: int) -> Bools:
    def rule(q: int, k: int) -> bool:
        return any(
            q0 <= q < q1
            and k0 <= k < k1
            and (kind not in (1, 3) or k - k1 <= q - q1)
            and (kind not in (2, 3) or k - k0 >= q - q0)
            for q0, q1, k0, k1, kind in given
        )

    return table(q_len, k_len, rule)


def one_label(length: int, spans: Spans) -> Bools:
    return table(length, length, lambda q, k: k <= q or (in_span(spans, q) and in_span(spans, k)))


def chunks(length: int, chunk: int, left: int | None) -> Bools:
    def rule(q: int, k: int) -> bool:
        back = q // chunk - k // chunk
        return back >= 0 and (left is None or back <= left)

    return table(length, length, rule)


def block_causal(length: int, block: int, prompt: int, causal_prompt: bool) -> Bools:
    def rule(q: int, k: int) -> bool:
        if q < prompt:
            return k <= q if causal_prompt else k < prompt
        return k < prompt + ((q - prompt) // block + 1) * block

    return table(length, length, rule)


def magi(chunks: int, size: int, reach: Sequence[int]) -> Bools:
    def rule(q: int, k: int) -> bool:
        j, c = q // size, k // size
        return j - reach[j] < c <= j

    return table(chunks * size, chunks * size, rule)


def tree(context: int, parents: Sequence[int]) -> Bools:
    def rule(q: int, k: int) -> bool:
        if k < context:
            return True
        at = q
        while at >= 0:
            if at == k - context:
                return True
            at = parents[at]
        return False

    return table(len(parents), context + len(parents), rule)


def padding(dense: Bools, rows: int, keys: int, side: str) -> Bools:
    q_len, k_len = dense.shape

    def rule(q: int, k: int) -> bool:
        real = (q < rows and k < keys) if side == "right" else (q >= q_len - rows and k >= k_len - keys)
        return bool(dense[q, k]) and real

    return table(q_len, k_len, rule)
