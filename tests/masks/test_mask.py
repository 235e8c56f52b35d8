"""Masks: literal matrices of each constructor, the algebra, slices, and what a value class promises."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from mask_cases import random_case

from omnicupy.masks import constructors, cut, segment_masks
from omnicupy.masks.handles import of_handle
from omnicupy.masks.mask import Mask


def grid(mask: Mask) -> list[str]:
    """The pairs of a mask as rows of # and dots."""
    return ["".join("#" if seen else "." for seen in row) for row in mask.to_dense()]


def bit_mask(q_len: int = 40, k_len: int = 30, seed: int = 0) -> Mask:
    """A mask without a short interval form."""
    return constructors.from_dense(np.random.default_rng(seed).random((q_len, k_len)) < 0.5)


LITERAL: dict[str, tuple[Callable[[], Mask], str]] = {
    "full": (lambda: constructors.full(2, 3), "### ###"),
    "full square": (lambda: constructors.full(2), "## ##"),
    "causal": (lambda: constructors.causal(3), "#.. ##. ###"),
    "causal, more keys": (lambda: constructors.causal(2, 4), "###. ####"),
    "causal, more rows": (lambda: constructors.causal(4, 2), ".. .. #. ##"),
    "segments": (
        lambda: segment_masks.segments([("text", 2), ("noise", 2), ("image", 2), ("text", 1)]),
        "#...... ##..... ####... ####... ##..##. ##..##. ##..###",
    ),
    "segments, two documents": (
        lambda: segment_masks.segments(
            [[("image", 2), ("text", 1)], [("text", 1), ("noise", 1), ("text", 1)]]
        ),
        "##.... ##.... ###... ...#.. ...##. ...#.#",
    ),
    "documents": (lambda: segment_masks.documents([2, 1, 2]), "#.... ##... ..#.. ...#. ...##"),
    "documents, not causal": (lambda: segment_masks.documents([2, 1], causal=False), "##. ##. ..#"),
    "sliding_window": (lambda: constructors.sliding_window(4, left=1), "#... ##.. .##. ..##"),
    "sliding_window, both sides": (
        lambda: constructors.sliding_window(4, left=0, right=1),
        "##.. .##. ..## ...#",
    ),
    "sliding_window, more keys": (lambda: constructors.sliding_window(2, 4, left=1), ".##. ..##"),
    "sliding_window, more rows": (lambda: constructors.sliding_window(4, 2, left=1), ".. .. #. ##"),
    "sliding_window, unbounded": (lambda: constructors.sliding_window(2, left=10**12, right=10**12), "## ##"),
    "sink": (lambda: constructors.sink(2, 1, 3), "#.. #.."),
    "sink of none": (lambda: constructors.sink(2, 0), ".. .."),
    "prefix": (lambda: constructors.prefix(4, 2), "##.. ##.. ###. ####"),
    "prefix of none": (lambda: constructors.prefix(2, 0), "#. ##"),
    "prefix of all": (lambda: constructors.prefix(2, 2), "## ##"),
    "ranges": (
        lambda: constructors.ranges([(0, 2, 0, 1), (1, 3, 0, 2), (2, 3, 3, 4)], 3, 4),
        "#... ##.. ##.#",
    ),
    "ranges, none": (lambda: constructors.ranges([], 2), ".. .."),
    "intervals": (lambda: constructors.intervals(np.array([0, 1, 2]), np.array([2, 3, 2]), 3), "#.. ##. .#."),
    "intervals, two, touching, unordered": (
        lambda: constructors.intervals(np.array([[2, 3], [0, 0]]), np.array([[4, 4], [2, 1]]), 4),
        "## #. #. ##",
    ),
    "from_dense": (lambda: constructors.from_dense(np.array([[True, False], [False, True]])), "#. .#"),
    "from_predicate": (
        lambda: constructors.from_predicate(lambda q, k: (q + k) % 2 == 0, 3, 4),
        "#.#. .#.# #.#.",
    ),
    "random": (
        lambda: segment_masks.random(4, 0, text=(1, 1), image=(2, 2), noise=1.0),
        "#... ###. ###. #..#",
    ),
    "and": (lambda: constructors.causal(3) & constructors.sliding_window(3, left=1, right=1), "#.. ##. .##"),
    "or": (lambda: constructors.causal(3) | constructors.sink(3, 2), "##. ##. ###"),
    "not": (lambda: ~constructors.causal(3), ".## ..# ..."),
    "rows": (lambda: constructors.causal(4).rows(2, 4, 3), "### ###"),
    "rows, all keys": (lambda: constructors.causal(3).rows(1, 3), "##. ###"),
    "slice": (lambda: constructors.causal(4)[1:3, 1:], "#.. ##."),
    "slice from the end": (lambda: constructors.causal(4)[-2:, :], "###. ####"),
}


@pytest.mark.parametrize("name", LITERAL)
def test_literal_matrix(name: str) -> None:
    make, expected = LITERAL[name]
    assert grid(make()) == expected.split()


