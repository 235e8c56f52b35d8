"""Random cases of every preset, each with its pairs by the oracles of preset_oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import more_presets
import numpy as np
import preset_oracles as oracle

import omnicupy as oc
from omnicupy import presets
from omnicupy.masks.mask import Mask

Rng = np.random.Generator
Case = tuple[Mask, np.ndarray[Any, Any]]


def upto(rng: Rng, most: int, least: int = 0) -> int:
    return int(rng.integers(least, most, endpoint=True))


def parts(rng: Rng, total: int, least: int = 1) -> list[int]:
    """Lengths that add up to `total`; least 0: with empty ones between."""
    cuts = np.unique(rng.integers(0, total, upto(rng, 5), endpoint=True)) if total else []
    lengths = [int(x) for x in np.diff([0, *cuts, total]) if x]
    for _ in range(upto(rng, 2) if least == 0 else 0):
        lengths.insert(upto(rng, len(lengths)), 0)
    return lengths


def spans_of(rng: Rng, length: int, first: int = 0) -> list[tuple[int, int]]:
    """Disjoint spans (offset, length) of [first, length), in any order; some touch."""
    sizes = parts(rng, length - first)
    offsets = first + np.cumsum(sizes) - sizes if sizes else []
    every = [(int(o), n) for o, n in zip(offsets, sizes, strict=True) if rng.random() < 0.6]
    return [every[i] for i in rng.permutation(len(every))]


def as_given(rng: Rng, values: Any) -> Any:
    """A list as it is, as a tuple or as an array."""
    way = upto(rng, 3)
    if way == 0 or not len(values):
        return values
    return tuple(values) if way == 1 else np.array(values, [np.int64, np.int32][way - 2])


def bagel(rng: Rng) -> Case:
    samples = [n for n in (upto(rng, 12) for _ in range(upto(rng, 3, 1))) if n] or [3]
    splits = [size for n in samples for size in parts(rng, n, 0)]
    if rng.random() < 0.3:
        samples, splits = [*samples, 0], [*splits, 0]
    modes = [str(rng.choice(["causal", "full", "noise"])) for _ in splits]
    given = np.array(modes) if rng.random() < 0.3 else modes
    made = presets.bagel(as_given(rng, samples), as_given(rng, splits), given)
    return made, oracle.bagel(samples, splits, modes)


def with_spans(preset: Callable[..., Mask], rule: Callable[..., Any]) -> Callable[[Rng], Case]:
    def case(rng: Rng) -> Case:
        length = upto(rng, 30, 1)
        spans = spans_of(rng, length)
        return preset(np.int32(length), as_given(rng, spans)), rule(length, spans)

    return case


def show_o(rng: Rng) -> Case:
    length, task = upto(rng, 26, 1), str(rng.choice(["t2i", "lm", "mmu", "lvg"]))
    pad = upto(rng, length) if task in ("t2i", "lvg") and rng.random() < 0.5 else 0
    prefix = upto(rng, length) if task == "mmu" else 0
    spans = spans_of(rng, length, pad) if task != "lm" else []
    made = presets.show_o(length, task, pad_end=pad, prefix=np.int64(prefix), images=as_given(rng, spans))
    return made, oracle.show_o(length, task, pad, prefix, spans)


def gemma3(rng: Rng) -> Case:
    length = upto(rng, 30, 1)
    spans, window = spans_of(rng, length), upto(rng, 34) or None
    compose = str(rng.choice(["window_over_all", "window_over_causal"])) if window else "window_over_all"
    made = presets.gemma3(length, as_given(rng, spans), window, compose)
    return made, oracle.gemma3(length, spans, window, compose)


def paligemma(rng: Rng) -> Case:
    length = upto(rng, 30, 1)
    prefix = upto(rng, length)
    return presets.paligemma(np.int16(prefix), length), oracle.paligemma(prefix, length)


def janus_cfg(rng: Rng) -> Case:
    length = upto(rng, 24, 1)
    prompt = upto(rng, length)
    cond = [bool(x) for x in rng.random(upto(rng, 3, 1)) < 0.5]
    made = presets.janus_cfg(length, prompt, np.array(cond) if rng.random() < 0.5 else cond)
    assert isinstance(made, list)
    assert len(made) == len(cond)
    b = upto(rng, len(cond) - 1)
    assert made[b] == presets.janus_cfg(length, prompt, np.bool_(cond[b]))
    return made[b], oracle.janus_cfg(length, prompt, cond[b])


def packed(rng: Rng) -> Case:
    lengths, causal = parts(rng, upto(rng, 30, 1)), bool(rng.random() < 0.5)
    return presets.packed(as_given(rng, lengths), causal), oracle.documents(lengths, causal)


def varlen(rng: Rng) -> Case:
    lengths, causal = parts(rng, upto(rng, 30, 1), 0), bool(rng.random() < 0.5)
    bounds = [0, *(int(x) for x in np.cumsum(lengths))]
    return presets.varlen(as_given(rng, bounds), np.bool_(causal)), oracle.documents(lengths, causal)


def streaming(rng: Rng) -> Case:
    length, sink, window = upto(rng, 30, 1), upto(rng, 34), upto(rng, 34, 1)
    return presets.streaming(length, sink, window), oracle.streaming(length, sink, window)


def mllama(rng: Rng) -> Case:
    rows, size, most = upto(rng, 14, 1), upto(rng, 3, 1), upto(rng, 3, 1)
    places = np.sort(rng.choice(rows, upto(rng, min(rows, 5), 1), replace=False))
    images = [(int(p), upto(rng, most, 1)) for p in places]
    return presets.mllama(rows, as_given(rng, images), size, most), oracle.mllama(rows, images, size, most)


def self_forcing(rng: Rng) -> Case:
    frames, size, per_block = upto(rng, 8, 1), upto(rng, 3, 1), upto(rng, 4, 1)
    if rng.random() < 0.4:
        layout = str(rng.choice(["split", "interleaved"]))
        made = presets.self_forcing(frames, size, per_block, True, layout=layout)
        order = "clean noisy" if layout == "split" else layout
        return made, oracle.streams(frames * size, per_block * size, order)
    local, sinks = upto(rng, 9) or None, upto(rng, 3)
    sinks = sinks if local else 0
    made = presets.self_forcing(frames, size, per_block, local_frames=local, sink_frames=sinks)
    return made, oracle.self_forcing(frames, size, per_block, local, sinks)


def bd3lm(rng: Rng) -> Case:
    length, block = upto(rng, 14, 1), upto(rng, 16, 1)
    layout = str(rng.choice(["split", "interleaved"]))
    order = "noisy clean" if layout == "split" else layout
    return presets.bd3lm(length, block, layout), oracle.streams(length, block, order)


def magi(rng: Rng) -> Case:
    chunks, size = upto(rng, 7, 1), upto(rng, 3, 1)
    reach = [upto(rng, 8, 1) for _ in range(chunks)]
    if rng.random() < 0.4:
        return presets.magi(chunks, size, np.int8(reach[0])), oracle.magi(chunks, size, reach[:1] * chunks)
    return presets.magi(chunks, size, as_given(rng, reach)), oracle.magi(chunks, size, reach)


def tree(rng: Rng) -> Case:
    context, drafts = upto(rng, 30), upto(rng, 40, 1)
    parents = [upto(rng, i - 1, -1) if rng.random() < 0.9 else -1 for i in range(drafts)]
    return presets.tree(context, as_given(rng, parents)), oracle.tree(context, parents)


def padding(rng: Rng) -> Case:
    shape = upto(rng, 20, 1), upto(rng, 20, 1)
    dense = rng.random(shape) < 0.5 if rng.random() < 0.5 else oc.causal(*shape).to_dense()
    batch, side = upto(rng, 3, 1), str(rng.choice(["left", "right"]))
    rows, keys = ([upto(rng, size) for _ in range(batch)] for size in shape)
    made = presets.padding(oc.from_dense(dense), as_given(rng, rows), as_given(rng, keys), side=side)
    assert len(made) == batch
    b = upto(rng, batch - 1)
    return made[b], oracle.padding(dense, rows[b], keys[b], side)


CASES: dict[str, Callable[[Rng], Case]] = {
    "bagel": bagel,
    "transfusion": with_spans(presets.transfusion, oracle.transfusion),
    "show_o2": with_spans(presets.show_o2, oracle.transfusion),
    "hunyuan_image3": with_spans(presets.hunyuan_image3, oracle.images),
    "show_o": show_o,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "janus_cfg": janus_cfg,
    "packed": packed,
    "varlen": varlen,
    "streaming": streaming,
    "mllama": mllama,
    "self_forcing": self_forcing,
    "bd3lm": bd3lm,
    "magi": magi,
    "tree": tree,
    "padding": padding,
} | more_presets.CASES
