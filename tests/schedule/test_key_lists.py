"""schedule/key_lists.py: the host buffer by blocks of keys holds what the kernels of dK and dV read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from entry_walk import EntryWalk
from mask_cases import random_case

import omnicupy as oc
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.masks.block_mask import CAUSAL, FULL, KIND, PARTIAL
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import Workers

TILE = (64, 32)
WORKERS = Workers(heads=4, sm_count=6)
Q_LEN, K_LEN = 200, 300
ARRAYS = ("row_offsets", "entries", "parts", "splits", "bit_tiles", "spans", "dead", "dead_rows")


def _bits(seed: int) -> Mask:
    rng = np.random.default_rng(seed)
    dense = rng.random((Q_LEN, K_LEN)) < 0.3
    dense[:, 40:90] = False
    dense[17:20] = False
    return oc.from_dense(dense)


def _sliced(start: int) -> Mask:
    return oc.causal(K_LEN).rows(start, start + Q_LEN)


def _causal_bits() -> Mask:
    """Held as bits, with CAUSAL tiles on diagonal 60."""
    rows, keys = np.arange(Q_LEN)[:, None], np.arange(K_LEN)
    dense = (keys <= rows + 60) | ((rows * 7 + keys * 13) % 11 == 0) & (keys > 260)
    mask = Mask((Q_LEN, K_LEN), bits=oc.from_dense(dense).bits, diagonal=60)
    assert (mask.blocks(*TILE).kinds == CAUSAL).any()
    return mask


def _lists_of_tiles() -> Mask:
    grid = np.random.default_rng(4).random((7, 10)) < 0.4
    return oc.from_tiles(grid, Q_LEN, K_LEN, 30, 32)


MASKS: dict[str, Callable[[], list[Mask]]] = {
    "causal": lambda: [oc.causal(Q_LEN, K_LEN)],
    "full": lambda: [oc.full(Q_LEN, K_LEN)],
    "bits": lambda: [_bits(0)],
    "tiles": lambda: [_lists_of_tiles()],
    "window and sink": lambda: [oc.sliding_window(Q_LEN, K_LEN, left=70) | oc.sink(Q_LEN, 5, K_LEN)],
    "batch": lambda: [
        oc.causal(Q_LEN, K_LEN),
        oc.full(Q_LEN, K_LEN),
        oc.sliding_window(Q_LEN, K_LEN, left=9),
    ],
    "batch of all forms": lambda: [_bits(1), oc.causal(Q_LEN, K_LEN), _lists_of_tiles(), _bits(2)],
    "batch of diagonals": lambda: [_sliced(0), _sliced(100), _sliced(37)],
    "bits with another diagonal": lambda: [oc.causal(Q_LEN, K_LEN), _causal_bits(), _causal_bits()],
    "dead keys": lambda: [
        oc.ranges([(0, Q_LEN, 0, 30), (10, 90, 250, 290)], Q_LEN, K_LEN),
        oc.full(Q_LEN, K_LEN),
    ],
    "empty": lambda: [~oc.full(Q_LEN, K_LEN)],
    "empty and full": lambda: [~oc.full(Q_LEN, K_LEN), oc.full(Q_LEN, K_LEN)],
}


def _counts(lists: BlockLists, q_len: int, k_len: int) -> np.ndarray:
    """How often a kernel's walk over the parts meets each pair of each mask, (masks, q_len, k_len)."""
    a = {name: lists.array(name) for name in ARRAYS}
    count = np.zeros((lists.mask_batch, q_len, k_len), np.int64)
    queries = np.arange(q_len)
    for key0, mask, first, tiles in a["parts"]:
        keys = np.arange(key0, min(key0 + lists.bc, k_len))
        walk = EntryWalk(a["entries"], int(first), int(tiles), lists.br)
        walked = [walk.take() for _ in range(tiles)]
        assert not walk.has_next()
        for word, payload, q0, length in walked:
            rows = queries[q0 : q0 + length]
            if word & KIND == FULL:
                rule = np.ones((len(rows), len(keys)), bool)
            elif word & KIND == CAUSAL:
                rule = keys <= rows[:, None] + lists.diagonal
            elif payload >= 0:
                bits = np.unpackbits(a["bit_tiles"][payload].view(np.uint8), axis=1, bitorder="little")
                rule = bits[: len(keys), : len(rows)].T.astype(bool)
            else:
                first_row, height = a["spans"][mask, :, keys, 0], a["spans"][mask, :, keys, 1]
                inside = (rows[:, None, None] - first_row).astype(np.uint32) < height.astype(np.uint32)
                rule = inside.any(axis=2)
            count[mask][np.ix_(rows, keys)] += rule
    return count


