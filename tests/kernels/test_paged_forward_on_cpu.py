"""Forward kernels on keys and values in pages, their own sources run on the CPU: the bits of the same keys one behind
the other, and keys without a page against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cached_cases
import cuda_on_cpu
import ml_dtypes
import numpy as np
import paged_calls
import planned
import pytest
from cuda_on_cpu import aligned
from forward_on_cpu import packed_spec
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
Array = NDArray[Any]


def _spec(head_dim: int = 64, **fields: Any) -> AttnSpec:
    return AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=head_dim, **fields)


SPECS = {
    "naive": AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=48, br=32, bc=64),
    "sm80": _spec(48, br=64, bc=64),
    "sm80-ring": _spec(48, br=32, bc=32, warps=2, stages=2),
    "sm80-shared": _spec(48, br=64, bc=32, share_kv=True),
    "sm80-tiled": _spec(272, br=64, bc=32, stages=2),
    "sm90": AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=64, stages=2, warps=8
    ),
    "sm90-turns": replace(packed_spec(64, 128, 3), warps=12),
    "sm90-packed": packed_spec(64, 64, 2),
    "sm90-pair": packed_spec(64, 64, 2, rows=128),
    "sm90-shared": AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=96, stages=2, warps=12
    ),
    "sm90-three": AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=192, bc=64, stages=2, warps=16
    ),
}
OF_SM90 = [name for name in SPECS if name.startswith("sm90")]
OF_ANY = [name for name in SPECS if not name.startswith("sm90")]
FOR_WIDTHS = ("naive", "sm80", "sm80-shared", "sm90", "sm90-packed", "sm90-pair")


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def planner() -> Any:
    return planned.build()


def _inputs(
    lengths: list[int],
    q_len: int,
    group: int,
    head_dim: int,
    capacity: int = 240,
    value_dim: int | None = None,
) -> tuple[Array, oc.CachedKV]:
    """q, and caches that hold NaN past their lengths."""
    rng, batch, kv_heads = np.random.default_rng(5), len(lengths), 2
    q = aligned((batch, q_len, group * kv_heads, head_dim), BF16).transpose(0, 2, 1, 3)
    q[...] = rng.standard_normal(q.shape)
    widths = (head_dim, value_dim or head_dim)
    k, v = (aligned((batch, kv_heads, capacity, width), BF16) for width in widths)
    held = aligned(batch, np.int32)
    held[...] = lengths
    for array in (k, v):
        array[...] = rng.standard_normal(array.shape)
        for b, keys in enumerate(lengths):
            array[b, :, max(keys, 0) :] = np.nan
    return q, oc.CachedKV(k, v, held)


CASES: dict[str, tuple[int, list[int], Callable[[], oc.CachedRule]]] = {
    "one-row": (1, [0, 1, 15, 16, 17, 64, 65, 240], lambda: oc.cached()),
    "window-and-sink": (1, [240, 130, 3], lambda: oc.cached(window=50, sink=4)),
    "tree": (9, [200, 9, 5], lambda: oc.cached(window=90, tail=cached_cases.TAILS["random"](9))),
    "chunk": (70, [200, 69, 70, 0, 133], lambda: oc.cached()),
}
SIZES = {"one-row": (1, 64), "window-and-sink": (17,), "tree": (5,), "chunk": (16, 240)}
BOXES = {"one-row": (1, 16, 64, 240), "window-and-sink": (6, 48), "tree": (4, 80), "chunk": (8, 16)}


def _pairs(sizes: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(case, size) for case in sizes for size in sizes[case]]


def _compare(name: str, case: str, page_size: int, library: Any, planner: Any, **how: Any) -> None:
    spec = SPECS[name]
    q_len, lengths, rule = CASES[case]
    head_dim = {48: 40, 64: 64, 272: 264}[spec.head_dim]
    q, kv = _inputs(lengths, q_len, how.pop("group", 2), head_dim)
    in_pages = paged_calls.paged(kv, page_size, **how)
    late = spec.kernel != "sm90"
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, rule(), q, kv, library, planner, late=late)
        found = paged_calls.run(spec, rule(), q, in_pages, library, planner, late=late)
    assert not np.isnan(wanted.out.astype(np.float32)).any()
    assert paged_calls.same_bits(found, wanted)


@pytest.mark.parametrize(("case", "page_size"), _pairs(SIZES))
@pytest.mark.parametrize("name", OF_ANY)
def test_pages_of_any_size(name: str, case: str, page_size: int, library: Any, planner: Any) -> None:
    _compare(name, case, page_size, library, planner)


@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
@pytest.mark.parametrize("name", ["sm80", "sm90-packed"])
def test_layouts_of_engines(name: str, layout: str, library: Any, planner: Any) -> None:
    _compare(name, "chunk", 16, library, planner, layout=layout)


@pytest.mark.parametrize(
    ("name", "case", "page_size"),
    [(name, *pair) for name in OF_SM90 for pair in _pairs(BOXES)],
)
def test_pages_by_boxes_and_key_by_key(
    name: str, case: str, page_size: int, library: Any, planner: Any
) -> None:
    _compare(name, case, page_size, library, planner)


@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 6])
def test_layouts_key_by_key(page_size: int, layout: str, library: Any, planner: Any) -> None:
    _compare("sm90-three", "chunk", page_size, library, planner, layout=layout)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("name", ["sm80", "sm90-packed"])
def test_groups(name: str, group: int, library: Any, planner: Any) -> None:
    _compare(name, "window-and-sink", 16, library, planner, group=group)


@pytest.mark.parametrize("name", ["sm80", "sm90", "sm90-packed", "sm90-pair"])
def test_pages_that_sequences_share(name: str, library: Any, planner: Any) -> None:
    """A prefix of two pages is the same memory for three sequences."""
    spec, rng = SPECS[name], np.random.default_rng(9)
    q, kv = _inputs([100, 70, 33], 1, 4, 40 if name == "sm80" else 64)
    for array in (kv.k, kv.v):
        array[1:, :, :32] = array[0, :, :32]
    in_pages = paged_calls.paged(kv, 16, shared=2, seed=int(rng.integers(99)))
    assert (in_pages.page_table[:, :2] == in_pages.page_table[0, :2]).all()
    wanted = paged_calls.run(spec, oc.cached(), q, kv, library, planner)
    assert paged_calls.same_bits(paged_calls.run(spec, oc.cached(), q, in_pages, library, planner), wanted)


@pytest.mark.parametrize(
    ("name", "page_size"),
    [
        *((name, 16) for name in SPECS),
        ("sm80", 64),
        ("sm90", 64),
        ("sm90", 2),
        ("sm90-three", 1),
        ("sm90-three", 2),
    ],
)
def test_keys_of_no_page_are_not_seen(name: str, page_size: int, library: Any, planner: Any) -> None:
    """Entries inside of lengths that name no page: nothing is read for them, and the rest counts alone. In FULL tiles
    too, the first and later ones, and in all of a sequence.
    """
    spec, lengths, capacity = SPECS[name], [240, 240, 130, 64], 240
    head_dim = {48: 40, 64: 64, 272: 264}[spec.head_dim]
    q, kv = _inputs(lengths, 2, 2, head_dim, capacity)
    in_pages = paged_calls.paged(kv, page_size)
    holes = {0: [0], 1: [1, 2], 2: [0, 130 // page_size], 3: range(64 // page_size)}
    visible = [cached_cases.dense(oc.cached(), n, 2, capacity) for n in lengths]
    for b, entries in holes.items():
        for i, entry in enumerate(entries):
            in_pages.page_table[b, entry] = (-1, len(in_pages.k_pages), 2**31 - 1)[i % 3]
            visible[b][:, page_size * entry : page_size * (entry + 1)] = False
    found = paged_calls.run(spec, oc.cached(), q, in_pages, library, planner, late=spec.kernel != "sm90")
    out, lse = attention64(
        q, np.nan_to_num(kv.k), np.nan_to_num(kv.v), [oc.from_dense(one) for one in visible]
    )
    np.testing.assert_allclose(found.out.astype(np.float64), out, atol=0.02, rtol=0.02)
    np.testing.assert_allclose(found.lse, lse, atol=2e-3, rtol=2e-3)
    assert not found.out[3].any()
    assert np.isneginf(found.lse[3]).all()


@pytest.mark.parametrize("name", ["sm90", "sm90-packed", "sm90-pair"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_rows_that_are_split(page_size: int, name: str, library: Any, planner: Any) -> None:
    q, kv = _inputs([2000, 0, 65], 1, 4, 64, capacity=2048)
    wanted = paged_calls.run(SPECS[name], oc.cached(), q, kv, library, planner, sm_count=64)
    found = paged_calls.run(
        SPECS[name], oc.cached(), q, paged_calls.paged(kv, page_size), library, planner, sm_count=64
    )
    assert wanted.parts == found.parts > 1
    assert paged_calls.same_bits(found, wanted)


SINKS = (-np.inf, 0.0, 3.0, 1e4)


@pytest.mark.parametrize("name", ["naive", "sm80", "sm90", "sm90-packed", "sm90-pair"])
def test_score_changes_and_splits(name: str, library: Any, planner: Any) -> None:
    spec, sinks = replace(SPECS[name], softcap=True), aligned(4, np.float32)
    sinks[...] = SINKS
    q, kv = _inputs([800, 0, 65], 2, 2, 40 if spec.head_dim == 48 else 64, capacity=800)
    in_pages = paged_calls.paged(kv, 16)
    how: dict[str, Any] = {"softcap": 2.0, "split": 384, "late": spec.kernel != "sm90"}
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, oc.cached(), q, kv, library, planner, sink_logits=sinks, **how)
        found = paged_calls.run(spec, oc.cached(), q, in_pages, library, planner, sink_logits=sinks, **how)
        other = paged_calls.run(spec, oc.cached(), q, in_pages, library, planner, **how)
    assert (found.parts > 1) == (spec.kernel == "sm90")
    assert paged_calls.same_bits(found, wanted)
    assert (other.out[:, 1:] != found.out[:, 1:]).any()
    clean = (np.nan_to_num(one) for one in (kv.k, kv.v))
    masks = [oc.from_dense(cached_cases.dense(oc.cached(), int(n), 2, 800)) for n in kv.lengths]
    out, lse = attention64(q, *clean, masks, sink_logits=sinks, softcap=2.0)
    np.testing.assert_allclose(found.out.astype(np.float64), out, atol=0.02, rtol=0.02)
    np.testing.assert_allclose(found.lse, lse, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("layout", paged_calls.UNEQUAL)
@pytest.mark.parametrize("name", FOR_WIDTHS)
def test_values_of_another_width(name: str, layout: str, library: Any, planner: Any) -> None:
    spec = replace(SPECS[name], head_dim=192, value_dim=128)
    q, kv = _inputs([200, 0, 65], 3, 2, 192, value_dim=128)
    in_pages = paged_calls.paged(kv, 48, layout=layout)
    late = spec.kernel != "sm90"
    with np.errstate(all="ignore"):
        wanted = paged_calls.run(spec, oc.cached(window=90), q, kv, library, planner, late=late)
        found = paged_calls.run(spec, oc.cached(window=90), q, in_pages, library, planner, late=late)
    assert found.out.shape == (3, 4, 3, 128)
    assert not np.isnan(wanted.out.astype(np.float32)).any()
    assert paged_calls.same_bits(found, wanted)
