"""Packed tiles of the Hopper kernel: its own source, run on the CPU over the lists and maps that a GPU gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget, packed_spec
from numpy.typing import NDArray
from packed_masks import MASKS, tree

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.jit.spec import AttnSpec

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]
Array = NDArray[Any]
D64, D128, D256 = (packed_spec(*tile) for tile in ((64, 64, 2), (128, 128, 2), (256, 64, 2)))
UNPACKED = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=64, stages=2, warps=8
)


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


def _compare(call: Forward, spec: AttnSpec, library: Callable[[AttnSpec], Any]) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        out, lse = assert_within_budget(call, spec, library)
    return out.copy(), lse.copy()


@pytest.mark.parametrize("split", [None, 64, 128])
@pytest.mark.parametrize("group", [1, 3, 4, 5, 7, 8, 12, 71])
def test_every_group(group: int, split: int | None, library: Callable[[AttnSpec], Any]) -> None:
    for i, (q_len, name) in enumerate(((1, "full"), (4, "causal"), (9, "tree"), (17, "window"))):
        kv_heads = 1 if group > 12 else 2
        problem = Problem(2, group * kv_heads, kv_heads, q_len, 309, 64, "bfloat16")
        call = Forward(problem, [MASKS[name](q_len, 309, group)], split, tokens_first=i % 2 == 0, seed=group)
        _compare(call, D64, library)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("q_len", [1, 2, 8, 21, 63, 64, 65])
def test_every_mask_and_length(q_len: int, name: str, library: Callable[[AttnSpec], Any]) -> None:
    """A mask a batch element; groups of three, of which 21 tokens fit a tile."""
    problem = Problem(2, 6, 2, q_len, 300, 64, "bfloat16")
    masks = [MASKS[name](q_len, 300, seed) for seed in (1, 2)]
    _compare(Forward(problem, masks, tokens_first=True), D64, library)
    _compare(Forward(problem, masks, split=64), D64, library)


@pytest.mark.parametrize(("spec", "head_dim"), [(D128, 128), (D128, 120), (D256, 256), (D256, 248)])
def test_wide_heads(spec: AttnSpec, head_dim: int, library: Callable[[AttnSpec], Any]) -> None:
    problem = Problem(1, 14, 2, 3, 520, head_dim, "bfloat16")
    for split in (None, 128):
        _compare(Forward(problem, [oc.causal(3, 520)], split), spec, library)


def test_many_parts_are_merged(library: Callable[[AttnSpec], Any]) -> None:
    """More than one warp has lanes for, and some in which a row sees nothing."""
    k_len = 64 * 70
    seen = np.ones((2, k_len), bool)
    seen[0, 640:2000] = False
    call = Forward(Problem(1, 5, 1, 2, k_len, 64, "bfloat16"), [oc.from_dense(seen)], split=64)
    _compare(call, D64, library)


def test_parts_that_fill_a_device(library: Callable[[AttnSpec], Any]) -> None:
    """Cut by the schedule, not by `split`; the same bits each time, whatever lay in memory before."""
    call = Forward(Problem(1, 8, 2, 1, 3000, 64, "bfloat16"), [oc.full(1, 3000)], sm_count=132)
    first = _compare(call, D64, library)
    for sm_count in (132, 131):
        call.sm_count = sm_count
        out, lse, _ = call.run(D64, library)
        if sm_count == 132:
            np.testing.assert_array_equal(out.view(np.uint16), first[0].view(np.uint16))
            np.testing.assert_array_equal(lse, first[1])


@pytest.mark.parametrize("group", [4, 7, 8])
def test_a_group_has_the_bits_of_heads_of_their_own(group: int, library: Callable[[AttnSpec], Any]) -> None:
    """Keys repeated for each query head, the same tiles and parts."""
    q_len, k_len = 5, 700
    masks = [tree(q_len, k_len, 3)]
    packed = Forward(Problem(1, 2 * group, 2, q_len, k_len, 64, "bfloat16"), masks, split=128)
    apart = Forward(Problem(1, 2 * group, 2 * group, q_len, k_len, 64, "bfloat16"), masks, split=128)
    apart.arrays["q"][...] = packed.arrays["q"]
    for name in "kv":
        apart.arrays[name][...] = np.repeat(packed.arrays[name], group, axis=1)
    out, lse = _compare(packed, D64, library)
    other, other_lse = _compare(apart, D64, library)
    np.testing.assert_array_equal(out.view(np.uint16), other.view(np.uint16))
    np.testing.assert_array_equal(lse, other_lse)


def test_split_rows_do_not_depend_on_the_batch(library: Callable[[AttnSpec], Any]) -> None:
    problem = Problem(3, 14, 2, 1, 1000, 64, "bfloat16")
    together = Forward(problem, [MASKS["lengths"](1, 1000, i) for i in range(3)], split=128, sm_count=132)
    out, lse = _compare(together, D64, library)
    for i in range(3):
        one = Problem(1, 14, 2, 1, 1000, 64, "bfloat16")
        alone = Forward(one, [together.masks[i]], split=128, sm_count=8)
        for name in "qkv":
            alone.arrays[name][...] = together.arrays[name][i : i + 1]
        found, found_lse, _ = alone.run(D64, library)
        np.testing.assert_array_equal(found.view(np.uint16), out[i : i + 1].view(np.uint16))
        np.testing.assert_array_equal(found_lse, lse[i : i + 1])


def test_unpacked_rows_take_parts_of_a_length_too(library: Callable[[AttnSpec], Any]) -> None:
    call = Forward(Problem(2, 4, 2, 70, 500, 64, "bfloat16"), [oc.causal(70, 500)], split=128)
    _compare(call, UNPACKED, library)


def test_a_row_of_no_token_is_harmless(library: Callable[[AttnSpec], Any]) -> None:
    """One row of 64 is of no token; shared memory is full of NaN where no copy writes."""
    problem = Problem(1, 7, 1, 9, 128, 64, "bfloat16")
    assert D64.pack_heads(7) * D64.tokens(7) == 63
    _compare(Forward(problem, [oc.full(9, 128)]), D64, library)
