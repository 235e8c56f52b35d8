"""The kernel for few query rows, run on the CPU: e4m3 beside the 16-bit numbers that it stands for, to the bit, and
both against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cached_cases
import cuda_on_cpu
import fp8_caches
import ml_dtypes
import numpy as np
import paged_calls
import planned
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference import budget

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LENGTHS = [0, 1, 17, 32, 65, 400]
Array = NDArray[Any]


def _spec(head_dim: int, dtype: str = "bfloat16", *, softcap: bool = False, **fields: int) -> FewRowsSpec:
    of = AttnSpec(
        arch="sm_90a", kernel="sm90", dtype=dtype, head_dim=head_dim, br=64, bc=64, warps=8, softcap=softcap
    )
    return FewRowsSpec.of(of, **fields)


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def planner() -> Any:
    return planned.build()


def _with_gaps(kv: oc.CachedKV) -> oc.CachedKV:
    """The same, tokens first in memory."""
    pools = []
    for pool in (kv.k, kv.v):
        batch, heads, capacity, columns = pool.shape
        found = aligned((batch, capacity, heads, columns), pool.dtype).transpose(0, 2, 1, 3)
        found[...] = pool
        pools.append(found)
    return oc.CachedKV(*pools, kv.lengths, k_scale=kv.k_scale, v_scale=kv.v_scale)


def _compare(
    library: Any,
    planner: Any,
    *,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    kind: str = "token",
    page_size: int | None = None,
    q_len: int = 1,
    group: int = 4,
    rule: oc.CachedRule | None = None,
    lengths: list[int] = LENGTHS,
    gaps: bool = False,
    sharp: float = 1.0,
    **how: Any,
) -> paged_calls.Run:
    """e4m3 has the bits of 16 bits, and these are within the budget of float64; caches past lengths are NaN.

    gaps: between keys of a head lie those of others.  sharp: what the queries of every other head are multiplied by.
    """
    fields = {"most_rows": 8 if group * q_len <= 8 else 16, **how.pop("fields", {})}
    spec, of = _spec(head_dim, dtype, softcap="softcap" in how, **fields), DTYPES[dtype]
    capacity = max(lengths)
    kv, numbers = fp8_caches.pair(lengths, kind=kind, capacity=capacity, head_dim=head_dim, dtype=of)
    if gaps:
        kv, numbers = _with_gaps(kv), _with_gaps(numbers)
    q = fp8_caches.queries(len(lengths), 2 * group, q_len, head_dim, of)
    q[:, ::2] *= of.type(sharp)
    rule = rule or oc.cached()
    caches = (
        (kv, numbers)
        if page_size is None
        else (fp8_caches.in_pages(kv, page_size), paged_calls.paged(numbers, page_size))
    )
    with np.errstate(all="ignore"):
        found, wanted = (
            paged_calls.run(spec, rule, q, one, library, planner, late=True, **how) for one in caches
        )
        masks = [
            oc.from_dense(cached_cases.dense(rule, n, q_len, capacity, b)) for b, n in enumerate(lengths)
        ]
        changes = {name: how[name] for name in ("softcap", "sink_logits") if name in how}
        expected = budget.budget(q, numbers.k, numbers.v, masks, **changes)
    assert paged_calls.same_bits(found, wanted)
    compared = budget.compare(found.out, found.lse, expected)
    assert compared.ok, str(compared)
    return found


@pytest.mark.parametrize("page_size", [None, 1, 16, 17])
@pytest.mark.parametrize(("dtype", "head_dim"), list(zip(DTYPES, (64, 128), strict=True)))
def test_pages_of_any_size(
    dtype: str, head_dim: int, page_size: int | None, library: Any, planner: Any
) -> None:
    _compare(library, planner, head_dim=head_dim, dtype=dtype, page_size=page_size)


@pytest.mark.parametrize("kind", fp8_caches.SCALES)
@pytest.mark.parametrize("page_size", [None, 16])
def test_scales(page_size: int | None, kind: str, library: Any, planner: Any) -> None:
    _compare(library, planner, head_dim=64, kind=kind, page_size=page_size)


@pytest.mark.parametrize(("group", "q_len"), [(1, 1), (1, 16), (2, 5), (7, 2), (8, 1), (8, 2), (16, 1)])
def test_groups_and_tokens(group: int, q_len: int, library: Any, planner: Any) -> None:
    for rule in (oc.cached(), oc.cached(window=50, sink=4)):
        _compare(library, planner, head_dim=64, group=group, q_len=q_len, rule=rule, page_size=16)


@pytest.mark.parametrize(("group", "q_len"), [(4, 1), (4, 4)])
def test_weights_that_would_overflow_raise_the_maximum_of_their_row(
    group: int, q_len: int, library: Any, planner: Any
) -> None:
    """Of FULL tiles weighed by the maximum so far: where float16 does not hold what a key weighs then."""
    how: dict[str, Any] = {"head_dim": 64, "dtype": "float16", "kind": "head", "lengths": [1300] * 8}
    _compare(library, planner, group=group, q_len=q_len, sharp=30.0, **how)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ["head", "token"])
def test_keys_with_gaps_between_them(kind: str, head_dim: int, library: Any, planner: Any) -> None:
    """Tiles that no single copy brings."""
    _compare(library, planner, head_dim=head_dim, kind=kind, gaps=True)


@pytest.mark.parametrize(
    ("head_dim", "fields"), [(64, {"compute_warps": 8}), (128, {"compute_warps": 12, "blocks": 1})]
)
def test_layouts_have_the_same_bits(
    head_dim: int, fields: dict[str, int], library: Any, planner: Any
) -> None:
    """Keys in one piece, heads or tokens first, and in pages, in the shapes that 16 bits choose."""
    how: dict[str, Any] = {"head_dim": head_dim, "fields": fields, "lengths": [0, 1, 33, 517, 1200]}
    whole = _compare(library, planner, **how)
    assert paged_calls.same_bits(whole, _compare(library, planner, gaps=True, **how))
    for page_size in (1, 17, 24, 64):
        assert paged_calls.same_bits(whole, _compare(library, planner, page_size=page_size, **how))


def test_a_tree_of_tokens(library: Any, planner: Any) -> None:
    rule = oc.cached(window=90, tail=cached_cases.TAILS["random"](4))
    _compare(library, planner, q_len=4, rule=rule, lengths=[200, 4, 5, 133])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("split", [None, 512])
def test_splits_score_changes_and_many_items(
    split: int | None, softcap: float | None, library: Any, planner: Any
) -> None:
    """Few multiprocessors, so that a thread block goes from item to item: long, short and empty ones."""
    sinks = aligned(8, np.float32)
    sinks[...] = (-np.inf, 0.0, 3.0, 1e4, 1.0, 2.0, -3.0, 30.0)
    how: dict[str, Any] = {"lengths": [1600, 0, 65, 1, 130, 0, 700, 64], "sm_count": 2, "sink_logits": sinks}
    how |= {} if softcap is None else {"softcap": softcap}
    found = _compare(library, planner, split=split, page_size=None if split else 16, **how)
    assert split is None or found.parts > 1


def test_parts_that_the_planner_cuts(library: Any, planner: Any) -> None:
    """On a device that one sequence does not fill."""
    for lengths in ([6000], [5999, 0, 65]):
        assert _compare(library, planner, head_dim=64, lengths=lengths, sm_count=132).parts > 1


@pytest.mark.parametrize(
    "fields", [{"compute_warps": 2, "blocks": 1}, {"compute_warps": 5}, {"compute_warps": 8}]
)
def test_other_numbers_of_warps(fields: dict[str, int], library: Any, planner: Any) -> None:
    _compare(library, planner, fields=fields, page_size=16)


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("fields", [{}, {"compute_warps": 3}], ids=["odd", "even"])
def test_rings_go_on_from_item_to_item(
    fields: dict[str, int], page_size: int | None, library: Any, planner: Any
) -> None:
    """One multiprocessor, and items of which many have no tile for some warps: an odd and an even number of buffers."""
    lengths = np.random.default_rng(7).integers(0, 300, 40).tolist()
    lengths[5:12] = [0, 1, 0, 33, 0, 0, 2]
    assert _spec(128, **fields).for_caches(e4m3=True, in_pages=False, ragged=False).stages == 4 - (not fields)
    _compare(library, planner, lengths=lengths, sm_count=1, fields=fields, page_size=page_size)


@pytest.mark.parametrize("group", [4, 7])
def test_bits_do_not_depend_on_which_item_is_the_last_of_its_block(
    group: int, library: Any, planner: Any
) -> None:
    """A block's last item is added up by all warps, others by one after the other: the same parts, on devices of one
    multiprocessor and of many.
    """
    spec = _spec(128, compute_warps=5)
    kv, _ = fp8_caches.pair(
        [1500, 65, 700, 0, 1], kind="head", capacity=1500, head_dim=128, dtype=DTYPES["bfloat16"]
    )
    q = fp8_caches.queries(5, 2 * group, 1, 128, DTYPES["bfloat16"])
    with np.errstate(all="ignore"):
        few, many = (
            paged_calls.run(spec, oc.cached(), q, kv, library, planner, split=512, sm_count=count)
            for count in (1, 64)
        )
    assert few.parts > 1
    assert paged_calls.same_bits(few, many)


@pytest.mark.parametrize("page_size", [None, 17])
def test_rows_of_their_own(page_size: int | None, library: Any) -> None:
    """Sequences with numbers of rows of their own; rows of none are NaN."""
    counts, spec = [1, 0, 5, 8, 3], _spec(128)
    kv, numbers = fp8_caches.pair([240, 17, 65, 200, 0], kind="token", head_dim=128, dtype=DTYPES["bfloat16"])
    starts = aligned(len(counts) + 1, np.int32)
    starts[...] = np.cumsum([0, *counts])
    q = aligned((sum(counts) + 3, 4, 128), DTYPES["bfloat16"])
    q[...] = np.random.default_rng(5).standard_normal(q.shape)
    q[starts[-1] :] = np.nan
    caches = (
        (kv, numbers)
        if page_size is None
        else (fp8_caches.in_pages(kv, page_size), paged_calls.paged(numbers, page_size))
    )
    rule, how = oc.cached(window=120, sink=4), {"rows": starts, "max_rows": max(counts)}
    made = planned.build(ragged=True)
    with np.errstate(all="ignore"):
        found, wanted = (paged_calls.run(spec, rule, q, one, library, made, **how) for one in caches)
        other = AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=128, br=32, bc=64)
        plain = paged_calls.run(other, rule, q, numbers, library, made, **how)
    assert paged_calls.same_bits(found, wanted)
    live = (0, slice(None), slice(0, starts[-1]))
    np.testing.assert_allclose(
        found.out[live].astype(np.float32), plain.out[live].astype(np.float32), atol=2e-2
    )
    assert np.isnan(found.out[0, :, starts[-1] :].astype(np.float32)).all()


def test_keys_of_no_page_are_not_seen(library: Any, planner: Any) -> None:
    spec = _spec(128)
    kv, numbers = fp8_caches.pair([240, 240, 130], kind="token", head_dim=128, dtype=DTYPES["bfloat16"])
    q = fp8_caches.queries(3, 8, 1, 128, DTYPES["bfloat16"])
    caches, plain = fp8_caches.in_pages(kv, 16), paged_calls.paged(numbers, 16)
    for in_pages in (caches, plain):
        for at, page in (((0, 0), -1), ((1, 1), 2**31 - 1), ((1, 14), -1), ((2, 8), len(in_pages.k_pages))):
            in_pages.page_table[at] = page
    other = AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=128, br=32, bc=64)
    with np.errstate(all="ignore"):
        found, wanted = (
            paged_calls.run(spec, oc.cached(), q, one, library, planner) for one in (caches, plain)
        )
        by_plain = paged_calls.run(other, oc.cached(), q, plain, library, planner)
    assert paged_calls.same_bits(found, wanted)
    np.testing.assert_allclose(found.out.astype(np.float32), by_plain.out.astype(np.float32), atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_is_read_as_the_cpu_reads_it(dtype: str, library: Any, planner: Any) -> None:
    """Values of one key a sequence are its output: all 256 bytes, NaN among them, at scales that round and overflow."""
    for scale in (1.0, 0.0123, 1e-7, 777.7, 1e36):
        values = aligned((4, 1, 16, 64), np.uint8)
        values[:, 0, 0] = np.arange(256, dtype=np.uint8).reshape(4, 64)
        keys, lengths = aligned(values.shape, np.uint8), aligned(4, np.int32)
        keys[...], lengths[...] = 0x38, 1
        kv = oc.CachedKV(keys, values, lengths, k_scale=1.0, v_scale=scale)
        q = fp8_caches.queries(4, 2, 1, 64, DTYPES[dtype])
        with np.errstate(all="ignore"):
            found = paged_calls.run(_spec(64, dtype), oc.cached(), q, kv, library, planner)
            wanted = fp8_caches.meant(values[:, :, :1], scale, DTYPES[dtype]).astype(np.float32)
        np.testing.assert_array_equal(found.out[:, :1].astype(np.float32), wanted)
        np.testing.assert_array_equal(found.out[:, 1:].astype(np.float32), wanted)
