"""schedule/block_lists.py: the host buffer holds what the kernels read, whatever masks are stacked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from entry_walk import Tile, tiles_of_part, tiles_of_row, without_place
from mask_cases import random_case

import omnicupy as oc
from omnicupy.masks.block_mask import CAUSAL, FULL, KIND, PARTIAL
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import ARRAYS, KEY_PAD, BlockLists, block_lists
from omnicupy.schedule.order import LAST, LAZY, SKIP_SHIFT
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.pieces import LAZY_KEYS

TILE = (64, 32)
WORKERS = Workers(heads=4, sm_count=6, split_slots=50)
Q_LEN, K_LEN = 200, 300


def _bits(seed: int) -> Mask:
    rng = np.random.default_rng(seed)
    dense = rng.random((Q_LEN, K_LEN)) < 0.3
    dense[:, 40:90] = False  # dead keys
    return oc.from_dense(dense)


def _sliced(start: int) -> Mask:
    """Causal, with rows that start somewhere: its own diagonal."""
    return oc.causal(K_LEN).rows(start, start + Q_LEN)


MASKS: dict[str, Callable[[], list[Mask]]] = {
    "causal": lambda: [oc.causal(Q_LEN, K_LEN)],
    "bits": lambda: [_bits(0)],
    "window and sink": lambda: [oc.sliding_window(Q_LEN, K_LEN, left=70) | oc.sink(Q_LEN, 5, K_LEN)],
    "batch": lambda: [
        oc.causal(Q_LEN, K_LEN),
        oc.full(Q_LEN, K_LEN),
        oc.sliding_window(Q_LEN, K_LEN, left=9),
    ],
    "batch of both forms": lambda: [_bits(1), oc.causal(Q_LEN, K_LEN), _bits(2)],
    "batch of diagonals": lambda: [_sliced(0), _sliced(100), _sliced(37)],
    "bits form with another diagonal": lambda: [oc.causal(Q_LEN, K_LEN), _causal_bits(), _causal_bits()],
    "dead keys": lambda: [
        oc.ranges([(0, Q_LEN, 0, 30), (10, 90, 250, 290)], Q_LEN, K_LEN),
        oc.full(Q_LEN, K_LEN),
    ],
    "empty": lambda: [~oc.full(Q_LEN, K_LEN)],
}


def _causal_bits() -> Mask:
    """Noise and a causal part: held as bits, with CAUSAL tiles on diagonal 60."""
    rows, keys = np.arange(Q_LEN)[:, None], np.arange(K_LEN)
    dense = (keys <= rows + 60) | ((rows * 7 + keys * 13) % 11 == 0) & (keys > 260)
    mask = oc.from_dense(dense)
    assert mask.bits is not None
    mask = Mask(mask.shape, bits=mask.bits, diagonal=60)
    assert (mask.blocks(*TILE).kinds == CAUSAL).any()
    return mask


def _dense(lists: BlockLists, batch: int, q_len: int, k_len: int) -> np.ndarray:
    """What a kernel sees of one mask: its walk over the lists arrays, pair by pair."""
    a = {name: lists.array(name) for name in ARRAYS}
    seen = np.zeros((q_len, k_len), np.int64)
    keys = np.arange(k_len)
    for block, tiles in _walked(lists, batch).items():
        rows = np.arange(block * lists.br, min((block + 1) * lists.br, q_len))
        for kind, payload, offset, length in tiles:
            span = keys[offset : offset + length]
            if kind & KIND == FULL:
                rule = np.ones((len(rows), length), bool)
            elif kind & KIND == CAUSAL:
                rule = span <= rows[:, None] + lists.diagonal
            elif payload >= 0:
                bits = np.unpackbits(a["bit_tiles"][payload].view(np.uint8), axis=1, bitorder="little")
                rule = bits[: len(rows), :length].astype(bool)
            else:
                first_row, height = np.moveaxis(a["spans"][batch, :, span - lists.k_first], -1, 0)
                inside = (rows[:, None, None] - first_row).astype(np.uint32) < height.astype(np.uint32)
                rule = inside.any(axis=2)
            seen[np.ix_(rows, span)] += rule
    assert seen.max(initial=0) <= 1
    return seen.astype(bool)


def _walked(lists: BlockLists, batch: int) -> dict[int, list[Tile]]:
    """The tiles of each block of query rows of one mask: of all its parts, and the same without the parts."""
    found: dict[int, list[Tile]] = {block: [] for block in range(lists.q_blocks)}
    parts = lists.array("parts")
    for part in np.argsort(parts[:, 2], kind="stable"):
        if parts[part, 1] == batch:
            found[int(parts[part, 0]) // lists.br] += tiles_of_part(lists, int(part))
    for block, tiles in found.items():
        row = tiles_of_row(lists, batch * lists.q_blocks + block)
        assert list(map(without_place, tiles)) == list(map(without_place, row))
    return found


@pytest.mark.parametrize("name", MASKS)
def test_the_packed_lists_mean_the_masks(name: str) -> None:
    masks = MASKS[name]()
    lists = block_lists([mask.blocks(*TILE) for mask in masks], WORKERS)
    for batch, mask in enumerate(masks):
        assert np.array_equal(_dense(lists, batch, Q_LEN, K_LEN), mask.to_dense())


@pytest.mark.parametrize("seed", range(40))
def test_random_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 400, 2))
    cases = [random_case(rng, q_len, k_len) for _ in range(int(rng.integers(1, 4)))]
    tile = ((64, 64), (128, 32), (16, 96))[seed % 3]
    lists = block_lists([case.mask.blocks(*tile) for case in cases], WORKERS)
    for batch, case in enumerate(cases):
        assert np.array_equal(_dense(lists, batch, q_len, k_len), case.dense), case.label


@pytest.mark.parametrize("name", MASKS)
def test_layout(name: str) -> None:
    masks = MASKS[name]()
    lists = block_lists([mask.blocks(*TILE) for mask in masks], WORKERS)
    assert lists.mask_batch == len(masks)
    k_padded = 256 if name == "empty" else 512  # of the keys that a row sees
    assert (lists.k_first, lists.k_padded) == (0, k_padded)
    assert lists.buffer.flags.c_contiguous
    assert lists.n_spans == max(0 if m.intervals is None else len(m.intervals[0]) for m in masks)
    ends = 0
    for array in ARRAYS:
        assert lists.offsets[array] % 16 == 0
        assert lists.offsets[array] >= ends
        ends = lists.offsets[array] + lists.array(array).nbytes
    assert ends <= lists.buffer.nbytes
    assert lists.array("spans").shape == (len(masks), lists.n_spans, k_padded, 2)
    assert not lists.array("spans")[:, :, K_LEN:].any()
    assert not lists.array("dead")[:, -(-K_LEN // 32) :].any()


@pytest.mark.parametrize("bc", [32, 96, 128])
@pytest.mark.parametrize("q_len", [1, 70])
def test_keys_that_no_row_sees_have_no_room(q_len: int, bc: int) -> None:
    """A window over a long cache, as in decoding: arrays of its own keys alone."""
    k_len = 1 << 17
    masks = [oc.sliding_window(q_len, k_len, left=900), oc.ranges([(0, q_len, 129000, 129400)], q_len, k_len)]
    dead = oc.ranges([(0, q_len, 90000, 90100), (0, q_len, 90103, 90200)], q_len, k_len)
    for batch in (masks[:1], masks, [dead], [~oc.full(q_len, k_len)]):
        lists = block_lists([mask.blocks(64, bc) for mask in batch], WORKERS)
        assert lists.k_first % KEY_PAD == lists.k_padded % KEY_PAD == 0
        assert lists.k_padded <= (130 << 10) - 129000 + 3 * KEY_PAD
        assert lists.buffer.nbytes < 1 << 16
        for number, mask in enumerate(batch):
            first, stop = mask.live
            assert lists.k_first <= first or not stop
            seen = _dense(lists, number, q_len, k_len)
            assert np.array_equal(seen, mask.to_dense())
    bits = block_lists([dead.blocks(64, bc)], WORKERS).array("dead")[0]
    flags = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(bool)
    first = 90000 // bc * bc // KEY_PAD * KEY_PAD
    assert np.array_equal(flags, dead.dead_keys(first, first + len(flags)))


@pytest.mark.parametrize("name", MASKS)
def test_the_parts_hold_each_entry_of_each_row_once(name: str) -> None:
    lists = block_lists([mask.blocks(*TILE) for mask in MASKS[name]()], WORKERS)
    rows, parts = lists.array("row_offsets"), lists.array("parts")
    taken = np.zeros(rows[-1], np.int64)
    met = set()
    ends = lists.array("entries")[:, 0] & LAST != 0
    for query, mask, first, tiles in parts:
        row = mask * lists.q_blocks + query // lists.br
        assert query % lists.br == 0
        end = first + int(ends[first:].argmax()) + 1 if tiles else first
        assert rows[row] <= first <= end <= rows[row + 1]
        taken[first:end] += 1
        met.add(int(row))
    assert (taken == 1).all()
    assert met == set(range(lists.mask_batch * lists.q_blocks))  # empty rows are written, too


@pytest.mark.parametrize("name", MASKS)
def test_dead_keys_of_flagged_tiles_are_marked(name: str) -> None:
    masks = MASKS[name]()
    lists = block_lists([mask.blocks(*TILE) for mask in masks], WORKERS)
    for batch, mask in enumerate(masks):
        keys = min(K_LEN, lists.k_padded)
        bits = np.unpackbits(lists.array("dead")[batch].view(np.uint8), bitorder="little")
        dead = bits[:keys].astype(bool)
        flagged = (mask.blocks(*TILE).entries[:, 0] & ~KIND).any()
        assert np.array_equal(
            dead, mask.dead_keys()[:keys] if flagged or dead.any() else np.zeros(keys, bool)
        )


def test_peaks_of_a_part_stand_after_its_own_full_tiles() -> None:
    """A long row on many processors is split; each part's thread block starts with no peaks."""
    lists = block_lists([oc.full(128, 4096).blocks(128, 64)], Workers(1, 64, split_slots=64))
    assert lists.n_parts > 2
    for part in range(lists.n_parts):
        lazy = [tile.flags & LAZY != 0 for tile in tiles_of_part(lists, part)]
        assert lazy == [False] + [True] * (len(lazy) - 1)


