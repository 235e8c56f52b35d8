"""Presets whose images see each other, with many images: the same pairs in both of their forms, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import preset_oracles as oracle
import pytest

import omnicupy as oc
from omnicupy import presets
from omnicupy.masks.mask import Mask
from omnicupy.presets import spans as preset_spans

MIB = 1 << 20
TOKENS = 1 << 20
Spans = list[tuple[int, int]]
Made = tuple[Callable[[], Mask], np.ndarray[Any, Any]]


def layout(rng: np.random.Generator, first: int, length: int) -> Spans:
    """Images of [first, length), some of which touch; often more than a mask has intervals for."""
    cuts = np.unique([first, length, *rng.integers(first, length, 40, endpoint=True)]).tolist()
    return [(start, stop - start) for start, stop in pairwise(cuts) if rng.random() < 0.5]


def show_o(rng: np.random.Generator) -> Made:
    length = int(rng.integers(1, 70))
    padded = int(rng.integers(0, length, endpoint=True)) if rng.random() < 0.4 else 0
    images = layout(rng, padded, length)
    expected = oracle.show_o(length, "lvg", padded, 0, images)
    return lambda: presets.show_o(length, "lvg", pad_end=padded, images=images), expected


def one_label(rng: np.random.Generator) -> Made:
    length = int(rng.integers(1, 70))
    images = layout(rng, 0, length)
    return lambda: presets.one_label(length, images), oracle.one_label(length, images)


@pytest.mark.parametrize("preset", [show_o, one_label])
def test_both_forms_have_the_pairs_of_the_rule(
    preset: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lists = 0
    for turn in range(300):
        build, expected = preset(rng)
        masks = []
        for most in (1 << 22, 0):
            monkeypatch.setattr(preset_spans, "MOST_INTERVALS", most)
            masks.append(build())
        assert masks[0].tiles is None
        lists += masks[1].tiles is not None
        for mask in masks:
            assert np.array_equal(mask.to_dense(), expected), turn
            assert np.array_equal(mask.key_counts(), expected.sum(axis=0)), turn
        if turn % 10 == 0:
            assert masks[0] == masks[1] == oc.from_dense(expected), turn
            assert np.array_equal(masks[1].blocks(8, 32).to_dense(), expected), turn
    assert lists > 100


@pytest.mark.parametrize("preset", [show_o, one_label])
def test_blocks_of_many_lengths_are_cut_sliced_and_combined(
    preset: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preset_spans, "MOST_INTERVALS", 0)
    rng = np.random.default_rng(1)
    for _ in range(40):
        build, expected = preset(rng)
        mask, length = build(), len(expected)
        window = oc.sliding_window(length, left=5)
        q0, k0 = (int(rng.integers(length)) for _ in range(2))
        q1, k1 = (int(rng.integers(first + 1, length, endpoint=True)) for first in (q0, k0))
        made = [
            (mask[q0:q1, k0:k1], expected[q0:q1, k0:k1]),
            (mask & window, expected & window.to_dense()),
            (mask | window, expected | window.to_dense()),
            (~mask, ~expected),
        ]
        for found, wanted in made:
            assert np.array_equal(found.to_dense(), wanted)
            assert np.array_equal(found.blocks(16, 32).to_dense(), wanted)
            assert np.array_equal(found.key_counts_of(1, len(wanted)), wanted[1:].sum(axis=0))


def lvg(same: bool, q_image: bool, k_image: bool, causal: bool, first: bool) -> bool:
    return first or same or (causal and (q_image or not k_image))


def labelled(same: bool, q_image: bool, k_image: bool, causal: bool, first: bool) -> bool:
    return causal or (q_image and k_image)


BUILDS = {
    "show_o": (lambda spans: presets.show_o(TOKENS, "lvg", images=spans), lvg),
    "one_label": (lambda spans: presets.one_label(TOKENS, spans), labelled),
}


@pytest.mark.in_turn(4)
@pytest.mark.parametrize(("images", "most"), [(1, 32), (4, 64), (5, 48), (1000, 48), (5000, 320)])
@pytest.mark.parametrize("name", BUILDS)
def test_a_million_tokens_stay_small(name: str, images: int, most: int) -> None:
    """An interval for each image and key is 8 GB at a thousand images."""
    build, rule = BUILDS[name]
    each = TOKENS // images
    spans = [(i * each + each // 10, each - each // 10) for i in range(images)]
    tracemalloc.start()
    try:
        mask = build(spans)
        assert tracemalloc.get_traced_memory()[1] < most * MIB
    finally:
        tracemalloc.stop()
    places = np.linspace(0, TOKENS - 1, 23).astype(int).tolist()
    image = {
        place: place // each for place in places if place % each >= each // 10 and place // each < images
    }
    for q in places:
        part = mask.rows(q, q + 1).to_dense()[0]
        for k in places:
            same = q in image and k in image and image[q] == image[k]
            assert part[k] == rule(same, q in image, k in image, k <= q, k == 0), (q, k)
