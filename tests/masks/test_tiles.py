"""from_tiles: its pairs, parts, algebra and cuts against dense arrays, what attention gives, and what is refused."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cut_checks import check_cut, check_mask
from mask_cases import Case, random_case

import omnicupy as oc
from omnicupy.choose import classes
from omnicupy.masks.block_mask import CAUSAL, FULL, PARTIAL
from omnicupy.reference import budget
from omnicupy.schedule.block_lists import block_lists
from omnicupy.schedule.parts import Workers

Rng = np.random.Generator


def dense_of(grid: np.ndarray, q_len: int, k_len: int, br: int, bc: int) -> np.ndarray:
    return np.repeat(np.repeat(grid, br, axis=0), bc, axis=1)[:q_len, :k_len]


def listed(rng: Rng, q_len: int, k_len: int) -> Case:
    """Random lists, in one of the forms that they may come in."""
    br, bc = int(rng.choice([1, 7, 16, 64, 100])), int(rng.choice([1, 5, 32, 64, 96]))
    grid = rng.random((-(-q_len // br), -(-k_len // bc))) < rng.choice([0.05, 0.4, 0.97])
    lists: Any = [np.flatnonzero(row).tolist() for row in grid]
    way = int(rng.integers(4))
    if way == 0:
        lists = grid
    elif way == 1:
        most = max(map(len, lists))
        lists = np.array(
            [[*rng.permutation(one), *[-1] * (most - len(one))] for one in lists], np.int32
        ).reshape(len(lists), most)
    elif way == 2:
        lists = [np.array([*rng.permutation(one), *one[:1]], np.int64) for one in lists]
    mask = oc.from_tiles(lists, q_len, k_len, br, bc)
    return Case(mask, dense_of(grid, q_len, k_len, br, bc), f"from_tiles({br}, {bc}, {way})")


def shape_of(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(1, 300)), int(rng.integers(1, 300))


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("seed", range(60))
def test_pairs_and_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = listed(rng, *shape_of(rng))
    assert case.mask.tiles is not None
    check_mask(case)
    for tile in [(8, 32), (16, 64), (64, 64), (128, 128), (24, 96)]:
        check_cut(case, *tile)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("seed", range(60))
def test_the_algebra(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = shape_of(rng)
    a, b = listed(rng, q_len, k_len), (listed if seed % 3 else random_case)(rng, q_len, k_len)
    made = [
        Case(a.mask & b.mask, a.dense & b.dense, "and"),
        Case(b.mask & a.mask, a.dense & b.dense, "and, the other way round"),
        Case(a.mask | b.mask, a.dense | b.dense, "or"),
        Case(~a.mask, ~a.dense, "not"),
        Case(~(a.mask & b.mask), ~(a.dense & b.dense), "not and"),
    ]
    for case in made:
        check_mask(case)
        assert case.mask == oc.from_dense(case.dense)
        assert hash(case.mask) == hash(oc.from_dense(case.dense))
        check_cut(case, 16, 32)
        check_cut(case, 64, 64)
        check_cut(case, 128, 96)


@pytest.mark.parametrize("seed", range(40))
def test_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = shape_of(rng)
    case = listed(rng, q_len, k_len)
    if seed % 2:
        other = random_case(rng, q_len, k_len)
        case = Case(case.mask & other.mask, case.dense & other.dense, case.label)
    (q0, q1), (k0, k1) = (np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in (q_len, k_len))
    part = Case(case.mask[q0:q1, k0:k1], case.dense[q0:q1, k0:k1], "part")
    assert part.mask.tiles is not None
    check_mask(part)
    check_cut(part, 16, 64)
    again = Case(part.mask[: q1 - q0, : k1 - k0] & part.mask, part.dense, "part of a part")
    check_mask(again)
    np.testing.assert_array_equal(case.mask.dense(q0, q1, k0, k1), part.dense)
    np.testing.assert_array_equal(case.mask.key_counts_of(q0, q1), case.dense[q0:q1].sum(axis=0))
    whole = case.mask.rows(0, q0 + 1).extend(case.mask.rows(q0 + 1, q_len)) if q0 + 1 < q_len else case.mask
    assert whole == case.mask


def test_lists_are_kept_as_they_are() -> None:
    grid = np.random.default_rng(0).random((40, 40)) < 0.2
    mask = oc.from_tiles(grid, 2560, 2560, 64, 64)
    assert mask.intervals is None
    assert mask.bits is None
    causal = mask & oc.causal(2560)
    for kept in (
        mask,
        causal,
        mask.rows(100, 900),
        mask | oc.from_tiles(~grid, 2560, 2560, 64, 64),
        ~mask,
        causal & mask,
    ):
        assert kept.tiles is not None
    assert (mask | oc.causal(2560)).tiles is None
    assert (mask & ~mask).pairs == 0
    few = oc.from_tiles(np.eye(40, dtype=bool), 2560, 2560, 64, 64)
    assert (few | oc.causal(2560)).intervals is not None, "few intervals a key"
    text = str(causal)
    assert "mask of 2560 rows x 2560 keys" in text
    assert "tiles" in text
    assert repr(mask) == f"<Mask 2560x2560 pairs={mask.pairs} tiles diagonal=0>"


def test_whole_tiles_run_without_mask_code() -> None:
    """Tiles of the kernel's size or a multiple of it are FULL, the diagonal of causal ones is CAUSAL."""
    rng = np.random.default_rng(1)
    grid = np.tril(rng.random((16, 16)) < 0.4) | np.eye(16, dtype=bool)
    for size in (64, 128):
        mask = oc.from_tiles(grid, 16 * size, 16 * size, size, size)
        assert set(mask.blocks(64, 64).kinds.tolist()) == {FULL}
        kinds = (mask & oc.causal(16 * size)).blocks(64, 64).kinds
        assert set(kinds.tolist()) == {FULL, CAUSAL}
        assert (kinds == CAUSAL).sum() == 16 * size // 64
    half = oc.from_tiles(grid, 1024, 1024, 64, 64).blocks(128, 128)
    assert PARTIAL in half.kinds
    assert len(half.bit_tiles) <= 15, "patterns of four tiles, stored once"


