"""schedule/key_lists.py: what the kernel of dK and dV walks, part by part, are the tiles of the mask by key blocks."""

from __future__ import annotations

import numpy as np
import pytest
from entry_walk import EntryWalk
from mask_cases import random_case

from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.order import LAST
from omnicupy.schedule.parts import Workers


@pytest.mark.parametrize("workers", [Workers(2, 4), Workers(1, 40, split_slots=60)], ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(15))
def test_parts_walk_the_tiles_that_see_a_key(seed: int, workers: Workers) -> None:
    rng = np.random.default_rng(seed)
    q_len, k_len = (int(n) for n in rng.integers(1, 700, 2))
    cases = [random_case(rng, q_len, k_len) for _ in range(int(rng.integers(1, 3)))]
    br, bc = ((64, 64), (32, 96), (128, 32))[seed % 3]
    lists = key_lists([case.mask.blocks(br, bc) for case in cases], workers)
    found: dict[tuple[int, int], list[int]] = {}
    for key, mask, first, tiles in lists.array("parts").tolist():
        walk = EntryWalk(lists.array("entries"), first, tiles, br)
        walked = []
        while walk.has_next():
            walked.append(walk.take())
        assert len(walked) == tiles
        assert [tile.flags & LAST for tile in walked] == [0] * (tiles - 1) + [LAST] * (tiles > 0)
        assert all(tile.keys == min(br, q_len - tile.first) for tile in walked)
        found.setdefault((mask, key // bc), []).extend(tile.first // br for tile in walked)
    for mask, case in enumerate(cases):
        for block in range(-(-k_len // bc)):
            dense = case.dense[:, block * bc : (block + 1) * bc]
            wanted = [q0 // br for q0 in range(0, q_len, br) if dense[q0 : q0 + br].any()]
            assert sorted(found[mask, block]) == wanted
