"""Forward kernels on caches of e4m3, their own sources run on the CPU: the bits of the same kernel on a cache of the
16-bit numbers that these mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

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
from omnicupy.jit.spec import AttnSpec

pytestmark = [
    pytest.mark.in_turn(8, by=("name",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
Array = NDArray[Any]


def _sm80(head_dim: int = 48, **fields: Any) -> AttnSpec:
    return AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=head_dim, **fields)


def _sm90(head_dim: int = 64, **fields: Any) -> AttnSpec:
    fields = {"br": 64, "bc": 64, "stages": 2, "warps": 8} | fields
    return AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=head_dim, **fields)


SPECS = {
    "naive": AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=48, br=32, bc=64),
    "sm80": _sm80(br=64, bc=64),
    "sm80-ring": _sm80(br=32, bc=32, warps=2, stages=2),
    "sm80-shared": _sm80(br=64, bc=32, share_kv=True),
    "sm80-tiled": _sm80(272, br=64, bc=32, stages=2),
    "sm90": _sm90(),
    "sm90-packed": _sm90(pack=True),
    "sm90-wide": _sm90(128, bc=128, pack=True),
    "sm90-narrow": _sm90(80, bc=96, stages=3, pack=True),
    "sm90-uneven": _sm90(64, bc=96, pack=True),  # some converting warps have no share of a tile's end
    "sm90-long": _sm90(128, bc=256, stages=1, pack=True),  # one tile in registers, four warps that convert
    "sm90-three-panels": _sm90(192, pack=True),
    "sm90-four-panels": _sm90(256, pack=True),
}
LENGTHS = [0, 1, 17, 64, 65, 240]


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def planner() -> Any:
    return planned.build()


def _compare(
    name: str,
    library: Any,
    planner: Any,
    *,
    kind: str = "token",
    page_size: int | None = 16,
    q_len: int = 2,
    group: int = 2,
    rule: oc.CachedRule | None = None,
    dtype: str = "bfloat16",
    lengths: list[int] = LENGTHS,
    capacity: int = 240,
    value_dim: int | None = None,
    **how: Any,
) -> paged_calls.Run:
    spec = replace(SPECS[name], dtype=dtype, softcap="softcap" in how)
    head_dim = spec.head_dim
    if value_dim is not None:
        spec = replace(spec, value_dim=value_dim)
    kv, numbers = fp8_caches.pair(
        lengths, kind=kind, capacity=capacity, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]
    )
    q = fp8_caches.queries(len(lengths), 2 * group, q_len, head_dim, DTYPES[dtype])
    caches = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    rule, late = rule or oc.cached(), how.pop("late", True)
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(
            spec, rule, q, numbers, library, planner, late=late and spec.kernel != "sm90", **how
        )
        found = paged_calls.run(spec, rule, q, caches, library, planner, late=late, **how)
    assert not np.isnan(wanted.out.astype(np.float32)).any()
    assert paged_calls.same_bits(found, wanted)
    return found


@pytest.mark.parametrize("page_size", [None, 1, 17, 240])
@pytest.mark.parametrize("name", SPECS)
def test_pages_of_any_size(name: str, page_size: int | None, library: Any, planner: Any) -> None:
    _compare(name, library, planner, page_size=page_size)


@pytest.mark.parametrize("kind", fp8_caches.SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["naive", "sm80", "sm90-packed"])
def test_scales(name: str, dtype: str, kind: str, library: Any, planner: Any) -> None:
    for page_size in (None, 16):
        _compare(name, library, planner, kind=kind, dtype=dtype, page_size=page_size)


@pytest.mark.parametrize("name", ["naive", "sm80", "sm90-packed"])
def test_scales_that_repeat(name: str, library: Any, planner: Any) -> None:
    """One scale a sequence and head: an array of scales of tokens whose stride along them is 0."""
    spec = SPECS[name]
    kv, _ = fp8_caches.pair(LENGTHS, head_dim=spec.head_dim)
    scale = np.random.default_rng(3).uniform(0.01, 0.1, (len(LENGTHS), 1, 2)).astype(np.float32)
    kv.k_scale = kv.v_scale = np.broadcast_to(scale, (len(LENGTHS), 240, 2))
    meant = (
        fp8_caches.meant(pool, fp8_caches.along(kv.k_scale), DTYPES["bfloat16"]) for pool in (kv.k, kv.v)
    )
    numbers = oc.CachedKV(*(aligned(kv.k.shape, DTYPES["bfloat16"]) for _ in "kv"), kv.lengths)
    for array, values in zip((numbers.k, numbers.v), meant, strict=True):
        array[...] = values
    q = fp8_caches.queries(len(LENGTHS), 4, 2, spec.head_dim, DTYPES["bfloat16"])
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, oc.cached(), q, numbers, library, planner)
        found = paged_calls.run(spec, oc.cached(), q, kv, library, planner)
    assert paged_calls.same_bits(found, wanted)


@pytest.mark.parametrize("name", SPECS)
def test_windows_chunks_and_copies_at_once(name: str, library: Any, planner: Any) -> None:
    rule = oc.cached(window=50, sink=4)
    _compare(name, library, planner, kind="head", rule=rule, q_len=70, late=False)
    _compare(name, library, planner, kind="head", rule=rule, q_len=1, page_size=None, group=3)


@pytest.mark.parametrize(("name", "page_size"), list(zip(SPECS, cycle([None, 17]), strict=False)))
def test_rows_of_their_own(name: str, page_size: int | None, library: Any) -> None:
    """Sequences with numbers of rows of their own: none, one, and more than a tile has; rows of none are NaN."""
    counts, spec = [1, 0, 5, 70, 3, 64], SPECS[name]
    kv, numbers = fp8_caches.pair(
        [240, 17, 65, 200, 0, 64], kind="token", head_dim=spec.head_dim, dtype=DTYPES["bfloat16"]
    )
    starts = aligned(len(counts) + 1, np.int32)
    starts[...] = np.cumsum([0, *counts])
    q = aligned((sum(counts) + 3, 4, spec.head_dim), DTYPES["bfloat16"])
    q[...] = np.random.default_rng(5).standard_normal(q.shape)
    q[starts[-1] :] = np.nan
    caches, made = kv if page_size is None else fp8_caches.in_pages(kv, page_size), planned.build(ragged=True)
    rule, how = oc.cached(window=120, sink=4), {"rows": starts, "max_rows": max(counts)}
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, rule, q, numbers, library, made, **how)
        found = paged_calls.run(spec, rule, q, caches, library, made, **how)
    assert np.isfinite(wanted.out[0, :, : starts[-1]].astype(np.float32)).all()
    assert np.isnan(found.out[0, :, starts[-1] :].astype(np.float32)).all()
    assert paged_calls.same_bits(found, wanted)


@pytest.mark.parametrize("name", ["naive", "sm80", "sm80-shared", "sm90", "sm90-packed"])
def test_values_of_another_width(name: str, library: Any, planner: Any) -> None:
    SPECS["pair"] = replace(SPECS[name], head_dim=192, value_dim=128)
    try:
        _compare("pair", library, planner, value_dim=128)
    finally:
        del SPECS["pair"]


@pytest.mark.parametrize("name", ["sm90", "sm90-packed", "sm90-wide"])
def test_splits_score_changes_and_many_items(name: str, library: Any, planner: Any) -> None:
    """Few multiprocessors, so that a thread block goes from item to item: long, short and empty ones."""
    sinks = aligned(4, np.float32)
    sinks[...] = (-np.inf, 0.0, 3.0, 1e4)
    lengths = [800, 0, 65, 1, 130, 0, 700, 64]
    for more in ({}, {"softcap": 2.0, "sink_logits": sinks}):
        how: dict[str, Any] = {"lengths": lengths, "capacity": 800, "sm_count": 2, **more}
        found = _compare(name, library, planner, split=384, **how)
        assert found.parts > 1
        _compare(name, library, planner, page_size=None, **how)


@pytest.mark.parametrize("name", SPECS)
def test_keys_of_no_page_are_not_seen(name: str, library: Any, planner: Any) -> None:
    """Entries inside of lengths that name no page, as in a cache of 16-bit numbers in pages."""
    spec = SPECS[name]
    if spec.kernel == "sm90":
        spec = replace(spec, bc=64)
    kv, numbers = fp8_caches.pair(
        [240, 240, 130], kind="token", head_dim=spec.head_dim, dtype=DTYPES["bfloat16"]
    )
    q = fp8_caches.queries(3, 4, 2, spec.head_dim, DTYPES["bfloat16"])
    caches, plain = fp8_caches.in_pages(kv, 16), paged_calls.paged(numbers, 16)
    for in_pages in (caches, plain):
        for at, page in (((0, 0), -1), ((1, 1), 2**31 - 1), ((1, 14), -1), ((2, 8), len(in_pages.k_pages))):
            in_pages.page_table[at] = page
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, oc.cached(), q, plain, library, planner)
        found = paged_calls.run(spec, oc.cached(), q, caches, library, planner)
    assert np.isfinite(wanted.out.astype(np.float32)).all()
    assert paged_calls.same_bits(found, wanted)


@pytest.mark.parametrize("name", ["naive", "sm80", "sm90-packed"])
def test_every_byte_is_read_as_the_cpu_reads_it(name: str, library: Any, planner: Any) -> None:
    """Values of one key a sequence are its output: all 256 bytes, NaN among them, at scales that round and overflow."""
    spec = replace(SPECS[name], head_dim=64, value_dim=64)
    for dtype in DTYPES:
        for scale in (1.0, 0.0123, 1e-7, 777.7, 1e36):
            values = aligned((4, 1, 16, 64), np.uint8)
            values[:, 0, 0] = np.arange(256, dtype=np.uint8).reshape(4, 64)
            keys, lengths = aligned(values.shape, np.uint8), aligned(4, np.int32)
            keys[...], lengths[...] = 0x38, 1
            kv = oc.CachedKV(keys, values, lengths, k_scale=1.0, v_scale=scale)
            q = fp8_caches.queries(4, 2, 1, 64, DTYPES[dtype])
            with np.errstate(all="ignore"):
                found = paged_calls.run(replace(spec, dtype=dtype), oc.cached(), q, kv, library, planner)
                wanted = fp8_caches.meant(values[:, :, :1], scale, DTYPES[dtype]).astype(np.float32)
            np.testing.assert_array_equal(found.out[:, :1].astype(np.float32), wanted)
            np.testing.assert_array_equal(found.out[:, 1:].astype(np.float32), wanted)
