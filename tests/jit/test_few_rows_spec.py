"""The kernel for few query rows, as a value: what it serves, and how many buffers its warps have."""

from __future__ import annotations

from typing import Any

import pytest

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.few_rows_spec import FEWER_ROWS, FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.cached_lists import grid_of
from omnicupy.schedule.grid import Grid


def _plain(head_dim: int = 128, **fields: Any) -> AttnSpec:
    fields = {"arch": "sm_90a", "kernel": "sm90", "br": 64, "bc": 64, "warps": 8} | fields
    return AttnSpec(dtype="bfloat16", head_dim=head_dim, **fields)


def _grid(spec: AttnSpec, q_heads: int, q_len: int, head_dim: int = 128) -> Grid:
    problem = Problem(3, q_heads, 2, q_len, 1000, head_dim, "bfloat16")
    return grid_of(spec, problem, sm_count=132, l2_bytes=50 << 20)


def test_a_ring_has_as_many_buffers_as_shared_memory_holds() -> None:
    for head_dim, fields, e4m3, stages in (
        (128, {}, True, 3),
        (128, {"compute_warps": 8}, True, 2),
        (128, {"compute_warps": 12, "blocks": 1}, True, 4),
        (128, {}, False, 2),
        (64, {}, True, 4),
        (128, {"compute_warps": 16, "blocks": 1}, True, 3),
        (128, {"most_rows": 8}, True, 4),
        (128, {"compute_warps": 12, "blocks": 1, "most_rows": 8}, True, 4),
    ):
        spec = FewRowsSpec.of(_plain(head_dim), **fields)
        spec = spec.for_caches(e4m3=e4m3, in_pages=False, ragged=False)
        assert spec.stages == stages
        blocks = spec.blocks if e4m3 else 1
        assert blocks * (spec.smem_bytes + 1024) <= SMEM_LIMIT_BYTES["sm_90a"] + 1024


def test_thread_blocks_share_multiprocessors() -> None:
    spec = FewRowsSpec.of(_plain())
    assert _grid(spec, 8, 1).thread_blocks(1000)[0] == 2 * 132


@pytest.mark.parametrize(
    "plain",
    [_plain(96), _plain(128, value_dim=64), _plain(64, arch="sm_80", kernel="sm80", warps=4)],
    ids=["head_dim", "value_dim", "arch"],
)
def test_what_it_does_not_serve_is_refused(plain: AttnSpec) -> None:
    with pytest.raises(
        UnsupportedError, match="config: the kernel for few rows serves keys and values of 64 or 128"
    ):
        FewRowsSpec.of(plain)


@pytest.mark.parametrize(
    ("q_heads", "q_len", "head_dim"), [(34, 1, 128), (8, 5, 128), (2, 17, 128), (8, 1, 120)]
)
def test_more_rows_and_other_columns_are_refused(q_heads: int, q_len: int, head_dim: int) -> None:
    with pytest.raises(
        UnsupportedError, match="config: the kernel for few rows serves at most 16 rows of heads"
    ):
        _grid(FewRowsSpec.of(_plain()), q_heads, q_len, head_dim)


def test_more_than_eight_rows_are_refused_where_they_are_columns_of_products() -> None:
    spec = FewRowsSpec.of(_plain(), most_rows=FEWER_ROWS)
    _grid(spec, 8, 2)
    with pytest.raises(UnsupportedError, match="config: the kernel for few rows serves at most 8 rows"):
        _grid(spec, 6, 3)


def test_rows_are_those_of_a_product_or_its_columns() -> None:
    with pytest.raises(ValueError, match="config: most_rows must be 8 or 16, got 12"):
        FewRowsSpec.of(_plain(), most_rows=12)
