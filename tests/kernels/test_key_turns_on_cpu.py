"""Packed tiles of 64 rows, whose keys two warpgroups take in turn: the source, run on the CPU as a GPU would get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget, packed_spec
from packed_masks import MASKS

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.jit.spec import AttnSpec

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]
D64, D80, D128, THREE = (
    replace(packed_spec(*tile), warps=12)
    for tile in ((64, 128, 2), (80, 128, 2), (128, 128, 3), (64, 128, 3))
)
Library = Callable[[AttnSpec], Any]


@pytest.fixture(scope="module")
def library() -> Library:
    return cuda_on_cpu.build


def _compare(call: Forward, spec: AttnSpec, library: Library) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        out, lse = assert_within_budget(call, spec, library)
    return out.copy(), lse.copy()


@pytest.mark.parametrize("split", [None, 128, 256])
@pytest.mark.parametrize("group", [2, 7, 12, 71, 130])
def test_every_group(group: int, split: int | None, library: Library) -> None:
    """Rows of one warpgroup, of both and of two tiles; parts that all warps merge."""
    for i, (q_len, name) in enumerate(((1, "full"), (4, "causal"), (16, "tree"), (37, "window"))):
        kv_heads = 1 if group > 12 else 2
        problem = Problem(2, group * kv_heads, kv_heads, q_len, 709, 64, "bfloat16")
        call = Forward(problem, [MASKS[name](q_len, 709, group)], split, tokens_first=i % 2 == 0, seed=group)
        _compare(call, D64, library)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("q_len", [1, 16, 21, 42, 43, 64, 65])
def test_every_mask_and_length(q_len: int, name: str, library: Library) -> None:
    """A mask a batch element; groups of three, of which 42 tokens fit a tile."""
    problem = Problem(2, 6, 2, q_len, 600, 64, "bfloat16")
    masks = [MASKS[name](q_len, 600, seed) for seed in (1, 2)]
    _compare(Forward(problem, masks, tokens_first=True), D64, library)
    _compare(Forward(problem, masks, split=128), D64, library)


@pytest.mark.parametrize(("spec", "head_dim"), [(D80, 80), (D128, 128), (D128, 120)])
def test_other_widths(spec: AttnSpec, head_dim: int, library: Library) -> None:
    problem = Problem(1, 14, 2, 13, 520, head_dim, "bfloat16")
    for split in (None, 128):
        _compare(Forward(problem, [oc.causal(13, 520)], split), spec, library)


@pytest.mark.parametrize("parts", [2, 4, 5, 17, 70])
def test_many_parts_are_merged(parts: int, library: Library) -> None:
    """As many as are asked for at once, and more; some in which a row sees nothing."""
    k_len = 128 * parts
    seen = np.ones((15, k_len), bool)
    seen[3, : k_len // 2] = False
    seen[7] = False
    call = Forward(Problem(1, 7, 1, 15, k_len, 64, "bfloat16"), [oc.from_dense(seen)], split=128)
    _compare(call, D64, library)


def test_split_rows_do_not_depend_on_the_batch(library: Library) -> None:
    masks = [MASKS["lengths"](15, 1000, i) for i in range(3)]
    problem = Problem(3, 14, 2, 15, 1000, 64, "bfloat16")
    together = Forward(problem, masks, split=128, sm_count=132)
    out, lse = _compare(together, D64, library)
    for i in range(3):
        alone = Forward(Problem(1, 14, 2, 15, 1000, 64, "bfloat16"), [masks[i]], split=128, sm_count=8)
        for name in "qkv":
            alone.arrays[name][...] = together.arrays[name][i : i + 1]
        found, found_lse, _ = alone.run(D64, library)
        np.testing.assert_array_equal(found.view(np.uint16), out[i : i + 1].view(np.uint16))
        np.testing.assert_array_equal(found_lse, lse[i : i + 1])
