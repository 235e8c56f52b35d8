"""Packed tiles of two warpgroups, which share 128 rows or take the keys of 64 rows in turn: the sources, run on the CPU
as a GPU would get them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

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
Library = Callable[[AttnSpec], Any]


class Shape(NamedTuple):
    """Tiles of one source. d64: those of head_dim 64.  lengths: of keys, more than a few tiles.  others: tiles of other
    widths or stages, and the head_dims of calls.
    """

    d64: AttnSpec
    lengths: tuple[int, int]
    others: tuple[tuple[AttnSpec, int], ...]


def _pair(head_dim: int, bc: int) -> AttnSpec:
    return packed_spec(head_dim, bc, 2, rows=128)


def _turns(head_dim: int, stages: int) -> AttnSpec:
    return replace(packed_spec(head_dim, 128, stages), warps=12)


SHAPES = {
    "rows": Shape(
        _pair(64, 64),
        (309, 300),
        (
            *((_pair(80, 64), 80), (_pair(128, 128), 128), (_pair(128, 128), 120)),
            *((_pair(256, 64), 256), (_pair(256, 64), 248)),
        ),
    ),
    "keys": Shape(
        _turns(64, 2),
        (709, 600),
        ((_turns(80, 2), 80), (_turns(128, 3), 128), (_turns(128, 3), 120), (_turns(64, 3), 64)),
    ),
}


@pytest.fixture(scope="module")
def library() -> Library:
    return cuda_on_cpu.build


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


def _compare(call: Forward, spec: AttnSpec, library: Library) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        out, lse = assert_within_budget(call, spec, library)
    return out.copy(), lse.copy()


@pytest.mark.parametrize("tiles", [None, 1, 2])
@pytest.mark.parametrize("group", [2, 7, 12, 71, 130])
def test_every_group(group: int, tiles: int | None, shape: Shape, library: Library) -> None:
    """Rows of one warpgroup, of both and of two tiles; parts of so many tiles, that all warps merge."""
    split, k_len = tiles and tiles * shape.d64.bc, shape.lengths[0]
    for i, (q_len, name) in enumerate(((1, "full"), (4, "causal"), (16, "tree"), (37, "window"))):
        kv_heads = 1 if group > 12 else 2
        problem = Problem(2, group * kv_heads, kv_heads, q_len, k_len, 64, "bfloat16")
        mask = MASKS[name](q_len, k_len, group)
        _compare(Forward(problem, [mask], split, tokens_first=i % 2 == 0, seed=group), shape.d64, library)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("q_len", [1, 16, 21, 42, 43, 64, 65])
def test_every_mask_and_length(q_len: int, name: str, shape: Shape, library: Library) -> None:
    """A mask a batch element; groups of three, of which 42 tokens fit 128 rows, and 21 fit 64."""
    k_len = shape.lengths[1]
    problem = Problem(2, 6, 2, q_len, k_len, 64, "bfloat16")
    masks = [MASKS[name](q_len, k_len, seed) for seed in (1, 2)]
    _compare(Forward(problem, masks, tokens_first=True), shape.d64, library)
    _compare(Forward(problem, masks, split=shape.d64.bc), shape.d64, library)


@pytest.mark.parametrize(
    ("spec", "head_dim"), [one for shape in SHAPES.values() for one in shape.others], ids=str
)
def test_other_widths(spec: AttnSpec, head_dim: int, library: Library) -> None:
    problem = Problem(1, 14, 2, 13, 520, head_dim, "bfloat16")
    for split in (None, 128):
        _compare(Forward(problem, [oc.causal(13, 520)], split), spec, library)


@pytest.mark.parametrize("parts", [2, 4, 5, 17, 70])
def test_many_parts_are_merged(parts: int, shape: Shape, library: Library) -> None:
    """As many as are asked for at once, and more; some in which a row sees nothing."""
    k_len = shape.d64.bc * parts
    seen = np.ones((15, k_len), bool)
    seen[3, : k_len // 2] = False
    seen[7] = False
    call = Forward(Problem(1, 7, 1, 15, k_len, 64, "bfloat16"), [oc.from_dense(seen)], split=shape.d64.bc)
    _compare(call, shape.d64, library)


def test_split_rows_do_not_depend_on_the_batch(shape: Shape, library: Library) -> None:
    masks = [MASKS["lengths"](15, 1000, i) for i in range(3)]
    problem = Problem(3, 14, 2, 15, 1000, 64, "bfloat16")
    together = Forward(problem, masks, split=128, sm_count=132)
    out, lse = _compare(together, shape.d64, library)
    for i in range(3):
        alone = Forward(Problem(1, 14, 2, 15, 1000, 64, "bfloat16"), [masks[i]], split=128, sm_count=8)
        for name in "qkv":
            alone.arrays[name][...] = together.arrays[name][i : i + 1]
        found, found_lse, _ = alone.run(shape.d64, library)
        np.testing.assert_array_equal(found.view(np.uint16), out[i : i + 1].view(np.uint16))
        np.testing.assert_array_equal(found_lse, lse[i : i + 1])
