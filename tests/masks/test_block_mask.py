"""The cut against the brute-force oracle: pairs, tile kinds, list order, payloads, for thousands of masks."""

from __future__ import annotations

import dataclasses
import pickle

import mask_oracle as oracle
import numpy as np
import pytest
from cut_checks import check_cut, check_mask, kinds_of
from entry_walk import tile_by_tile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_cases import LEAVES, random_case

from omnicupy.masks import constructors, segment_masks
from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, PARTIAL

TILES = [(8, 32), (16, 64), (64, 64), (128, 128), (64, 32), (32, 128), (24, 96), (40, 160)]
BATCHES, BATCH = 10, 200  # seeded masks; with the Hypothesis ones more than the 2,000 that are promised
HYPOTHESIS_MASKS = 200


def test_the_promised_number_of_masks_is_tested() -> None:
    assert BATCHES * BATCH + HYPOTHESIS_MASKS >= 2000
    assert len(TILES) >= 6


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_masks(batch: int) -> None:
    """BATCH seeded masks of every constructor and of combinations: pairs, kinds, order, payloads."""
    rng = np.random.default_rng(batch)
    seen: set[str] = set()
    unequal = ragged = combined = 0
    for number in range(BATCH):
        kind = [*LEAVES, *["combined"] * 8][number % (len(LEAVES) + 8)]
        case = random_case(rng, kind=kind)
        check_mask(case)
        seen.add(kind)
        q_len, k_len = case.dense.shape
        unequal += q_len != k_len
        combined += kind == "combined"
        for br, bc in [TILES[(number + i) % len(TILES)] for i in range(6)]:
            ragged += bool(q_len % br or k_len % bc)
            check_cut(case, br, bc)
    assert seen == {*LEAVES, "combined"}
    assert unequal >= BATCH // 3
    assert ragged >= BATCH
    assert combined >= BATCH // 3


