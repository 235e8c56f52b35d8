"""masks/key_cut.py: the cut by blocks of keys is the one by blocks of queries, turned; and what stretches are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks import key_cut, stretches
from omnicupy.masks.arguments import MAX_LENGTH
from omnicupy.masks.block_mask import CAUSAL
from omnicupy.masks.mask import Mask
from omnicupy.masks.stretches import Stretches
from omnicupy.masks.transpose import by_key_blocks

TILES = ((64, 64), (64, 128), (32, 96), (96, 32), (64, 192), (256, 64))
ARRAYS = ("offsets", "entries", "tiles", "bit_tiles", "dead_rows")
SEGMENTS = [("text", 300), ("image", 500), ("noise", 77), ("text", 200)], [("image", 190), ("text", 65)]
MASKS: dict[str, Callable[[], Mask]] = {
    "segments": lambda: oc.segments(SEGMENTS),
    "short last block": lambda: oc.segments(SEGMENTS)[:777, :],
    "later rows": lambda: oc.segments(SEGMENTS)[150:, 10:],
    "window": lambda: oc.sliding_window(1000, 1000, left=130),
    "window to the end": lambda: oc.sliding_window(1001, 1100, left=70, right=20),
    "window and sink": lambda: oc.sliding_window(700, 700, left=90) | oc.sink(700, 33, 700),
    "what follows": lambda: ~oc.causal(500),
    "above and below a window": lambda: ~oc.sliding_window(400, 400, left=50),
    "more rows than keys": lambda: oc.causal(900, 300),
    "more keys than rows": lambda: oc.causal(300, 900),
    "nothing": lambda: ~oc.full(200, 150),
    "few keys": lambda: oc.ranges([(10, 500, 300, 310), (0, 40, 305, 320)], 512, 640),
}


def check(mask: Mask, tile: tuple[int, int], label: str = "") -> None:
    found, expected = mask.key_blocks(*tile), by_key_blocks(mask.blocks(*tile))
    for name in ARRAYS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{label} {mask.shape} at {tile}: {name}")
        assert ours.dtype == theirs.dtype, name
    assert not found.entries.flags.writeable
    assert (found.q_blocks, found.k_blocks) == tuple(
        -(-a // b) for a, b in zip(mask.shape, tile, strict=True)
    )


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", MASKS)
def test_named_masks(name: str, tile: tuple[int, int]) -> None:
    check(MASKS[name](), tile, name)


@pytest.mark.parametrize("seed", range(20))
def test_random_masks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where keys are looked at in several chunks, and where no number of stretches is too large."""
    monkeypatch.setattr(stretches, "CHUNK_KEYS", (1 << 14, 200)[seed % 2])
    monkeypatch.setattr(key_cut, "FEW_KEYS", 8 if seed % 4 < 2 else 1)
    rng = np.random.default_rng(seed)
    for _ in range(15):
        case = random_case(rng)
        check(case.mask, TILES[int(rng.integers(len(TILES)))], case.label)


@pytest.mark.parametrize("q_len", [MAX_LENGTH, MAX_LENGTH - 1000])
def test_longest_masks(q_len: int) -> None:
    for mask in (oc.ranges([(7, q_len - 1, 0, 64)], q_len, 64), oc.sliding_window(q_len, 64, left=5)):
        found, expected = mask.key_blocks(2**26, 32), by_key_blocks(mask.blocks(2**26, 32))
        np.testing.assert_array_equal(found.entries, expected.entries)


def _all(mask: Mask, bc: int, most: int = 1 << 30) -> Stretches | None:
    assert mask.intervals is not None
    return stretches.stretches(mask.intervals, (0, mask.shape[1]), bc, most)


@pytest.mark.parametrize("name", MASKS)
def test_stretches_hold_the_interval_of_each_key_once(name: str) -> None:
    mask = MASKS[name]()
    assert mask.intervals is not None
    found = _all(mask, 64)
    assert found is not None
    bounds = [np.full_like(side, -1) for side in mask.intervals]
    for i in range(len(found.key)):
        first, keys = int(found.key[i]), int(found.keys[i])
        assert first // 64 == (first + keys - 1) // 64
        some = slice(first, first + keys)
        for side, begin, moves in (
            (bounds[0], found.start, found.rises),
            (bounds[1], found.stop, found.grows),
        ):
            assert (side[found.slot[i], some] == -1).all()
            side[found.slot[i], some] = begin[i] + moves[i] * np.arange(keys)
    np.testing.assert_array_equal(bounds, mask.intervals)


def test_masks_of_models_have_few_stretches() -> None:
    for mask, most in ((oc.segments(SEGMENTS), 30), (oc.sliding_window(4096, 4096, left=512), 70)):
        found = _all(mask, 64, most)
        assert found is not None
        assert len(found.key) >= mask.shape[1] // 64


def test_masks_of_many_stretches_are_turned() -> None:
    rng = np.random.default_rng(3)
    start = rng.integers(0, 400, 600)
    mask = oc.intervals(start, start + rng.integers(1, 100, 600), 512)
    assert _all(mask, 64, 600 // key_cut.FEW_KEYS) is None
    check(mask, (64, 64))


def test_tiles_on_the_diagonal_are_causal_without_a_look_at_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cut, "_tested", lambda *_: pytest.fail("looked"))
    found = oc.documents([640, 320]).key_blocks(64, 64)
    assert (found.kinds == CAUSAL).sum() == 15


def test_a_cut_is_made_once() -> None:
    mask = oc.causal(500)
    assert mask.key_blocks(64, 128) is mask.key_blocks(64, 128)
    assert mask.key_blocks(64, 128) is not mask.key_blocks(64, 64)
    with pytest.raises(ValueError, match="br must be a multiple of 32"):
        mask.key_blocks(48, 32)