@pytest.mark.parametrize("seed", range(30))
def test_what_depends_on_the_part_is_told_of_each_tile(seed: int) -> None:
    """Where rescaling turns lazy, which entry is the last, and how many tiles come before one that is skipped."""
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(100, 900, 2))
    cases = [random_case(rng, q_len, k_len) for _ in range(int(rng.integers(1, 4)))]
    tile = ((128, 32), (192, 64), (128, 96))[seed % 3]
    lists = block_lists([case.mask.blocks(*tile) for case in cases], Workers(2, 40, split_slots=60))
    for part, (_, _, first, _) in enumerate(lists.array("parts")):
        tiles = tiles_of_part(lists, part)
        full = np.array([one.flags & KIND == FULL for one in tiles], bool)
        behind = np.cumsum(full) - full
        assert [one.flags & LAZY != 0 for one in tiles] == (behind * lists.bc >= LAZY_KEYS).tolist()
        skipped = [one.flags >> SKIP_SHIFT & 7 != 0 for one in tiles] + [True]
        if tiles:
            assert min(lists.array("entries")[first, 3], len(tiles)) == skipped.index(True)


def test_the_longest_block_rows_of_a_batch_come_first() -> None:
    masks = [oc.sliding_window(Q_LEN, K_LEN, left=40), oc.full(Q_LEN, K_LEN)]
    lists = block_lists([mask.blocks(*TILE) for mask in masks], Workers(4, 6))
    assert (lists.array("parts")[: lists.q_blocks, 1] == 1).all()


def test_causal_tiles_survive_where_the_diagonals_agree() -> None:
    same = block_lists([_sliced(100).blocks(*TILE), _sliced(100).blocks(*TILE)], WORKERS)
    assert same.diagonal == 100
    assert (same.array("entries")[:, 0] & KIND == CAUSAL).any()
    mixed = block_lists([_sliced(0).blocks(*TILE), _sliced(100).blocks(*TILE)], WORKERS)
    kinds = mixed.array("entries")[:, 0] & KIND
    second = mixed.array("row_offsets")[mixed.q_blocks]
    assert mixed.diagonal == 0
    assert (kinds[:second] == CAUSAL).any()
    assert not (kinds[second:] == CAUSAL).any()
    assert (kinds[second:] == PARTIAL).any()


def test_masks_are_not_changed_by_packing() -> None:
    blocks = [_sliced(0).blocks(*TILE), _sliced(100).blocks(*TILE)]
    before = [block.entries.copy() for block in blocks]
    block_lists(blocks, WORKERS)
    assert all(np.array_equal(a, block.entries) for a, block in zip(before, blocks, strict=True))
