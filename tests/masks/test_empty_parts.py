"""Parts without tokens (documents, segments, rectangles, images) add nothing, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy import presets

Rng = np.random.Generator
Made = tuple[oc.Mask, oc.Mask]


def mixed(rng: Rng, values: list[Any], empty: Callable[[], Any]) -> list[Any]:
    """`values` with one to three empty parts between them."""
    out = list(values)
    for _ in range(int(rng.integers(1, 4))):
        out.insert(int(rng.integers(len(out) + 1)), empty())
    return out


def lengths(rng: Rng) -> list[int]:
    return [int(n) for n in rng.integers(1, 9, int(rng.integers(1, 6)))]


def documents(rng: Rng) -> Made:
    sizes, causal = lengths(rng), bool(rng.random() < 0.5)
    return oc.documents(mixed(rng, sizes, lambda: 0), causal), oc.documents(sizes, causal)


def packed(rng: Rng) -> Made:
    sizes = lengths(rng)
    return presets.packed(np.array(mixed(rng, sizes, lambda: 0))), presets.packed(sizes)


def varlen(rng: Rng) -> Made:
    sizes = lengths(rng)
    return presets.varlen(np.cumsum([0, *mixed(rng, sizes, lambda: 0)])), presets.packed(sizes, causal=False)


def kind(rng: Rng) -> str:
    return str(rng.choice(["text", "image", "noise"]))


def segments(rng: Rng) -> Made:
    samples = [[(kind(rng), n) for n in lengths(rng)] for _ in range(int(rng.integers(1, 4)))]
    given = [mixed(rng, sample, lambda: (kind(rng), 0)) for sample in samples]
    given = mixed(rng, given, lambda: [] if rng.random() < 0.5 else [("image", 0)])
    return oc.segments(given), oc.segments(samples)


def extend(rng: Rng) -> Made:
    """The first sample goes on with the last document also where it is empty."""
    base = oc.segments([("text", 3), ("image", 2)])
    samples = [[(kind(rng), n) for n in lengths(rng)] for _ in range(2)]
    if rng.random() < 0.5:
        given = [[("text", 0)], [], *samples]
        return base.extend(given), base.extend(samples, new_document=True)
    given = [mixed(rng, samples[0], lambda: ("noise", 0)), [], samples[1]]
    return base.extend(given), base.extend(samples)


def ranges(rng: Rng) -> Made:
    bounds = np.sort(rng.integers(0, 20, (5, 2, 2)), axis=2).reshape(5, 4)
    used = bounds[(bounds[:, 0] < bounds[:, 1]) & (bounds[:, 2] < bounds[:, 3])]
    given = mixed(rng, bounds.tolist(), lambda: (7, 7, 2, 9) if rng.random() < 0.5 else (2, 9, 20, 20))
    array = np.array(given)
    return oc.ranges(array if rng.random() < 0.5 else given, 20), oc.ranges(used.tolist(), 20)


def with_spans(make: Callable[[list[tuple[int, int]]], oc.Mask]) -> Callable[[Rng], Made]:
    def case(rng: Rng) -> Made:
        sizes = lengths(rng)
        at = np.cumsum([0, *sizes])
        spans = [(int(at[i]), n) for i, n in enumerate(sizes) if rng.random() < 0.7]
        return make(mixed(rng, spans, lambda: (int(rng.integers(61)), 0))), make(spans)

    return case


def slices(rng: Rng) -> Made:
    bounds = np.sort(rng.integers(0, 20, (4, 2, 2)), axis=2).reshape(4, 4).tolist()
    given = [(*one, int(rng.integers(4))) for one in bounds if one[0] < one[1] and one[2] < one[3]]
    return presets.slices(mixed(rng, given, lambda: (3, 3, 0, 9, 1)), 20), presets.slices(given, 20)


def bd3lm(rng: Rng) -> Made:
    sizes = lengths(rng)
    return presets.bd3lm(lengths=mixed(rng, sizes, lambda: 0), block=3), presets.bd3lm(lengths=sizes, block=3)


CASES: dict[str, Callable[[Rng], Made]] = {
    "documents": documents,
    "packed": packed,
    "varlen": varlen,
    "segments": segments,
    "extend": extend,
    "ranges": ranges,
    "transfusion": with_spans(lambda spans: presets.transfusion(60, spans)),
    "gemma3": with_spans(lambda spans: presets.gemma3(60, spans, window=9)),
    "gemma4": with_spans(lambda spans: presets.gemma4(60, spans, window=9)),
    "one_label": with_spans(lambda spans: presets.one_label(60, spans)),
    "slices": slices,
    "bd3lm": bd3lm,
    "show_o": with_spans(lambda spans: presets.show_o(60, "lvg", images=spans)),
}


@pytest.mark.parametrize("name", CASES)
def test_empty_parts_are_skipped(name: str) -> None:
    rng = np.random.default_rng(len(name))
    for _ in range(60):
        found, wanted = CASES[name](rng)
        assert found == wanted
        assert found.segments == wanted.segments


def test_extending_by_nothing_gives_the_mask() -> None:
    mask = oc.sliding_window(9, left=2)
    for nothing in ([], [[]], [("text", 0)], [[], [("image", 0)]]):
        assert mask.extend(nothing) is mask


def test_an_image_without_tiles_keeps_its_keys() -> None:
    mask = presets.mllama(9, [(1, 2), (4, 0), (6, 1)], tile_tokens=3, max_tiles=2)
    assert mask.shape == (9, 18)
    assert mask == oc.ranges([(1, 4, 0, 6), (6, 9, 12, 15)], 9, 18)


def test_cross_attention_of_packs() -> None:
    """Sequences without rows, without keys, or without both; queries without keys see nothing."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, keys = rng.integers(0, 7, (2, 5))
        rows[int(rng.integers(5))] += 1
        keys[int(rng.integers(5))] += 1
        of_row, of_key = np.repeat(np.arange(5), rows), np.repeat(np.arange(5), keys)
        row, key = np.arange(len(of_row)) - np.cumsum([0, *rows])[of_row], np.arange(len(of_key))
        key = key - np.cumsum([0, *keys])[of_key]
        same = of_row[:, None] == of_key
        last = (row + (keys - rows)[of_row])[:, None]
        for causal in (False, True):
            given = np.cumsum([0, *rows]), np.cumsum([0, *keys])
            mask = presets.varlen(given[0], causal, cu_seqlens_k=given[1])
            assert np.array_equal(mask.to_dense(), same & (key <= last) if causal else same)
        if (rows == keys).all():
            assert mask == presets.varlen(given[0], causal=True)
