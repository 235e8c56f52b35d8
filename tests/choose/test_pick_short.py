"""choose/pick.py: calls whose block rows are short get rows of the table of their own, where these were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import pick, variants
from omnicupy.choose.capped import capped
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.grid import Grid
from omnicupy.tools.workloads.workload import by_name

H100_SMS = 132


@pytest.mark.parametrize(
    ("name", "word", "on_a_cache"),
    [
        ("W8", "sm90-64x64-s2-w8-b3", "sm90-128x64-s3-w12"),
        ("causal-d80-s512-h16-b32", "sm90-192x64-s3-w16-scheduler", "sm90-128x64-s3-w12"),
        ("full-d80-s512-h16-b32", "sm90-192x64-s3-w16-scheduler", "sm90-128x64-s3-w12"),
        ("W8f", "sm90-192x96-s3-w16", "sm90-192x96-s3-w16"),
        ("full-d128-s512", "sm90-192x64-s3-w16-scheduler", "sm90-192x64-s3-w16"),
        ("causal-d128-s512", "sm90-192x64-s3-w16-scheduler", "sm90-192x64-s3-w16"),
        ("full-d128-s1024", "sm90-192x64-s3-w16", "sm90-192x64-s3-w16"),
        ("causal-d64-s512", "sm90-64x64-s3-w8-b3", "sm90-192x128-s3-w16"),
        ("full-d64-s512", "sm90-192x128-s3-w16", "sm90-192x128-s3-w16"),
        ("causal-d64-s1024", "sm90-192x128-s3-w16", "sm90-192x128-s3-w16"),
    ],
)
def test_short_block_rows_have_rows_of_their_own(name: str, word: str, on_a_cache: str) -> None:
    workload = by_name(name)
    mask = workload.mask()
    problem = workload.problem(mask, "bfloat16")

    def picked(of: Problem = problem, **how: Any) -> AttnSpec:
        return pick.pick("sm_90", of, (mask,), H100_SMS, **how)

    assert variants.word(picked()) == word
    spec = picked()
    assert variants.parse(word, "sm_90", "bfloat16", workload.head_dim) == spec
    grid = Grid.of(spec, problem, 1, sm_count=H100_SMS, l2_bytes=50 << 20)
    assert grid.thread_blocks(1000) == (spec.blocks * H100_SMS, 1, 1)
    assert variants.word(picked(cached=True)) == on_a_cache
    assert picked(split=384).serves_caches
    assert picked(replace(problem, softcap=True)) == capped(picked(cached=True))
    # Few block rows a multiprocessor: nobody measured that.
    few = replace(problem, batch=1, q_heads=2, kv_heads=2)
    assert picked(few).serves_caches
    assert pick.pick("sm_90", problem, (mask,), 10**6).serves_caches


def test_masks_of_a_batch_decide_together_whether_block_rows_are_short() -> None:
    problem, masks = Problem(2, 512, 512, 512, 512, 64, "bfloat16"), (oc.causal(512), oc.full(512))
    assert pick.pick("sm_90", problem, masks[:1], H100_SMS).blocks == 3
    assert pick.pick("sm_90", problem, masks, H100_SMS).blocks == 1


def _windows(size: int, tokens: int = 16384) -> oc.Mask:
    return oc.documents([size] * (tokens // size), causal=False)


@pytest.mark.parametrize(
    ("head_dim", "size", "word"),
    [
        (64, 64, "sm90-64x64-s3-w8-b3"),
        (64, 128, "sm90-192x128-s3-w16"),
        (80, 32, "sm90-64x64-s2-w8-b3"),
        (80, 256, "sm90-64x64-s2-w8-b3"),
        (80, 512, "sm90-64x64-s2-w8-b3"),
        (96, 64, "sm90-64x64-s2-w8-b2"),
        (112, 64, "sm90-64x64-s2-w8-b2"),
        (128, 64, "sm90-64x64-s2-w8-b2"),
        (128, 128, "sm90-128x128-s2-w12"),
        (256, 64, "sm90-128x64-s2-w12"),
    ],
)
def test_windows_of_few_keys_have_tiles_that_begin_where_they_do(head_dim: int, size: int, word: str) -> None:
    mask = _windows(size)
    problem = Problem(1, 16, 16, *mask.shape, head_dim, "bfloat16")
    assert variants.word(pick.pick("sm_90", problem, (mask,), H100_SMS)) == word


def test_a_long_sample_beside_rows_that_see_little_keeps_large_tiles() -> None:
    problem = Problem(1, 16, 16, 16384, 16384, 80, "bfloat16")
    stops = np.zeros((1, 16384), np.int32)
    stops[:, :1500] = 1500
    padded = oc.intervals(np.zeros_like(stops), stops, 16384)
    assert padded.pairs <= 512 * 16384
    for masks in ((padded,), (_windows(64), padded)):
        of = replace(problem, batch=len(masks))
        assert pick.pick("sm_90", of, masks, H100_SMS).br > 64
