"""Forward kernels and planner where each sequence has a number of rows of its own, their own sources run on the CPU,
against float64; rows of no sequence are not written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import cached_cases
import cuda_on_cpu
import ml_dtypes
import numpy as np
import paged_calls
import planned
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference.attention import attention64

pytestmark = [
    pytest.mark.in_turn(8, by=("name",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

BF16 = np.dtype(ml_dtypes.bfloat16)
SPARE = 3  # rows of q behind those of all sequences
Array = NDArray[Any]


def _sm80(head_dim: int, **fields: Any) -> AttnSpec:
    return AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=head_dim, **fields)


def _sm90(**fields: Any) -> AttnSpec:
    return AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, stages=2, **fields)


SPECS = {
    "naive": AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=64, br=32, bc=64),
    "sm80": _sm80(64, br=64, bc=64),
    "sm80-ring": _sm80(64, br=32, bc=32, warps=2, stages=2),
    "sm80-shared": _sm80(64, br=64, bc=32, share_kv=True),
    "sm80-tiled": _sm80(272, br=64, bc=32, stages=2),
    "sm90": _sm90(br=64, bc=64, warps=8),
    "sm90-packed": _sm90(br=64, bc=64, warps=8, pack=True),
    "sm90-pair": _sm90(br=128, bc=64, warps=12, pack=True),
    "sm90-turns": _sm90(br=64, bc=128, warps=12, pack=True),
    "sm90-heads": _sm90(br=64, bc=96, warps=12),
    "sm90-three": _sm90(br=192, bc=64, warps=16),
}
COUNTS: dict[str, tuple[list[int], list[int]]] = {  # rows and keys of each sequence
    "mixed": ([1, 0, 5, 70, 64, 1, 3], [200, 30, 65, 170, 64, 0, 2]),
    "decode": ([1, 1, 1, 1], [1, 64, 200, 65]),
    "one": ([133], [200]),
}
RULES: dict[str, Callable[[], oc.CachedRule]] = {
    "all": lambda: oc.cached(),
    "window": lambda: oc.cached(window=50, sink=4),
}


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def planner() -> Any:
    return planned.build(ragged=True)


def _inputs(
    spec: AttnSpec, counts: Sequence[int], lengths: Sequence[int], group: int = 2, capacity: int = 208
) -> tuple[Array, oc.CachedKV, Array]:
    """q with NaN in the rows of no sequence, caches with NaN past their lengths, and where rows begin."""
    rng, head_dim = np.random.default_rng(7), spec.head_dim - 8
    total = sum(counts)
    q = aligned((total + SPARE, 2 * group, head_dim), BF16)
    q[...] = rng.standard_normal(q.shape)
    q[total:] = np.nan
    k, v = (aligned((len(counts), 2, capacity, head_dim), BF16) for _ in "kv")
    for array in (k, v):
        array[...] = rng.standard_normal(array.shape)
        for b, keys in enumerate(lengths):
            array[b, :, keys:] = np.nan
    held, starts = aligned(len(counts), np.int32), aligned(len(counts) + 1, np.int32)
    held[...] = lengths
    starts[...] = np.concatenate([[0], np.cumsum(counts)])
    return q, oc.CachedKV(k, v, held), starts


def _agrees(run: Any, q: Array, kv: oc.CachedKV, starts: Array, rule: oc.CachedRule, **scores: Any) -> None:
    """Rows of sequences against float64; none of the others was written."""
    out, lse = run.out[0].transpose(1, 0, 2).astype(np.float64), run.lse[0]
    clean = [np.nan_to_num(one) for one in (kv.k, kv.v)]
    for b, (first, stop) in enumerate(pairwise(starts)):
        if first == stop:
            continue
        here, one = slice(first, stop), slice(b, b + 1)
        mask = oc.from_dense(cached_cases.dense(rule, int(kv.lengths[b]), stop - first, kv.k.shape[2], b))
        of_q = q[here].transpose(1, 0, 2)[None]
        wanted, of_lse = attention64(of_q, *(array[one] for array in clean), mask, **scores)
        np.testing.assert_allclose(out[here].transpose(1, 0, 2), wanted[0], atol=0.02, rtol=0.02)
        np.testing.assert_allclose(lse[:, here], of_lse[0], atol=2e-3, rtol=2e-3)
    assert np.isnan(out[starts[-1] :]).all()
    assert np.isnan(lse[:, starts[-1] :]).all()


@pytest.mark.parametrize("page_size", [None, 48])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("name", SPECS)
def test_against_float64(
    name: str, case: str, rule: str, page_size: int | None, library: Any, planner: Any
) -> None:
    spec, (counts, lengths) = SPECS[name], COUNTS[case]
    q, kv, starts = _inputs(spec, counts, lengths)
    held = kv if page_size is None else paged_calls.paged(kv, page_size)
    with np.errstate(all="ignore"):
        found = paged_calls.run(
            spec, RULES[rule](), q, held, library, planner, rows=starts, max_rows=max(counts)
        )
    _agrees(found, q, kv, starts, RULES[rule]())


@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize("name", ["sm90", "sm90-packed", "sm90-pair"])
def test_groups_scores_and_parts(name: str, group: int, library: Any, planner: Any) -> None:
    """Sinks, soft caps, and rows whose keys are split."""
    spec, counts, lengths = replace(SPECS[name], softcap=True), [1, 7, 0, 2], [3000, 2000, 100, 0]
    q, kv, starts = _inputs(spec, counts, lengths, group, 3000)
    sinks = aligned(2 * group, np.float32)
    sinks[...] = np.resize([-np.inf, 0.0, 3.0, 1e4], 2 * group)
    how: dict[str, Any] = {"softcap": 5.0, "sink_logits": sinks}
    with np.errstate(all="ignore"):
        found = paged_calls.run(
            spec, oc.cached(), q, kv, library, planner, sm_count=64, rows=starts, max_rows=7, **how
        )
    assert found.parts > 1
    _agrees(found, q, kv, starts, oc.cached(), **how)


def test_bits_of_a_split_are_those_of_the_sequence_alone(library: Any, planner: Any) -> None:
    """Packed rows of 384 keys a part: whatever rows of others are beside them in q."""
    spec, counts, lengths = SPECS["sm90-packed"], [1, 5, 3], [1500, 1400, 900]
    q, kv, starts = _inputs(spec, counts, lengths, 4, 1536)
    q[: sum(counts)] *= 6
    how: dict[str, Any] = {"split": 384, "sm_count": 64}
    with np.errstate(all="ignore"):
        found = paged_calls.run(spec, oc.cached(), q, kv, library, planner, rows=starts, max_rows=5, **how)
        plain = planned.build()
        for b, (first, stop) in enumerate(pairwise(starts)):
            alone = oc.CachedKV(
                *(aligned((1, *one.shape[1:]), BF16) for one in (kv.k, kv.v)), kv.lengths[b : b + 1]
            )
            alone.k[...], alone.v[...] = kv.k[b], kv.v[b]
            of_q = aligned((1, stop - first, *q.shape[1:]), BF16)
            of_q[...] = q[first:stop]
            wanted = paged_calls.run(
                spec, oc.cached(), of_q.transpose(0, 2, 1, 3), alone, library, plain, **how
            )
            mine = replace(found, out=found.out[:, :, first:stop], lse=found.lse[:, :, first:stop])
            assert paged_calls.same_bits(mine, wanted)


@pytest.mark.parametrize("name", ["naive", "sm80", "sm90", "sm90-packed", "sm90-pair"])
def test_bounds_that_are_none_write_nothing(name: str, library: Any, planner: Any) -> None:
    """As a device may hold them: rows that decrease, that leave q, and more of them than max_rows."""
    spec, lengths = SPECS[name], [200, 100, 50]
    for bounds in ([4, 2, 2, 9], [0, 2, 99, 100], [-3, 2, 2, 2], [0, 2, 9, 9]):
        q, kv, starts = _inputs(spec, [4, 2, 3], lengths)
        starts[...] = bounds
        with np.errstate(all="ignore"):
            found = paged_calls.run(spec, oc.cached(), q, kv, library, planner, rows=starts, max_rows=4)
        written = np.zeros(len(q), bool)
        for first, stop in pairwise(bounds):
            if 0 <= first <= stop <= len(q) and stop - first <= 4:
                written[first:stop] = True
        assert (np.isfinite(found.out[0].astype(np.float32)).all(axis=(0, 2)) == written).all()
        assert (np.isnan(found.lse[0]).all(axis=0) == ~written).all()