def _check(
    masks: list[Mask], tile: tuple[int, int], workers: Workers = WORKERS, label: str = ""
) -> BlockLists:
    q_len, k_len = masks[0].shape
    lists = key_lists([mask.key_blocks(*tile) for mask in masks], workers)
    wanted = np.stack([mask.to_dense() for mask in masks]).astype(np.int64)
    np.testing.assert_array_equal(_counts(lists, q_len, k_len), wanted, err_msg=f"{label} at {tile}")
    _check_parts(lists, k_len)
    _check_flags(lists, masks)
    return lists


def _check_parts(lists: BlockLists, k_len: int) -> None:
    """Each block of keys is in one part, or cut in parts: dK and dV of keys that nobody sees are written, too."""
    parts, splits, offsets = (lists.array(name) for name in ("parts", "splits", "row_offsets"))
    assert lists.q_blocks == -(-k_len // lists.bc)
    assert not (parts[:, 0] % lists.bc).any()
    place = parts[:, 1] * lists.q_blocks + parts[:, 0] // lists.bc
    assert set(place.tolist()) == set(range(lists.mask_batch * lists.q_blocks))
    slots, among = [], []
    for block in np.unique(place):
        mine = np.flatnonzero(place == block)
        mine = mine[np.argsort(splits[mine, 1])]
        assert splits[mine, 1].tolist() == list(range(len(mine)))
        assert (splits[mine, 2] == len(mine)).all()
        ends = [offsets[block], *(_end(lists, first, tiles) for first, tiles in parts[mine, 2:])]
        assert parts[mine, 2].tolist() == ends[:-1]
        assert ends[-1] == offsets[block + 1]
        if len(mine) > 1:
            assert (parts[mine, 3] > 0).all()
            slots += (splits[mine, 3] + splits[mine, 1]).tolist()
            among.append(int(splits[mine[0], 0]))
            assert len(set(splits[mine, 0].tolist())) == 1
        else:
            assert splits[mine, 0].tolist() == [-1]
    assert sorted(slots) == list(range(lists.n_slots))
    assert sorted(among) == list(range(lists.n_split_rows))
    assert offsets[-1] == len(lists.array("entries"))
    assert lists.n_parts == len(parts) == lists.tiers[-1]


def _end(lists: BlockLists, first: int, tiles: int) -> int:
    """The entry behind the last one of a part: the Hopper kernel finds it by its flag, and counts no tiles."""
    end, words = int(first), lists.array("entries")[:, 0]
    while end < first + tiles and tiles:
        tiles -= max(1, -(-(words[end] >> 8) // lists.br)) - 1
        end += 1
        assert bool(words[end - 1] & LAST) == (end == first + tiles)
    return end


def _check_flags(lists: BlockLists, masks: list[Mask]) -> None:
    """Dead keys and rows as bits, of all masks as soon as one has some."""
    q_len = masks[0].shape[0]
    dense = [mask.to_dense() for mask in masks]
    for name, axis, words in (("dead", 0, lists.k_padded // 32), ("dead_rows", 1, padded_rows(q_len) // 32)):
        dead = np.stack([~pairs.any(axis=axis) for pairs in dense])
        found = lists.array(name)
        assert found.shape == ((len(masks) if dead.any() else 0), words)
        if dead.any():
            bits = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")
            length = dead.shape[1]
            np.testing.assert_array_equal(bits[:, :length].astype(bool), dead)
            assert not bits[:, length:].any()


@pytest.mark.parametrize("name", MASKS)
def test_the_packed_lists_mean_the_masks(name: str) -> None:
    masks = MASKS[name]()
    for tile in (TILE, (32, 64), (96, 160), (256, 32)):
        _check(masks, tile, label=name)


@pytest.mark.parametrize("seed", range(40))
def test_random_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 400, 2))
    cases = [random_case(rng, q_len, k_len) for _ in range(int(rng.integers(1, 4)))]
    tile = ((64, 64), (128, 32), (32, 96))[seed % 3]
    _check([case.mask for case in cases], tile, label=", ".join(case.label for case in cases))


@pytest.mark.parametrize("name", MASKS)
def test_layout(name: str) -> None:
    masks = MASKS[name]()
    lists = key_lists([mask.key_blocks(*TILE) for mask in masks], WORKERS)
    assert (lists.mask_batch, lists.k_padded, lists.br, lists.bc) == (len(masks), 512, *TILE)
    assert lists.n_spans == max(0 if m.intervals is None else len(m.intervals[0]) for m in masks)
    assert lists.array("spans").shape == (len(masks), lists.n_spans, 512, 2)
    assert lists.array("bit_tiles").shape[1:] == (TILE[1], TILE[0] // 32)
    ends = 0
    for array in ARRAYS:
        assert lists.offsets[array] % 16 == 0
        assert lists.offsets[array] >= ends
        ends = lists.offsets[array] + lists.array(array).nbytes
    assert ends <= lists.buffer.nbytes


@pytest.mark.parametrize("repeats", [1, 4])
def test_long_blocks_of_keys_are_split(repeats: int) -> None:
    """Few keys that many queries see: without, few multiprocessors would work."""
    masks = [oc.causal(6000, 200), oc.ranges([(100, 5900, 0, 150)], 6000, 200)]
    workers = Workers(heads=1, sm_count=132, split_slots=60, repeats=repeats)
    lists = _check(masks, (64, 64), workers)
    assert 2 <= lists.n_split_rows <= 8
    assert lists.n_split_rows < lists.n_slots <= 60
    whole = _check(masks, (64, 64), Workers(heads=1, sm_count=132, repeats=repeats))
    assert (whole.n_slots, whole.n_split_rows, whole.n_parts) == (0, 0, 8)


def test_heads_that_repeat_a_block_make_splits_worth_it() -> None:
    """A part costs as much for one head as for a group: the more heads, the more its tiles count."""
    block = oc.full(512, 192).key_blocks(64, 64)
    found = [
        key_lists([block], Workers(heads=1, sm_count=132, split_slots=100, repeats=repeats)).n_parts
        for repeats in (1, 8)
    ]
    assert found[0] < found[1]


def test_causal_entries_have_one_diagonal() -> None:
    lists = key_lists([mask.key_blocks(*TILE) for mask in MASKS["bits with another diagonal"]()], WORKERS)
    causal = (lists.array("entries")[:, 0] & KIND) == CAUSAL
    of_first = int(lists.array("row_offsets")[lists.q_blocks])
    assert lists.diagonal == K_LEN - Q_LEN
    assert causal[:of_first].any()
    assert not causal[of_first:].any()
    partial = (lists.array("entries")[of_first:, 0] & KIND) == PARTIAL
    payload = lists.array("entries")[of_first:, 1][partial]
    assert (payload >= 0).all()
    assert payload.max() == len(lists.array("bit_tiles")) - 1


def test_the_longest_blocks_of_keys_come_first() -> None:
    """Under a causal mask those are the first keys."""
    lists = key_lists([oc.causal(4096).key_blocks(64, 64)], Workers(heads=1, sm_count=8))
    assert lists.array("parts")[:, 0].tolist() == list(range(0, 4096, 64))
    assert list(lists.tiers) == sorted(lists.tiers)


def test_without_dead_rows_and_keys_there_are_no_bits() -> None:
    lists = key_lists([oc.causal(300).key_blocks(64, 64)], WORKERS)
    assert lists.shapes["dead"][0] == lists.shapes["dead_rows"][0] == 0
    lists = key_lists([oc.causal(300, 200).key_blocks(64, 64)], WORKERS)  # 100 rows see no key
    assert (lists.shapes["dead"][0], lists.shapes["dead_rows"][0]) == (0, 1)
    lists = key_lists([oc.sliding_window(100, 300, left=20).key_blocks(64, 64)], WORKERS)
    assert (lists.shapes["dead"][0], lists.shapes["dead_rows"][0]) == (1, 0)


def test_neighbouring_full_tiles_are_one_entry() -> None:
    """As many entries as runs begin and end; of tiles a causal mask of 65,536 tokens has half a million."""
    lists = key_lists([oc.causal(65536).key_blocks(64, 128)], Workers(heads=8, sm_count=132))
    assert (
        len(lists.array("entries")) == 3 * 512 - 1
    )  # two CAUSAL tiles a block of keys, and below them a run
    assert int(lists.array("parts")[:, 3].sum()) == sum(range(2, 1025, 2))
    cut = key_lists([oc.full(4096, 128).key_blocks(64, 128)], Workers(1, 132, split_slots=64))
    assert cut.n_split_rows == 1
    assert len(cut.array("entries")) == cut.n_parts  # a run is cut where parts begin, and nowhere else


def test_rows_in_no_whole_words_are_refused() -> None:
    with pytest.raises(ValueError, match="by_key_blocks: br must be a multiple of 32, got 48"):
        key_lists([oc.causal(100).key_blocks(48, 32)], WORKERS)
