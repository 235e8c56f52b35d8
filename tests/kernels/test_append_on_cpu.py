"""The kernel of append, its own source run on the CPU, against the CPU engine; what it must leave out as well."""

from __future__ import annotations

from typing import Any

import cuda_on_cpu
import numpy as np
import paged_calls
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.jit.append_spec import AppendSpec
from omnicupy.jit.params import APPEND_PARAMS
from omnicupy.serving.caches import pools_of, sizes_of

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

SPEC = AppendSpec(arch="sm_80")
HEADS, CAPACITY, HEAD_DIM = 2, 60, 24


@pytest.fixture(scope="module")
def library() -> Any:
    return cuda_on_cpu.build(SPEC)


def _caches(
    lengths: list[int], page_size: int | None, layout: str = "vllm", value_dim: int = HEAD_DIM
) -> Any:
    widths = (HEAD_DIM, value_dim)
    arrays = [aligned((len(lengths), HEADS, CAPACITY, width), np.float16) for width in widths]
    for array in arrays:
        array.fill(7)
    held = aligned(len(lengths), np.int32)
    held[...] = CAPACITY
    kv = oc.CachedKV(*arrays, held)
    if page_size is not None:
        kv = paged_calls.paged(kv, page_size, layout=layout)
    kv.lengths[...] = lengths
    return kv


def _copy(kv: Any) -> Any:
    """The same caches in other memory, of the same strides."""
    k, v, table = pools_of(kv)
    k, v = (np.array(one) for one in (k, v))
    return oc.CachedKV(k, v, kv.lengths) if table is None else oc.PagedKV(k, v, table, kv.lengths)


def _new(*shape: int, value_dim: int = HEAD_DIM) -> list[NDArray[Any]]:
    found = [aligned((*shape, width), np.float16) for width in (HEAD_DIM, value_dim)]
    for i, array in enumerate(found):
        array[...] = np.random.default_rng(i).standard_normal(array.shape)
    return found


def _run(library: Any, kv: Any, k_new: Any, v_new: Any, slots: Any) -> None:
    k, v, table = pools_of(kv)
    params = np.zeros((), APPEND_PARAMS)
    places = {
        "k_new": k_new,
        "v_new": v_new,
        "k": k,
        "v": v,
        "lengths": kv.lengths,
        "page_table": table,
        "slots": slots,
    }
    for name, array in places.items():
        params[name] = 0 if array is None else array.ctypes.data
    for name in ("k_new", "v_new"):
        steps = [step // 2 for step in places[name].strides[:-1]]
        params[f"{name}_strides"] = [0, steps[1], steps[0]] if slots is not None else steps
    for name, pool in (("k", k), ("v", v)):
        steps = [step // 2 for step in pool.strides[:-1]]
        params[f"{name}_strides"] = steps if table is None else [steps[0], steps[2], steps[1]]
    batch, tokens = (1, len(k_new)) if slots is not None else (len(k_new), k_new.shape[2])
    sizes = {
        "batch": batch,
        "kv_heads": HEADS,
        "tokens": tokens,
        "head_dim": HEAD_DIM,
        "value_dim": v.shape[3],
        "capacity": sizes_of(kv)[1],
    }
    sizes |= {"pages": len(k), "page_size": k.shape[1] if table is not None else k.shape[2]}
    sizes |= {"page_next": 0 if table is None else table.strides[0] // 4}
    sizes |= {"wide_slots": slots is not None and slots.itemsize == 8}
    for name, value in sizes.items():
        params[name] = value
    threads = batch * tokens * HEADS * (max(HEAD_DIM, v.shape[3]) // 8)
    cuda_on_cpu.run(library, SPEC, params, (-(-threads // SPEC.threads), 1), (), late=False)


def _equal(a: Any, b: Any) -> None:
    for mine, other in zip(pools_of(a)[:2], pools_of(b)[:2], strict=True):
        assert mine.tobytes() == other.tobytes()


@pytest.mark.parametrize("page_size", [None, 1, 7, 16, 64])
@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_the_last_keys(tokens: int, page_size: int | None, library: Any) -> None:
    kv = _caches([60, 0, 17, 2, 16], page_size)
    wanted, new = _copy(kv), _new(5, HEADS, tokens)
    oc.append(wanted, *new)
    _run(library, kv, *new, None)
    _equal(kv, wanted)


@pytest.mark.parametrize("layout", paged_calls.LAYOUTS)
def test_layouts_of_engines(layout: str, library: Any) -> None:
    kv = _caches([60, 33], 16, layout)
    wanted, new = _copy(kv), [array.swapaxes(1, 2) for array in _new(2, 5, HEADS)]
    oc.append(wanted, *new)
    _run(library, kv, *new, None)
    _equal(kv, wanted)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("page_size", [None, 7])
def test_slots(page_size: int | None, dtype: Any, library: Any) -> None:
    kv = _caches([60, 60], page_size)
    wanted, new = _copy(kv), _new(6, HEADS)
    size = CAPACITY if page_size is None else page_size
    slots = np.array([size + 2, -1, 0, 5, -1, 2 * size - 1], dtype)
    oc.append(wanted, *new, slots)
    _run(library, kv, *new, slots)
    _equal(kv, wanted)


@pytest.mark.parametrize("value_dim", [8, 40])
@pytest.mark.parametrize("page_size", [None, 16])
def test_values_of_another_width(page_size: int | None, value_dim: int, library: Any) -> None:
    kv = _caches([60, 1, 33], page_size, value_dim=value_dim)
    wanted, new = _copy(kv), _new(3, HEADS, 2, value_dim=value_dim)
    oc.append(wanted, *new)
    _run(library, kv, *new, None)
    _equal(kv, wanted)


def test_what_lies_outside_is_not_written(library: Any) -> None:
    kv = _caches([CAPACITY + 1, -5, 30, 60], 15)
    kv.page_table[2], kv.page_table[3, 3] = -1, len(kv.k_pages)
    before, new = _copy(kv), _new(4, HEADS, 2)
    _run(library, kv, *new, None)
    _equal(kv, before)
    slots = np.array([-7, len(kv.k_pages) * 15, 1 << 40, -(1 << 40)])
    _run(library, kv, *_new(4, HEADS), slots)
    _equal(kv, before)
