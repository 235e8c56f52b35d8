"""Masks of the greatest length: every sum of two positions still fits, in the cut and in the algebra.

Few keys, so that 2**30 rows cost nothing; the cut is compared with tiles counted in Python integers.
"""

from __future__ import annotations

from typing import Any

import pytest
from entry_walk import tile_by_tile

import omnicupy as oc
from omnicupy.masks.arguments import MAX_LENGTH
from omnicupy.masks.block_mask import CAUSAL, FULL, PARTIAL

MOST = MAX_LENGTH
KEYS = 64
MASKS = {
    "full": lambda q_len: oc.full(q_len, KEYS),
    "causal": lambda q_len: oc.causal(q_len, KEYS),
    "window": lambda q_len: oc.sliding_window(q_len, KEYS, left=5),
    "two": lambda q_len: oc.ranges([(0, 9, 0, 40), (q_len - 9, q_len, 3, KEYS)], q_len, KEYS),
    "most": lambda q_len: oc.ranges([(7, q_len - 1, 0, KEYS)], q_len, KEYS),
}


def tiles(mask: oc.Mask, br: int, bc: int) -> dict[tuple[int, int], int]:
    """Kind of each listed tile, from the intervals of its keys as Python integers."""
    assert mask.intervals is not None
    q_len, k_len = mask.shape
    spans = [list(zip(*(side[:, k].tolist() for side in mask.intervals), strict=True)) for k in range(k_len)]
    found = {}
    for i in range(-(-q_len // br)):
        q0, q1 = i * br, min((i + 1) * br, q_len)
        for j in range(-(-k_len // bc)):
            keys = range(j * bc, min((j + 1) * bc, k_len))
            seen = [sum(max(0, min(b, q1) - max(a, q0)) for a, b in spans[k]) for k in keys]
            want = [q1 - min(max(k - mask.diagonal, q0), q1) for k in keys]
            if any(seen):
                causal = seen == want and all(
                    not n or max(b for a, b in spans[k] if a < q1) >= q1
                    for k, n in zip(keys, seen, strict=True)
                )
                full = all(n == q1 - q0 for n in seen) and len(keys) == bc
                found[i, j] = FULL if full else CAUSAL if causal and len(keys) == bc else PARTIAL
    return found


@pytest.mark.parametrize("q_len", [MOST, MOST - 1, MOST - 1000])
@pytest.mark.parametrize("name", MASKS)
def test_the_cut(name: str, q_len: int) -> None:
    mask = MASKS[name](q_len)
    for br in (2**27, 2**29, 3 * 2**26, MOST - 8, 2**26 + 8):
        blocks = mask.blocks(br, 32)
        blocks = tile_by_tile(blocks)
        rows, keys = blocks.rows_of_entries().tolist(), (blocks.entries[:, 2] // 32).tolist()
        listed = dict(zip(zip(rows, keys, strict=True), blocks.kinds.tolist(), strict=True))
        assert listed == tiles(mask, br, 32), br


def test_the_algebra() -> None:
    mask = MASKS["two"](MOST)
    assert (mask & ~mask).pairs == 0
    assert (mask | ~mask) == oc.full(MOST, KEYS)
    assert (~mask).pairs == MOST * KEYS - mask.pairs
    assert mask.pairs == 9 * 40 + 9 * 61
    assert mask.rows(MOST - 1, MOST) == oc.ranges([(0, 1, 3, KEYS)], 1, KEYS)
    assert mask.rows(0, MOST - 1).extend(mask.rows(MOST - 1, MOST)) == mask
    assert (MASKS["causal"](MOST) & MASKS["window"](MOST)) == MASKS["window"](MOST)


LONGER: dict[str, Any] = {
    "full": lambda: oc.full(MOST + 1, 1),
    "causal": lambda: oc.causal(1, MOST + 1),
    "documents": lambda: oc.documents([MOST, 1]),
    "segments": lambda: oc.segments([("image", MOST), ("noise", 1)]),
    "extend": lambda: oc.full(MOST, 1).extend(oc.full(1, 1)),
    "varlen": lambda: oc.presets.varlen([0, MOST, MOST + 1]),
    "bd3lm": lambda: oc.presets.bd3lm(MOST // 2 + 1, 4),
}


@pytest.mark.parametrize("name", LONGER)
def test_one_token_more_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\b1073741824\b"):
        LONGER[name]()
