"""Random plans: a mask of any constructor on some ranks, by each assignment and by owners that are given."""

from __future__ import annotations

from typing import Any

import mask_cases
import numpy as np
from mask_cases import Case, Rng

import omnicupy as oc
from omnicupy.masks.mask import Mask
from omnicupy.parallel import Plan, plan
from omnicupy.parallel.make import NAMES

KINDS = [*mask_cases.LEAVES, "combined", "from_tiles"]
MOST = 90  # rows and keys


def case(rng: Rng, kind: str, most: int = MOST) -> Case:
    """A mask of that constructor, of random lengths, with its pairs."""
    q_len, k_len = (int(n) for n in rng.integers(1, most, 2, endpoint=True))
    if rng.random() < 0.5:
        k_len = q_len
    if kind == "from_tiles":
        return _of_tiles(rng)
    return mask_cases.random_case(rng, q_len, k_len, kind)


def _of_tiles(rng: Rng) -> Case:
    """Lists of key blocks, half of them under a causal mask."""
    q_len, k_len = (int(n) for n in rng.integers(1, MOST, 2, endpoint=True))
    br, bc = (int(n) for n in rng.integers(1, 20, 2, endpoint=True))
    cells = rng.random((-(-q_len // br), -(-k_len // bc))) < 0.4
    mask = oc.from_tiles(cells, q_len, k_len, br, bc)
    assert isinstance(mask, Mask)
    dense = np.repeat(np.repeat(cells, br, axis=0), bc, axis=1)[:q_len, :k_len]
    if rng.random() < 0.5:
        causal = oc.causal(q_len, k_len)
        mask, dense = mask & causal, dense & causal.to_dense()
    return Case(mask, dense, f"tiles({br}, {bc})")


def made(rng: Rng, masks: Mask | list[Mask], most_ranks: int = 16) -> Plan:
    """A plan for 2 to 16 ranks in nodes of some: an assignment, or owners at random, with ranks that own nothing."""
    q_len, k_len = (masks if isinstance(masks, Mask) else masks[0]).shape
    ranks, node = int(rng.integers(2, most_ranks, endpoint=True)), int(rng.integers(1, 9))
    way = int(rng.integers(4))
    options: dict[str, Any] = {}
    if way == 1:
        options["rows"] = str(rng.choice(NAMES))
    elif way >= 2:
        hold = int(rng.integers(1, 30))
        options["rows"] = np.repeat(rng.integers(0, ranks, q_len), hold)[:q_len]
        if way == 3:
            options["keys"] = np.sort(rng.integers(0, ranks, k_len))
    if way == 1 and rng.random() < 0.5:
        options["keys"] = "contiguous"
    return plan(masks, ranks, node=node, **options)
