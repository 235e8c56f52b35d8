"""Parts of split rows, worked on one by one from the planner's lists and merged by their slots, against float64."""

from __future__ import annotations

from typing import Any

import cached_cases
import cuda_on_cpu
import numpy as np
import planned
import pytest
from numpy.typing import NDArray
from planned import Planned

import omnicupy as oc
from omnicupy.masks.block_mask import FULL, KIND
from omnicupy.reference.attention import attention64
from omnicupy.schedule.cached_lists import CachedLists

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

CAPACITY, HEAD_DIM, BR, BC = 3000, 8, 16, 32
Array = NDArray[Any]


def _part(found: Planned, index: int, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """row_max, sum and O of one part, of its rows; keys that none of its tiles holds are never read."""
    row, sequence, first, tiles = map(int, found.parts[index])
    rows = q[sequence, row : row + BR]
    scores = np.full((len(rows), CAPACITY + BC), -np.inf)
    for flags, payload, start, _ in planned.entries_of(found, first, tiles):
        held = flags >> 8
        seen = np.ones((BR, held), bool)
        if flags & KIND != FULL:
            bits = np.unpackbits(found.bits[payload].view(np.uint8), axis=1, bitorder="little")
            seen = bits[:, :held].astype(bool)
        tile = np.where(seen[: len(rows)], rows @ k[sequence, start : start + held].T, -np.inf)
        assert np.isneginf(scores[:, start : start + held]).all(), "a tile that is visited twice"
        scores[:, start : start + held] = tile
    scores = scores[:, :CAPACITY] * HEAD_DIM**-0.5
    row_max = scores.max(axis=1)
    weights = np.exp(scores - np.where(np.isneginf(row_max), 0, row_max)[:, None])
    return row_max, weights.sum(axis=1), weights @ np.nan_to_num(v[sequence])


def _attend(found: Planned, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """What a kernel makes of the lists: each part leaves its rows at its slot, whole rows are merged in part order."""
    lists = found.lists
    out, lse = np.full(q.shape, np.nan), np.full(q.shape[:2], np.nan)
    left: dict[int, Any] = {}
    for index, (among, number, count, slot) in enumerate(found.splits.tolist()):
        row, sequence = (int(x) for x in found.parts[index, :2])
        at = sequence * lists.heads * lists.slots + slot + number if among >= 0 else -1 - index
        assert at not in left
        left[at] = _part(found, index, q, k, v)
        mine = range(at - number, at - number + count) if among >= 0 else [at]
        if not all(one in left for one in mine):
            continue
        parts = [left.pop(one) for one in mine]
        top = np.max([part[0] for part in parts], axis=0)
        safe = np.where(np.isneginf(top), 0, top)
        share = [np.exp(part[0] - safe) for part in parts]
        total = sum(one * part[1] for one, part in zip(share, parts, strict=True))
        merged = sum(one[:, None] * part[2] for one, part in zip(share, parts, strict=True))
        empty = total == 0
        out[sequence, row : row + BR] = np.where(
            empty[:, None], 0, merged / np.where(empty, 1, total)[:, None]
        )
        lse[sequence, row : row + BR] = np.where(empty, -np.inf, safe + np.log(np.where(empty, 1, total)))
    assert not left
    return out, lse


RULES = {
    "all": lambda n: oc.cached(),
    "window": lambda n: oc.cached(window=700, sink=40),
    "tail": lambda n: oc.cached(window=900, tail=cached_cases.TAILS["random"](n)),
}


@pytest.mark.parametrize("leave", [0.0, 0.5, 6.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("q_len", [1, 40])
def test_merged_parts_are_the_whole(q_len: int, rule: str, leave: float) -> None:
    library = planned.build()
    rng = np.random.default_rng(3)
    split = 0
    for some in ([3000], [2999, 0, 65], [1000] * 4, [q_len - 1, 3000, q_len, 1500, 31]):
        lengths, made = np.array(some, np.int32), RULES[rule](q_len)
        sizes: dict[str, Any] = {"heads": 2, "sm_count": 64, "leave": leave, "split_slots": 100}
        lists = CachedLists(made, len(some), q_len, CAPACITY, BR, BC, **sizes)
        found = planned.run(library, lists, lengths)
        split += len(found.parts) > lists.rows
        # By which thread blocks ask for the first entry of their first part ahead (WorkList::prefetch_first).
        np.testing.assert_array_equal(found.parts[:, 2], lists.most_entries * np.arange(len(found.parts)))
        q = rng.standard_normal((len(some), q_len, HEAD_DIM))
        k, v = (rng.standard_normal((len(some), CAPACITY, HEAD_DIM)) for _ in "kv")
        dense = [cached_cases.dense(made, keys, q_len, CAPACITY, b) for b, keys in enumerate(some)]
        wanted, lse = attention64(q[:, None], k[:, None], v[:, None], [oc.from_dense(one) for one in dense])
        for array in (k, v):
            array[[~one.any(axis=0) for one in dense]] = np.nan
        out, mine = _attend(found, q, k, v)
        np.testing.assert_allclose(out, wanted[:, 0], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(mine, lse[:, 0], rtol=1e-9, atol=1e-10)
    assert split > 0
