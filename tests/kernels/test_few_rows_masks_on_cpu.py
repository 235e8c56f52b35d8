"""The kernel for few query rows under masks that the host knows, run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget
from packed_masks import MASKS

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)


def _spec(
    head_dim: int, dtype: str = "bfloat16", *, softcap: bool = False, most_rows: int = 8
) -> FewRowsSpec:
    of = AttnSpec(
        arch="sm_90a", kernel="sm90", dtype=dtype, head_dim=head_dim, br=64, bc=64, warps=8, softcap=softcap
    )
    warps, blocks = (8, 2) if head_dim == 64 else (12, 1)
    return FewRowsSpec.of(of, compute_warps=warps, blocks=blocks, most_rows=most_rows).for_masks()


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


def _compare(call: Forward, spec: AttnSpec, library: Callable[[AttnSpec], Any]) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        out, lse = assert_within_budget(call, spec, library)
    return out.copy(), lse.copy()


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("q_len", "group"), [(1, 7), (2, 8), (2, 3), (5, 3), (8, 1), (16, 1)])
def test_every_mask(name: str, q_len: int, group: int, library: Callable[[AttnSpec], Any]) -> None:
    """A mask a batch element, and one for all; tokens first in memory."""
    problem = Problem(2, 2 * group, 2, q_len, 300, 64, "bfloat16")
    spec = _spec(64, most_rows=8 if q_len * group <= 8 else 16)
    masks = [MASKS[name](q_len, 300, seed) for seed in (1, 2)]
    _compare(Forward(problem, masks, tokens_first=True), spec, library)
    _compare(Forward(problem, masks[:1]), spec, library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parts_that_fill_a_device(dtype: str, library: Callable[[AttnSpec], Any]) -> None:
    """The same bits each time, whatever lay in memory before."""
    call = Forward(Problem(1, 8, 2, 1, 3000, 128, dtype), [oc.full(1, 3000)], sm_count=132)
    first = _compare(call, _spec(128, dtype), library)
    out, lse, _ = call.run(_spec(128, dtype), library)
    np.testing.assert_array_equal(out.view(np.uint16), first[0].view(np.uint16))
    np.testing.assert_array_equal(lse, first[1])


@pytest.mark.parametrize("head_dim", [64, 128])
def test_several_split_rows_a_thread_block(head_dim: int, library: Callable[[AttnSpec], Any]) -> None:
    """Of those whose last part arrives in a thread block, one is merged at its end, the others at once."""
    call = Forward(Problem(1, 16, 8, 1, 3000, head_dim, "bfloat16"), [oc.full(1, 3000)], sm_count=5)
    _compare(call, _spec(head_dim), library)


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(library: Callable[[AttnSpec], Any]) -> None:
    """Sequences are worked on one after the other, and each leaves what it has on its own."""
    problem = Problem(3, 14, 2, 1, 700, 128, "bfloat16")
    together = Forward(problem, [MASKS["lengths"](1, 700, i) for i in range(3)], sm_count=1)
    out, lse = _compare(together, _spec(128), library)
    for i in range(3):
        alone = Forward(Problem(1, 14, 2, 1, 700, 128, "bfloat16"), [together.masks[i]], sm_count=1)
        for name in "qkv":
            alone.arrays[name][...] = together.arrays[name][i : i + 1]
        found, found_lse, _ = alone.run(_spec(128), library)
        np.testing.assert_array_equal(found.view(np.uint16), out[i : i + 1].view(np.uint16))
        np.testing.assert_array_equal(found_lse, lse[i : i + 1])
