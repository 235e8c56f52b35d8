"""The forward kernels' own sources with sink logits and soft caps, run on the CPU over the lists that a GPU gets."""

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
from omnicupy.reference import budget

pytestmark = [
    pytest.mark.in_turn(8, by=("which", "word")),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

Q_HEADS, KV_HEADS, Q_LEN, K_LEN = 4, 2, 90, 150
SINKS = (-np.inf, 0.0, 3.0, 40.0)
# (variant, dtype, head_dim of the tensors)
SPECS = [
    ("naive", "bfloat16", 56),
    ("sm80-64x64-s1-w4", "bfloat16", 56),
    ("sm80-64x32-s2-w4", "float16", 128),
    ("sm80-64x64-s1-w4-shared", "float16", 32),
    ("sm80-64x64-s2-w4", "bfloat16", 264),
    ("sm90-64x64-s2-w8", "bfloat16", 64),
    ("sm90-64x64-s3-w8-b3", "bfloat16", 64),
    ("sm90-128x32-s4-w12-b2", "float16", 80),
    ("sm90-192x64-s3-w16-scheduler", "bfloat16", 128),
    ("sm90-64x64-s2-w8-packed", "float16", 56),
]
# softcap, factor of q, sinks: caps far above scores take the polynomial alone, the others both ways.
CHANGES: dict[str, tuple[float | None, float, bool]] = {
    "none": (None, 1.0, False),
    "sinks": (None, 1.0, True),
    "cap": (50.0, 1.0, False),
    "cap-of-large-scores": (20.0, 8.0, False),
    "both": (2.0, 4.0, True),
}


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


def _compare(call: Forward, spec: AttnSpec, library: Callable[[AttnSpec], Any]) -> None:
    """Both results are within the budget; a row without keys is 0, with an lse of -inf."""
    out, lse = assert_within_budget(call, replace(spec, softcap=call.softcap is not None), library)
    row = 70 % call.problem.q_len
    assert (out[:, :, row] == 0).all()
    assert (lse[:, :, row] == -np.inf).all()


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("which", SPECS, ids=lambda which: "-".join(map(str, which)))
def test_both_results(which: tuple[str, str, int], changes: str, library: Callable[[AttnSpec], Any]) -> None:
    word, dtype, head_dim = which
    softcap, factor, with_sinks = CHANGES[changes]
    problem = Problem(1, Q_HEADS, KV_HEADS, Q_LEN, K_LEN, head_dim, dtype)
    sinks = SINKS if with_sinks else None
    call = Forward(problem, [scattered(Q_LEN, K_LEN)], softcap=softcap, sinks=sinks, factor=factor, seed=3)
    _compare(call, variants.parse(word, "sm_80", dtype, head_dim), library)


@pytest.mark.parametrize("changes", ["sinks", "both"])
@pytest.mark.parametrize("group", [3, 71])
@pytest.mark.parametrize("word", ["sm90-64x64-s2-w8", "sm90-64x64-s2-w8-packed"])
def test_split_rows_count_a_sink_once(
    word: str, group: int, changes: str, library: Callable[[AttnSpec], Any]
) -> None:
    """Rows are merged of parts: the sink is that of the row's own head, in each pack of a group."""
    softcap, factor, _ = CHANGES[changes]
    kv_heads = 2 if group < 64 else 1
    problem = Problem(2, group * kv_heads, kv_heads, 3, K_LEN, 64, "bfloat16")
    sinks = tuple(np.resize(SINKS, group * kv_heads) + 0.01 * np.arange(group * kv_heads))
    call = Forward(
        problem,
        [scattered(3, K_LEN)],
        split=64,
        tokens_first=True,
        softcap=softcap,
        sinks=sinks,
        factor=factor,
    )
    _compare(call, variants.parse(word, "sm_90", "bfloat16", 64), library)


@pytest.mark.parametrize("rise", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("word", ["sm90-64x64-s2-w8", "sm90-64x64-s2-w8-packed"])
def test_scores_that_rise_with_each_tile(
    word: str, dtype: str, rise: float, library: Callable[[AttnSpec], Any]
) -> None:
    """Each tile weighs less than what rescaling allows, and all of them together more than float32 holds."""
    k_len = 64 * 100
    call = Forward(Problem(1, 2, 1, 2, k_len, 64, dtype), [oc.full(2, k_len)], split=k_len)
    query, keys = call.arrays["q"], call.arrays["k"]
    scores = np.arange(k_len) // 64 * rise
    query[...], keys[...] = 0, 0
    query[..., :2] = 8  # the square root of head_dim
    keys[..., 0] = scores
    keys[..., 1] = scores - keys[0, 0, :, 0].astype(np.float64)
    expected = budget.budget(*(call.arrays[name] for name in "qkv"), call.mask)
    out, lse, _ = call.run(variants.parse(word, "sm_90", dtype, 64), library)
    found = budget.compare(out, lse, expected)
    assert found.ok, str(found)


@pytest.mark.parametrize("word", ["naive", *dict.fromkeys(word for word, _, _ in SPECS[1:])])
def test_a_row_of_one_key_is_its_value(word: str, library: Callable[[AttnSpec], Any]) -> None:
    """Scores of ten thousand: one weight is exactly 1 in most rows, and nothing of it is rounded."""
    head_dim = 264 if word == "sm80-64x64-s2-w4" else 128 if word == "sm80-64x32-s2-w4" else 56
    problem = Problem(1, Q_HEADS, KV_HEADS, Q_LEN, K_LEN, head_dim, "float16")
    mask = scattered(Q_LEN, K_LEN)
    call = Forward(problem, [mask], factor=4000.0, seed=3)
    out, lse = assert_within_budget(call, variants.parse(word, "sm_80", "float16", head_dim), library)
    q, k, v = (call.arrays[name].astype(np.float64) for name in "qkv")
    k, v = (np.repeat(x, Q_HEADS // KV_HEADS, axis=1) for x in (k, v))
    scores = np.where(mask.to_dense(), q @ k.swapaxes(2, 3) * head_dim**-0.5, -np.inf)
    order = np.sort(scores, axis=3)
    with np.errstate(invalid="ignore"):
        alone = (order[..., -1] - order[..., -2] > 30) & (abs(lse) > 8000)
    assert alone.sum() > 50
    np.testing.assert_array_equal(out[alone], np.take_along_axis(v, scores.argmax(3)[..., None], 2)[alone])
