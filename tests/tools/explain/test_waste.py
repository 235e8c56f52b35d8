"""Wasted pairs are found where they are, counted exactly, and named."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.masks.mask import Mask
from omnicupy.tools.explain.waste import Waste, wastes


def _brute(mask: Mask, br: int, bc: int) -> dict[str, int]:
    """Pairs of visited tiles that are not allowed, by whether they exist at all."""
    dense = mask.to_dense()
    q_len, k_len = dense.shape
    padded = np.zeros((-(-q_len // br) * br, -(-k_len // bc) * bc), np.bool_)
    padded[:q_len, :k_len] = dense
    beyond = np.ones_like(padded)
    beyond[:q_len, :k_len] = False
    found = {"inside": 0, "beyond": 0}
    for q0 in range(0, q_len, br):
        for k0 in range(0, k_len, bc):
            tile = np.s_[q0 : q0 + br, k0 : k0 + bc]
            if padded[tile].any():
                found["beyond"] += int(beyond[tile].sum())
                found["inside"] += int((~padded[tile] & ~beyond[tile]).sum())
    return found


MASKS = {
    "full": oc.full(100),
    "ragged": oc.full(70, 130),
    "causal": oc.causal(150, 200),
    "window": oc.sliding_window(200, left=30),
    "sink": oc.causal(200) & (oc.sliding_window(200, left=30) | oc.sink(200, 4)),
    "segments": oc.segments([("text", 50), ("image", 70), ("noise", 40), ("text", 33)]),
    "packed": oc.segments([[("text", 30), ("image", 41)], [("noise", 50), ("text", 20)]]),
    "slice": oc.random(300, 2)[40:170, 10:260],
    "empty": ~oc.full(64),
    "bits": oc.from_dense(np.random.default_rng(0).random((90, 110)) < 0.1),
    "two intervals": oc.from_predicate(lambda q, k: ((q // 13) % 3 != k % 2) & (k < 150), 128, 180),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("tile", [(64, 64), (32, 96), (8, 32)])
def test_every_wasted_pair_has_one_origin(name: str, tile: tuple[int, int]) -> None:
    mask = MASKS[name]
    found = wastes(mask, mask.blocks(*tile))
    expected = _brute(mask, *tile)
    beyond = sum(one.pairs for one in found if one.what == "the end of the mask")
    assert {"inside": sum(one.pairs for one in found) - beyond, "beyond": beyond} == expected
    stats = mask.stats(*tile)
    assert sum(one.pairs for one in found) == stats.executed - stats.pairs
    assert [one.pairs for one in found] == sorted((one.pairs for one in found), reverse=True)
    assert all(one.pairs > 0 and 0 < one.tiles <= stats.tiles for one in found)


def _of(mask: Mask, br: int, bc: int) -> set[tuple[str, str, int, int]]:
    return {(one.what, one.why, one.tiles, one.pairs) for one in wastes(mask, mask.blocks(br, bc))}


def test_segments_are_named_with_their_reasons() -> None:
    mask = oc.segments([[("text", 32), ("noise", 16)], [("image", 48)]])
    assert _of(mask, 32, 32) == {
        ("text 1, tokens 0 to 31, document 1", "its causal diagonal", 1, 32 * 31 // 2),
        (
            "text 1, tokens 0 to 31, document 1",
            "rows after its document, or out of reach, share its tiles",
            1,
            512,
        ),
        # in the tile of rows 32 to 63, and in that of rows 64 to 95, which the image's first keys keep visited
        ("noise 1, tokens 32 to 47, document 1", "hidden from the rows after it", 2, 256 + 512),
        ("image 1, tokens 48 to 95, document 2", "rows before it share its tiles", 2, 256 + 512),
    }


def test_a_full_mask_of_whole_tiles_wastes_nothing() -> None:
    mask = oc.full(128)
    assert wastes(mask, mask.blocks(64, 64)) == []


def test_rows_and_keys_past_the_end_are_their_own_origin() -> None:
    mask = oc.full(100, 70)
    assert wastes(mask, mask.blocks(64, 64)) == [
        Waste(
            "the end of the mask",
            0,
            70,
            "no such rows or keys: tiles reach past the end",
            3,
            128 * 128 - 100 * 70,
        )
    ]


def test_masks_without_segments_name_their_keys() -> None:
    found = wastes(oc.causal(128), oc.causal(128).blocks(64, 64))
    assert {(one.what, one.first, one.stop, one.why) for one in found} == {
        ("keys 0 to 63", 0, 64, "the diagonal"),
        ("keys 64 to 127", 64, 128, "the diagonal"),
    }
    assert [one.pairs for one in found] == [64 * 63 // 2] * 2


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_add_up(seed: int) -> None:
    mask = oc.random(700, seed, text=(5, 60), image=(20, 200), documents=3)
    for br, bc in ((64, 32), (128, 160), (192, 96)):
        stats = mask.stats(br, bc)
        assert sum(one.pairs for one in wastes(mask, mask.blocks(br, bc))) == stats.executed - stats.pairs