@settings(
    max_examples=HYPOTHESIS_MASKS, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(
    seed=st.integers(0, 2**32 - 1),
    q_len=st.integers(1, 700),
    k_len=st.integers(1, 700),
    kind=st.sampled_from([*LEAVES, *["combined"] * 8]),
    tile=st.sampled_from(TILES),
)
def test_hypothesis_masks(seed: int, q_len: int, k_len: int, kind: str, tile: tuple[int, int]) -> None:
    case = random_case(np.random.default_rng(seed), q_len, k_len, kind)
    check_mask(case)
    check_cut(case, *tile)


def test_causal_lists_literally() -> None:
    """Two rows of tiles: the diagonal is CAUSAL and first, the tile below it FULL."""
    blocks = constructors.causal(64).blocks(32, 32)
    assert blocks.row_offsets.tolist() == [0, 1, 3]
    assert blocks.entries.tolist() == [[CAUSAL, -1, 0, 32], [CAUSAL, -1, 32, 32], [FULL, -1, 0, 32]]
    assert (blocks.q_blocks, blocks.k_blocks, blocks.q_len, blocks.k_len, blocks.diagonal) == (
        2,
        2,
        64,
        64,
        0,
    )


def test_ragged_causal_lists_literally() -> None:
    """A tile past k_len is PARTIAL and short; rows past q_len change no kind."""
    blocks = constructors.causal(70, 40).blocks(32, 32)
    assert blocks.diagonal == -30
    assert blocks.row_offsets.tolist() == [0, 1, 3, 5]
    kinds_and_keys = [(int(kind), int(first), int(keys)) for kind, _, first, keys in blocks.entries]
    assert kinds_and_keys == [
        (CAUSAL, 0, 32),
        (CAUSAL, 0, 32),
        (PARTIAL, 32, 8),
        (PARTIAL, 32, 8),
        (FULL, 0, 32),
    ]


def test_rows_of_a_cache_keep_causal_tiles() -> None:
    mask = constructors.causal(256).rows(100, 164, 164)
    blocks = mask.blocks(64, 32)
    assert mask.diagonal == 100
    np.testing.assert_array_equal(kinds_of(blocks), oracle.tile_kinds(mask.to_dense(), 64, 32, 100))
    assert blocks.entries[0, 0] == CAUSAL


def test_dead_flag_is_set_for_existing_keys_only() -> None:
    seen = constructors.full(40, 70).blocks(8, 32)
    assert not (seen.entries[:, 0] & DEAD).any()  # the tail past k_len is not dead
    dead = (~constructors.ranges([(0, 40, 33, 34)], 40, 70)).blocks(8, 32)
    assert dead.entries[:3, 0].tolist() == [PARTIAL | DEAD, PARTIAL, FULL]


def test_empty_mask_has_no_entries() -> None:
    blocks = constructors.ranges([], 50, 70).blocks(16, 32)
    assert blocks.row_offsets.tolist() == [0] * 5
    assert blocks.entries.shape == (0, 4)
    assert not blocks.to_dense().any()


def test_equal_bit_tiles_are_stored_once() -> None:
    """A checkerboard: every tile holds the same bits."""
    q, k = np.indices((64, 128))
    blocks = constructors.from_dense((q + k) % 2 == 0).blocks(16, 32)
    assert len(blocks.entries) == 16
    assert blocks.bit_tiles.shape == (1, 16, 1)
    assert blocks.bit_tiles[0, :2, 0].tolist() == [0x55555555, 0xAAAAAAAA]


def test_bit_masks_have_full_and_causal_tiles() -> None:
    dense = np.tril(np.ones((192, 192), np.bool_))
    dense[128:, 0:64] = np.random.default_rng(0).random((64, 64)) < 0.5
    mask = constructors.from_dense(dense)
    assert mask.bits is not None
    assert kinds_of(mask.blocks(64, 64)).tolist() == [[2, 0, 0], [1, 2, 0], [3, 1, 2]]
    assert len(mask.blocks(64, 64).bit_tiles) == 1


def test_arrays_are_read_only_int32() -> None:
    for mask in (
        constructors.causal(100),
        constructors.from_dense(np.random.default_rng(0).random((60, 60)) < 0.5),
    ):
        blocks = mask.blocks(16, 32)
        for array in (blocks.row_offsets, blocks.entries):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous
            assert not array.flags.writeable
        assert blocks.bit_tiles.dtype == np.uint32
        assert not blocks.bit_tiles.flags.writeable
        with pytest.raises(dataclasses.FrozenInstanceError):
            blocks.br = 8  # type: ignore[misc]


def test_cut_is_cached_and_pickles() -> None:
    mask = constructors.causal(300)
    blocks = mask.blocks(64, 64)
    assert mask.blocks(64, 64) is blocks
    assert mask.blocks(np.int64(64), 64) is blocks  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(blocks))
    np.testing.assert_array_equal(again.to_dense(), mask.to_dense())


def test_double_cover_raises() -> None:
    blocks = tile_by_tile(constructors.full(16, 64).blocks(16, 32))
    entries = blocks.entries.copy()
    entries[:, 2] = [0, 16]
    twice = dataclasses.replace(blocks, entries=entries)
    with pytest.raises(ValueError) as caught:
        twice.to_dense()
    assert str(caught.value) == (
        "entries: each allowed pair must lie in one entry, row 0 and key 16 lie in 2; cut the mask again"
    )


def test_million_tokens_tile_without_touching_the_square() -> None:
    """1,048,576 tokens of packed samples: 2^40 pairs, 2^26 tiles; only the listed ones may cost."""
    mask = segment_masks.documents([1024] * 1024)
    blocks = mask.blocks(128, 128)
    assert blocks.tiles.sum() == 1024 * 36
    assert len(blocks.entries) == 1024 * (8 + 7)  # the FULL tiles of each block row are one run
    assert mask.pairs == 1024 * (1024 * 1025 // 2)
    full = blocks.kinds == FULL
    assert ((blocks.kinds == CAUSAL).sum(), blocks.tiles[full].sum()) == (8 * 1024, 28 * 1024)
