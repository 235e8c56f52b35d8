"""Values of another width than keys: the forward kernels' own sources, run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget, scattered

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import variants
from omnicupy.jit.spec import AttnSpec

pytestmark = [
    pytest.mark.in_turn(8, by=("word", "widths")),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

PAIRS = ((192, 128), (64, 128), (72, 40), (40, 48))
Q_LEN, K_LEN = 90, 150
SM80 = (
    "sm80-64x64-s1-w4",
    "sm80-32x32-s2-w2",
    "sm80-32x32-s3-w1",
    "sm80-64x32-s1-w4-shared",
    "sm80-32x64-s1-w2-plain",
)
# Tiles of more warpgroups take turns at named barriers, which the CPU does not know.
SM90 = ("sm90-64x64-s2-w8", "sm90-64x32-s3-w8", "sm90-64x64-s2-w8-packed")


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


def _compare(call: Forward, spec: AttnSpec, library: Callable[[AttnSpec], Any]) -> None:
    out, _ = assert_within_budget(call, spec, library)
    assert out.shape[-1] == call.problem.value_dim


def _problem(widths: tuple[int, int], dtype: str, **sizes: int) -> Problem:
    given = {"batch": 1, "q_heads": 4, "kv_heads": 2, "q_len": Q_LEN, "k_len": K_LEN, **sizes}
    return Problem(**given, head_dim=widths[0], value_dim=widths[1], dtype=dtype)


@pytest.mark.parametrize("widths", PAIRS, ids=lambda widths: "-".join(map(str, widths)))
@pytest.mark.parametrize("word", ["naive", *SM80, *SM90])
def test_both_results(word: str, widths: tuple[int, int], library: Callable[[AttnSpec], Any]) -> None:
    """Rows without keys, dead keys that hold NaN, and a mask held as intervals."""
    dtype = ("bfloat16", "float16")[PAIRS.index(widths) % 2]
    spec = variants.parse(word, "sm_80", dtype, *widths)
    for mask in (scattered(Q_LEN, K_LEN), oc.sliding_window(Q_LEN, left=30)):
        sizes = {"k_len": mask.shape[1]}
        _compare(Forward(_problem(widths, dtype, **sizes), [mask], tokens_first=True), spec, library)


@pytest.mark.parametrize("widths", PAIRS, ids=lambda widths: "-".join(map(str, widths)))
@pytest.mark.parametrize("word", ["sm90-64x64-s2-w8", "sm90-64x64-s2-w8-packed"])
def test_rows_that_are_split(word: str, widths: tuple[int, int], library: Callable[[AttnSpec], Any]) -> None:
    """Parts hold as many columns as values have; groups of one pack and of two."""
    spec = variants.parse(word, "sm_90", "bfloat16", *widths)
    for group, q_len in ((3, 3), (71, 1)):
        problem = _problem(widths, "bfloat16", batch=2, q_heads=group, kv_heads=1, q_len=q_len, k_len=310)
        _compare(Forward(problem, [scattered(q_len, 310)], split=64), spec, library)


@pytest.mark.parametrize("word", ["sm80-64x64-s1-w4", "sm90-64x64-s2-w8"])
def test_capped_scores_and_sinks(word: str, library: Callable[[AttnSpec], Any]) -> None:
    spec = replace(variants.parse(word, "sm_90", "float16", 64, 128), softcap=True)
    sinks = (-np.inf, 0.0, 3.0, 40.0)
    call = Forward(
        _problem((64, 128), "float16"), [scattered(Q_LEN, K_LEN)], softcap=20.0, sinks=sinks, factor=8.0
    )
    _compare(call, spec, library)
