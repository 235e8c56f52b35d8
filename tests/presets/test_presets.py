"""Each preset is its model's rule, on random layouts: against the oracles of preset_oracles, pair by pair."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from preset_cases import CASES

import omnicupy as oc
from omnicupy import presets
from omnicupy.masks.mask import Mask

LAYOUTS = 400


def test_every_preset_is_checked() -> None:
    assert {name.partition(",")[0] for name in CASES} == set(presets.__all__)


def canonical(mask: Mask) -> bool:
    """Whether the arrays of the mask are the ones that its pairs have."""
    if mask.intervals is None:
        return True
    again = oc.from_dense(mask.to_dense())
    found = again.intervals
    return found is None or all(map(np.array_equal, mask.intervals, found))


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", CASES)
def test_random_layouts(name: str) -> None:
    rng = np.random.default_rng(list(CASES).index(name))
    for turn in range(LAYOUTS * (4 if name == "show_o" else 2 if name == "self_forcing" else 1)):
        mask, expected = CASES[name](rng)
        assert mask.shape == expected.shape, (name, turn)
        assert np.array_equal(mask.to_dense(), expected), (name, turn)
        assert canonical(mask), (name, turn)
        if turn % 10 == 0:
            assert np.array_equal(mask.blocks(8, 32).to_dense(), expected), (name, turn)
            assert mask == oc.from_dense(expected), (name, turn)


def test_masks_name_their_segments_where_these_are_few() -> None:
    mask = presets.transfusion(9, [(2, 3)])
    assert mask.segments == (("text", 0, 2, 0), ("image", 2, 5, 0), ("text", 5, 9, 0))
    assert presets.packed([1] * 3000).segments == ()


def test_a_long_context_costs_no_pass_over_its_pairs() -> None:
    parents = [-1, *(max(0, i - 1 - (7 * i) % 8) for i in range(1, 64))]
    mask = presets.tree(1001, parents)
    assert mask.bits is not None
    assert mask.diagonal == 1001
    assert presets.tree(1001, range(-1, 63)) == oc.causal(64, 1065)
    assert presets.tree(1001, range(-1, 63)).intervals is not None


def test_padding_shares_masks() -> None:
    base = oc.causal(6)
    whole, first, second = presets.padding(base, [6, 4, 4], [6, 5, 5])
    assert whole is base
    assert first is second


def test_empty_samples_are_skipped_wherever_they_stand() -> None:
    wanted = presets.bagel([100, 50], [60, 40, 50], ["causal", "full", "noise"])
    for lengths in ([0, 100, 50], [0, 0, 100, 0, 50, 0]):
        assert presets.bagel(lengths, [60, 40, 50], ["causal", "full", "noise"]) == wanted


@pytest.mark.parametrize("wide", [2**31, 2**62, sys.maxsize, 2**64, 10**30])
def test_a_reach_beyond_the_sequence_is_all_of_it(wide: int) -> None:
    spans, causal = [(2, 3)], oc.causal(12)
    assert (
        oc.sliding_window(12, left=wide)
        == presets.streaming(12, 1, wide)
        == presets.streaming(12, wide, 1)
        == causal
    )
    assert oc.sliding_window(5, 12, left=wide, right=wide) == oc.full(5, 12)
    for compose in ("window_over_all", "window_over_causal"):
        assert presets.gemma3(12, spans, window=wide, compose=compose) == presets.gemma3(12, spans)
    assert presets.gemma4(12, spans, window=wide) == presets.gemma3(12, spans)
    assert presets.chunks(12, 3, wide) == presets.chunks(12, 3)
    assert (
        presets.chunks(12, wide)
        == presets.block_causal(12, wide)
        == presets.self_forcing(4, 3, wide)
        == oc.full(12)
    )
    assert presets.bd3lm(12, wide) == presets.bd3lm(12, 12)
    assert presets.magi(4, 3, wide) == presets.magi(4, 3, 4)
    assert presets.self_forcing(4, 3, 2, local_frames=wide) == presets.self_forcing(4, 3, 2)
