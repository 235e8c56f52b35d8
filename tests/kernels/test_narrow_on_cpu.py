"""Tiles whose last panel of columns is narrow: the Hopper forward kernel's own source, run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget, scattered

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import variants
from omnicupy.jit.panels import tail_columns
from omnicupy.jit.spec import AttnSpec

pytestmark = [
    pytest.mark.in_turn(8, by=("word", "widths")),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

Q_LEN, K_LEN = 90, 150
# Columns of tensors, keys and values: tails of 16 and 32 columns, behind one panel and behind two; of one alone.
WIDTHS = ((80, 80), (72, 72), (96, 96), (80, 64), (64, 96), (144, 80))
WORDS = ("sm90-64x64-s2-w8-b2", "sm90-64x32-s3-w8-b2")


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.mark.parametrize("widths", WIDTHS, ids=lambda widths: "-".join(map(str, widths)))
@pytest.mark.parametrize("word", WORDS)
def test_both_results(word: str, widths: tuple[int, int], library: Callable[[AttnSpec], Any]) -> None:
    """Rows without keys, dead keys that hold NaN, intervals, and windows."""
    dtype = ("bfloat16", "float16")[WIDTHS.index(widths) % 2]
    spec = variants.parse(word, "sm_90", dtype, *widths)
    assert spec.narrow
    windows = oc.presets.varlen([0, 24, 40, 90])
    for mask in (scattered(Q_LEN, K_LEN), oc.sliding_window(Q_LEN, left=30), windows):
        problem = Problem(1, 4, 2, *mask.shape, widths[0], dtype, value_dim=widths[1])
        assert_within_budget(Forward(problem, [mask], tokens_first=True), spec, library)


def test_rows_that_are_split(library: Callable[[AttnSpec], Any]) -> None:
    spec = variants.parse(WORDS[0], "sm_90", "bfloat16", 80)
    problem = Problem(2, 3, 1, 20, 310, 80, "bfloat16")
    assert_within_budget(Forward(problem, [scattered(20, 310)], split=64), spec, library)


def test_one_thread_block_has_whole_panels() -> None:
    """Where registers, not shared memory, are what is lacking."""
    wide, narrow = (variants.parse(f"sm90-64x64-s2-w8{end}", "sm_90", "float16", 80) for end in ("", "-b2"))
    assert (wide.narrow, narrow.narrow) == (False, True)
    assert wide.smem_bytes - narrow.smem_bytes == (2 + 2 * 2) * 64 * 2 * (64 - 16)
    assert [tail_columns(n) for n in (16, 32, 64, 80, 96, 112, 128, 144)] == [0, 0, 0, 16, 32, 0, 0, 16]
    assert np.all([variants.parse("sm90-64x64-s2-w8-b2", "sm_90", "float16", n).narrow for n in (80, 96)])