def test_bit_tiles_are_few_also_where_a_mask_hides_pairs() -> None:
    grid = np.random.default_rng(2).random((64, 64)) < 0.3
    blocks = (oc.from_tiles(grid, 4096, 4096, 64, 64) & oc.causal(4096)).blocks(128, 128)
    assert len(blocks.bit_tiles) <= 15 + 16
    assert ((blocks.entries[:, 1] >= 0) == (blocks.kinds == PARTIAL)).all()


def test_pickle_and_copy() -> None:
    mask = oc.from_tiles([[0, 2], [1], []], 24, 24, 8, 8) & oc.causal(24)
    mask.blocks(8, 32)
    for again in (pickle.loads(pickle.dumps(mask)), copy.copy(mask), copy.deepcopy(mask)):
        assert again == mask
        assert again.tiles is not None
        assert again._blocks == {}


def test_kernels_get_it_like_bits() -> None:
    """The packed lists hold bit tiles and no spans; the class of tuned choices is that of bits."""
    grid = np.random.default_rng(3).random((8, 8)) < 0.5
    mask = oc.from_tiles(grid, 500, 500, 64, 64)
    packed = block_lists([mask.blocks(64, 64)], Workers(1, 4))
    assert packed.n_spans == 0
    assert classes.mask_class([mask]) == "bits"


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_attention(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    masks = oc.from_tiles(rng.random((2, 5, 7)) < 0.4, 300, 400, 64, 64)
    assert isinstance(masks, list)
    q = rng.standard_normal((2, 4, 300, 16)).astype(dtype)
    k, v = rng.standard_normal((2, 2, 2, 400, 16)).astype(dtype)
    out, lse = oc.attention(q, k, v, masks, return_lse=True)
    worst = budget.compare(out, lse, budget.budget(q, k, v, masks))
    assert worst.ok, worst


BATCHED: list[Any] = [
    np.array([[[0], [1]], [[1], [0]]]),
    [[[0], [1]], [[1], [0]]],
    [np.array([[0], [1]]), [[1], [0]]],
    [np.eye(2, dtype=bool), ~np.eye(2, dtype=bool)],
]


@pytest.mark.parametrize("number", range(len(BATCHED)))
def test_one_mask_for_each_batch_element(number: int) -> None:
    masks = oc.from_tiles(BATCHED[number], 20, 20, 10, 10)
    eye = np.kron(np.eye(2), np.ones((10, 10))).astype(bool)
    assert isinstance(masks, list)
    assert masks == [oc.from_dense(eye), oc.from_dense(~eye)]


def test_blocks_of_any_size_beyond_the_mask_are_one_block() -> None:
    for size in (9, 2**31, 10**40):
        assert oc.from_tiles([[0]], 7, 5, size, size) == oc.full(7, 5)
        assert oc.from_tiles([[]], 7, 5, size, size).pairs == 0


def test_a_long_list_costs_what_it_holds() -> None:
    """262,144 tokens, 64 of 4,096 blocks for each: the pairs are counted, cut and joined without looking at them."""
    rng = np.random.default_rng(5)
    lists = np.sort(rng.integers(0, 4096, (4096, 64)), axis=1)
    mask = oc.from_tiles(lists, 1 << 18, 1 << 18, 64, 64)
    assert mask.pairs == len(np.unique(np.arange(4096)[:, None] * 4096 + lists)) * 64 * 64
    causal = mask & oc.causal(1 << 18)
    below = np.unique((np.arange(4096)[:, None] * 4096 + lists)[lists < np.arange(4096)[:, None]])
    on = (lists == np.arange(4096)[:, None]).any(axis=1).sum()
    assert causal.pairs == len(below) * 64 * 64 + int(on) * 64 * 65 // 2


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: oc.from_tiles(5, 8, 8, 4, 4), TypeError, "from_tiles: lists must be a list of lists or an array, got int 5; give the key blocks of each row block"),
    (lambda: oc.from_tiles("01", 8, 8, 4, 4), TypeError, "from_tiles: lists must be a list of lists or an array, got str '01'; give the key blocks of each row block"),
    (lambda: oc.from_tiles([0, 1], 8, 8, 4, 4), TypeError, "from_tiles: lists[0] must be a list of lists or an array, got int 0; give the key blocks of each row block"),
    (lambda: oc.from_tiles([[0]], 8, 8, 4, 4), ValueError, "from_tiles: lists must have a list for each of the 2 blocks of 4 rows, got 1; give an empty one to rows that see nothing"),
    (lambda: oc.from_tiles([[0], [2]], 8, 8, 4, 4), ValueError, "from_tiles: lists[1] must name key blocks from 0 to 1, got 2; k_len / bc gives their number"),
    (lambda: oc.from_tiles([[0], [-1]], 8, 8, 4, 4), ValueError, "from_tiles: lists[1] must name key blocks from 0 to 1, got -1; k_len / bc gives their number"),
    (lambda: oc.from_tiles([[0], [0.5]], 8, 8, 4, 4), TypeError, "from_tiles: lists[1] must be a list of block numbers, got [0.5]; give integers"),
    (lambda: oc.from_tiles([[0], [True]], 8, 8, 4, 4), TypeError, "from_tiles: lists[1] must be a list of block numbers, got [True]; give integers"),
    (lambda: oc.from_tiles(np.array([[0, 1], [-2, 1]]), 8, 8, 4, 4), ValueError, "from_tiles: lists[1] must name key blocks from 0 to 1, got -2; k_len / bc gives their number"),
    (lambda: oc.from_tiles(np.ones((2, 3), bool), 8, 8, 4, 4), ValueError, "from_tiles: lists must have shape (2, 2) (row blocks, key blocks) where it is boolean, got (2, 3); give every key block"),
    (lambda: oc.from_tiles(np.ones((2, 2)), 8, 8, 4, 4), TypeError, "from_tiles: lists must hold block numbers or booleans, got an array of float64 with shape (2, 2); convert it"),
    (lambda: oc.from_tiles(np.ma.masked_array([[0], [1]]), 8, 8, 4, 4), TypeError, "from_tiles: lists must be a plain NumPy array, got numpy.ma.MaskedArray, whose own rules would be ignored; pass numpy.asarray of it where its plain elements are meant"),
    (lambda: oc.from_tiles(np.zeros((1, 2, 2, 1), int), 8, 8, 4, 4), ValueError, "from_tiles: lists must have two axes (row blocks, key blocks), or three with batch elements first, got 4; a mask is shared by all heads: make one for each kind of head and call attention for each"),
    (lambda: oc.from_tiles([[[0], [1]], [[0]]], 8, 8, 4, 4), ValueError, "from_tiles: lists[1] must have a list for each of the 2 blocks of 4 rows, got 1; give an empty one to rows that see nothing"),
    (lambda: oc.from_tiles([[0]], 0, 8, 4, 4), ValueError, "from_tiles: q_len must be from 1 to 1073741824 tokens, got 0; pass a length in that range"),
    (lambda: oc.from_tiles([[0]], 8, 8, 0, 4), ValueError, "from_tiles: br must be at least 1, got 0; pass a positive number"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_call(number: int) -> None:
    call, kind, message = BAD[number]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert (caught.type, str(caught.value)) == (kind, message)
