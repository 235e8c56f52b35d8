"""Which kernel serves a cache by its size, which pages round up and choices do not see rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from omnicupy.call.problem import Problem
from omnicupy.choose import paged, pick
from omnicupy.gpu.cached_planning import FEW_ROWS_PARTS
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import causal

SMS = 132
PAGES = (1, 2, 8, 16, 64, 128, 256)


def _chosen(problem: Problem) -> AttnSpec:
    masks = (causal(problem.q_len, problem.k_len),)
    spec = pick.pick("sm_90", problem, masks, SMS, cached=True)
    return paged.for_16_bits(spec, problem, SMS)


def _in_pages(problem: Problem) -> Iterator[Problem]:
    for size in PAGES:
        yield replace(problem, k_len=-(-problem.k_len // size) * size)


# Few rows at head_dim 128 from 198,000 keys of all heads, at 64 from 66,000; prompts of few blocks split rows from 16
# tiles of keys on.
@pytest.mark.parametrize(
    ("problem", "keys"),
    [
        (Problem(1, 32, 8, 1, 1, 128, "bfloat16"), 24_750),
        (Problem(1, 16, 16, 1, 1, 64, "bfloat16"), 4_125),
        (Problem(1, 8, 8, 100, 1, 128, "bfloat16"), 2048),
        (Problem(1, 8, 8, 100, 1, 64, "bfloat16"), 2048),
    ],
)
def test_pages_are_served_as_keys_in_one_piece(problem: Problem, keys: int) -> None:
    found = set()
    for k_len in (keys // 2, *range(keys - 300, keys + 300, 7)):
        whole = replace(problem, k_len=k_len)
        spec = _chosen(whole)
        found.add(spec)
        assert {_chosen(one) for one in _in_pages(whole)} == {spec}, k_len
    assert len(found) == 2


def test_few_rows_count_keys_of_all_heads() -> None:
    problem = Problem(1, 32, 8, 1, 24_577, 128, "bfloat16")
    assert isinstance(_chosen(problem), FewRowsSpec)
    assert not isinstance(_chosen(replace(problem, k_len=24_576)), FewRowsSpec)


def test_few_rows_reach_the_multiprocessors() -> None:
    """A row has at most 32 parts: with 132 multiprocessors four key heads of all sequences reach 128 of them."""
    assert paged.MOST_PARTS == FEW_ROWS_PARTS
    for head_dim in (64, 128):
        for batch, kv_heads in ((1, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1)):
            problem = Problem(batch, kv_heads, kv_heads, 1, 1 << 20, head_dim, "bfloat16")
            assert isinstance(_chosen(problem), FewRowsSpec) == (batch * kv_heads == 4)
