"""choose/classes.py: which problems share a choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import classes

SMS = 132


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([oc.full(300)], "full"),
        ([oc.segments([("image", 300)])], "full"),
        ([oc.causal(300)], "causal"),
        ([oc.causal(20, 300)], "causal"),
        ([oc.causal(300).rows(40, 60, 60)], "causal"),
        ([oc.full(300), oc.causal(300)], "spans<=256"),
        ([oc.documents([50] * 40, causal=False)], "spans<=64"),
        ([oc.documents([500] * 4, causal=False)], "spans<=1024"),
        ([oc.sliding_window(9000, left=4095)], "spans<=4096"),
        ([oc.documents([5000, 5000], causal=False)], "spans>4096"),
        ([~oc.full(300)], "spans<=64"),
        ([oc.from_dense(np.random.default_rng(0).random((64, 64)) < 0.5)], "bits"),
    ],
)
def test_mask_classes(masks: Sequence[oc.Mask], expected: str) -> None:
    assert classes.mask_class(masks) == expected


def test_shape_classes() -> None:
    def of(q_len: int, k_len: int, heads: int) -> str:
        return classes.shape_class(Problem(1, heads, heads, q_len, k_len, 64, "float16"), SMS)

    assert of(64, 512, 132) == "rows<=64, waves<=1, keys<=512"
    assert of(65, 513, 133) == "rows<=128, waves<=2, keys<=2048"
    assert of(129, 8192, 264) == "rows>128, waves<=4, keys<=8192"
    assert of(16384, 8193, 16) == "rows>128, waves>8, keys>8192"


def test_few_rows_of_groups_of_two_are_a_class_of_their_own() -> None:
    def of(q_len: int, q_heads: int) -> str:
        return classes.shape_class(Problem(1, q_heads, 2, q_len, 9000, 64, "float16"), SMS)

    assert of(64, 8) == "rows<=64, waves<=1, keys>8192, heads in twos"
    assert of(64, 6) == of(64, 2) == "rows<=64, waves<=1, keys>8192"
    assert of(65, 8) == "rows<=128, waves<=1, keys>8192"


@pytest.mark.parametrize(("cache", "passed"), [("ring", "forward"), ("pages", "backward")])
def test_other_kinds_of_caches_are_refused(cache: str, passed: str) -> None:
    problem = Problem(1, 4, 4, 300, 300, 64, "float16")
    with pytest.raises(ValueError, match="cache: expected one of"):
        classes.class_of(problem, (oc.causal(300),), SMS, passed, cache=cache)
    assert classes.class_of(problem, (oc.causal(300),), SMS, cache="pages").cache == "pages"