def test_shape_pairs_and_dead_keys() -> None:
    mask = segment_masks.segments([("text", 100), ("image", 50)])
    assert mask.shape == (150, 150)
    assert mask.pairs == 100 * 101 // 2 + 50 * 150
    assert type(mask.pairs) is int
    assert not mask.dead_keys().any()
    assert constructors.sink(5, 2).dead_keys().tolist() == [False, False, True, True, True]
    dense = np.random.default_rng(0).random((40, 30)) < 0.5
    dense[:, 7] = False
    assert np.flatnonzero(constructors.from_dense(dense).dead_keys()).tolist() == [7]


@pytest.mark.parametrize("seed", range(60))
def test_live_keys(seed: int) -> None:
    """Where the keys are that some row sees, also where a constructor says it; dead keys of a part."""
    rng = np.random.default_rng(seed)
    q_len, k_len = int(rng.integers(1, 40)), int(rng.integers(1, 90))
    left, right = (int(n) for n in rng.integers(0, 60, 2))
    window = constructors.sliding_window(q_len, k_len, left=left, right=right)
    for mask in (window, random_case(rng).mask, window[:, k_len // 2 :]):
        seen = np.flatnonzero(mask.to_dense().any(axis=0))
        if mask.intervals is not None:
            assert mask.live == ((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0))
        first = int(rng.integers(mask.shape[1]))
        assert np.array_equal(mask.dead_keys(first, first + 9), mask.dead_keys()[first : first + 9])


@pytest.mark.parametrize("seed", range(60))
def test_few_rows_are_cut_as_many_are(seed: int) -> None:
    """One block of query rows and one interval a key have a way of their own, with the results of the other."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        mask = random_case(rng, int(rng.integers(1, 65)), int(rng.integers(1, 700))).mask
        if mask.intervals is not None and len(mask.intervals[0]) == 1:
            for br, bc in ((64, 64), (64, 96), (128, 32)):
                few, many = cut._classify_one_row(mask, bc), cut._classify(mask, br, bc)
                assert all(map(np.array_equal, few, many))


def test_pairs_are_exact_beyond_32_bits() -> None:
    assert constructors.full(2**20).pairs == 2**40
    assert constructors.causal(2**20).pairs == 2**19 * (2**20 + 1)


def test_forms() -> None:
    """Whatever has at most 4 intervals per key is held as intervals, wherever it came from."""
    dense = constructors.prefix(50, 20).to_dense()
    assert constructors.from_dense(dense).intervals is not None
    assert bit_mask().intervals is None
    assert bit_mask().bits.dtype == np.uint8
    assert bit_mask().bits.shape == (40, 4)
    assert (bit_mask() & constructors.sink(40, 3, 30)).bits is not None
    assert (bit_mask() & constructors.sink(40, 0, 30)).intervals is not None
    stripes = [constructors.ranges([(i, i + 1, 0, 9)], 20, 9) for i in range(0, 14, 2)]
    many = stripes[0]
    for stripe in stripes[1:]:
        many = many | stripe
    assert len(many.intervals[0]) == 7
    assert len((many & ~stripes[3]).intervals[0]) == 6
    assert len((many | constructors.full(20, 9)).intervals[0]) == 1
    assert len((~many).intervals[0]) == 7  # rows 1, 3, ..., 11 and [13, 20)


@pytest.mark.parametrize("seed", range(30))
def test_algebra_identities(seed: int) -> None:
    """De Morgan, absorption and double negation, as equality of masks whichever form they have."""
    rng = np.random.default_rng(seed)
    q_len, k_len = int(rng.integers(1, 90)), int(rng.integers(1, 90))
    a, b, c = (random_case(rng, q_len, k_len).mask for _ in range(3))
    assert ~~a == a
    assert ~(a & b) == ~a | ~b
    assert a & (a | b) == a
    assert a & (b | c) == (a & b) | (a & c)
    assert (a & ~a).pairs == 0
    assert (a | ~a) == constructors.full(q_len, k_len)
    assert a.pairs + b.pairs == (a & b).pairs + (a | b).pairs


@pytest.mark.parametrize("seed", range(30))
def test_slices_of_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng)
    q_len, k_len = case.dense.shape
    q0, k0 = int(rng.integers(q_len)), int(rng.integers(k_len))
    q1, k1 = int(rng.integers(q0, q_len)) + 1, int(rng.integers(k0, k_len)) + 1
    np.testing.assert_array_equal(case.mask[q0:q1, k0:k1].to_dense(), case.dense[q0:q1, k0:k1])
    np.testing.assert_array_equal(case.mask.rows(q0, q1, k1).to_dense(), case.dense[q0:q1, :k1])
    np.testing.assert_array_equal(case.mask.dense(q0, q1, k0, k1), case.dense[q0:q1, k0:k1])
    assert case.mask[q0:q1, k0:k1].diagonal == case.mask.diagonal + q0 - k0
    assert case.mask[q0:q1, k0:k1] == constructors.from_dense(case.dense[q0:q1, k0:k1].copy())


def test_diagonal() -> None:
    assert constructors.full(3, 5).diagonal == 0
    assert constructors.causal(3, 5).diagonal == 2
    assert constructors.sliding_window(3, 5, left=1).diagonal == 2
    assert constructors.causal(9).rows(4, 6).diagonal == 4
    assert constructors.causal(9)[4:, 1:].diagonal == 3
    assert (constructors.full(3, 5) & constructors.causal(3, 5)).diagonal == 2
    assert (constructors.causal(3, 5) | constructors.full(3, 5)).diagonal == 2
    assert (~constructors.causal(3, 5)).diagonal == 2


def test_segments_are_described() -> None:
    mask = segment_masks.segments([[("text", 3), ("image", 4)], [("noise", 2)]])
    assert mask.segments == (("text", 0, 3, 0), ("image", 3, 7, 0), ("noise", 7, 9, 1))
    assert mask[:, 2:8].segments == (("text", 0, 1, 0), ("image", 1, 5, 0), ("noise", 5, 6, 1))
    assert (mask & constructors.causal(9)).segments == mask.segments
    assert constructors.causal(9).segments == ()
    assert (~mask).segments == ()


def test_equality_and_hash_by_content() -> None:
    packed = segment_masks.segments([[("text", 5)], [("text", 7)]])
    same = [
        segment_masks.documents([5, 7]),
        constructors.from_dense(packed.to_dense()),
        packed & constructors.full(12),
        ~~packed,
    ]
    assert all(other == packed and hash(other) == hash(packed) for other in same)
    assert len({packed, *same}) == 1
    assert packed != segment_masks.documents([7, 5])
    assert constructors.full(2, 3) != constructors.full(3, 2)
    assert packed != "mask"
    assert bit_mask() == bit_mask()
    assert bit_mask() != bit_mask(seed=1)


def test_long_intervals_equal_bits() -> None:
    """9 intervals per key made by | is held as intervals, from_dense keeps bits, one value still."""
    rows = constructors.ranges([(i, i + 1, 0, 11) for i in range(0, 18, 2)], 18, 11)
    dense = constructors.from_dense(rows.to_dense())
    assert rows.intervals is not None
    assert dense.bits is not None
    assert rows == dense
    assert hash(rows) == hash(dense)
    assert rows != constructors.from_dense(np.roll(rows.to_dense(), 1, axis=0))


@pytest.mark.parametrize("mask", [constructors.causal(50), bit_mask()], ids=["intervals", "bits"])
def test_immutable(mask: Mask) -> None:
    for array in mask.intervals or (mask.bits,):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError) as caught:
        mask.shape = (1, 1)
    assert str(caught.value) == "shape cannot be set: masks are immutable; build a new one"
    with pytest.raises(AttributeError):
        del mask.bits
    with pytest.raises(AttributeError):
        mask.anything = 1  # type: ignore[attr-defined]


def test_arguments_are_copied() -> None:
    start, stop, dense = np.zeros((1, 4), np.int32), np.full((1, 4), 3, np.int32), np.eye(12, dtype=np.bool_)
    dense[::2] = True
    masks = constructors.intervals(start, stop, 3), constructors.from_dense(dense)
    before = [mask.pairs for mask in masks]
    start[:], stop[:], dense[:] = 2, 2, False
    assert [mask.to_dense().sum() for mask in masks] == before
    assert start.flags.writeable
    assert dense.flags.writeable


@pytest.mark.parametrize("mask", [constructors.causal(50), bit_mask()], ids=["intervals", "bits"])
def test_pickle_and_copy_leave_caches_behind(mask: Mask) -> None:
    mask.blocks(16, 32)
    mask._device["x"] = object()
    for again in (pickle.loads(pickle.dumps(mask)), copy.copy(mask), copy.deepcopy(mask)):
        assert again == mask
        assert again._device == {}
        assert again._blocks == {}
        assert again.diagonal == mask.diagonal
        assert not (again.bits if again.intervals is None else again.intervals[0]).flags.writeable
    mask._device.clear()


def test_caches_die_with_the_mask() -> None:
    """No reference cycle: the block mask, and whatever upload keeps, go with the last reference."""
    gc.disable()
    try:
        mask = constructors.causal(100)
        block_ref, mask_ref = weakref.ref(mask.blocks(16, 32)), weakref.ref(mask)
        del mask
        assert mask_ref() is None
        assert block_ref() is None
    finally:
        gc.enable()


def test_a_handle_names_one_object() -> None:
    mask, other = constructors.causal(40), constructors.causal(40)
    handle = mask.handle
    assert of_handle(handle) is mask
    assert len({handle, other.handle, pickle.loads(pickle.dumps(mask)).handle, copy.copy(mask).handle}) == 4
    assert handle > 1, "compilers of graphs make constants of 0 and 1"
    del mask
    with pytest.raises(ValueError) as raised:
        of_handle(handle)
    assert str(raised.value) == (
        f"mask: no mask with handle {handle} is left; keep a mask while code that was compiled with it runs, its "
        "backward pass included"
    )
