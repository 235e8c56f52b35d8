"""The kernel of append for caches of e4m3, its own source run on the CPU, against the CPU engine."""

from __future__ import annotations

from typing import Any

import cuda_on_cpu
import fp8_caches
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.gpu import pages
from omnicupy.jit.append_spec import Fp8AppendSpec
from omnicupy.jit.params import PARAMS
from omnicupy.serving.caches import pools_of, sizes_of, with_arrays

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HEADS, CAPACITY = 2, 60


@pytest.fixture(scope="module")
def library() -> Any:
    return {dtype: cuda_on_cpu.build(Fp8AppendSpec(arch="sm_80", dtype=dtype)) for dtype in DTYPES}


def _copy(kv: Any) -> Any:
    k, v, table = pools_of(kv)
    k_scale, v_scale = (np.array(s) if isinstance(s, np.ndarray) else s for s in (kv.k_scale, kv.v_scale))
    return with_arrays(kv, (np.array(k), np.array(v)), table, kv.lengths, (k_scale, v_scale))


def _run(library: Any, dtype: str, kv: Any, k_new: Any, v_new: Any, slots: Any) -> None:
    k, v, table = pools_of(kv)
    params = np.zeros((), PARAMS["append_fp8"])
    held = {
        "k_new": k_new,
        "v_new": v_new,
        "k": k,
        "v": v,
        "lengths": kv.lengths,
        "page_table": table,
        "slots": slots,
    }
    held |= {n: s for n in ("k_scale", "v_scale") if isinstance(s := getattr(kv, n), np.ndarray)}
    for name, array in held.items():
        params[name] = 0 if array is None else array.ctypes.data
    for name in ("k_new", "v_new"):
        steps = [step // 2 for step in held[name].strides[:-1]]
        params[f"{name}_strides"] = [0, steps[1], steps[0]] if slots is not None else steps
    for name, pool in (("k", k), ("v", v)):
        steps = list(pool.strides[:-1])
        params[f"{name}_strides"] = steps if table is None else [steps[0], steps[2], steps[1]]
    batch, tokens = (1, len(k_new)) if slots is not None else (len(k_new), k_new.shape[2])
    sizes = {"batch": batch, "kv_heads": HEADS, "tokens": tokens, "capacity": sizes_of(kv)[1]}
    sizes |= {"head_dim": k.shape[3], "value_dim": v.shape[3], "pages": len(k)}
    sizes |= {"page_size": k.shape[1] if table is not None else k.shape[2]}
    sizes |= {"page_next": 0 if table is None else table.strides[0] // 4}
    sizes |= {"wide_slots": slots is not None and slots.itemsize == 8}
    for name, value in {**sizes, **pages.scale_fields(kv)}.items():
        params[name] = value
    spec = Fp8AppendSpec(arch="sm_80", dtype=dtype)
    threads = batch * tokens * HEADS * (max(k.shape[3], v.shape[3]) // 8)
    cuda_on_cpu.run(library[dtype], spec, params, (-(-threads // spec.threads), 1), (), late=False)


def _new(rng: np.random.Generator, dtype: str, *shape: int) -> NDArray[Any]:
    """Of many magnitudes, with rows of zeros, NaN and infinity among them."""
    found = aligned(shape, DTYPES[dtype])
    with np.errstate(all="ignore"):
        found[...] = rng.standard_normal(shape) * 10.0 ** rng.uniform(-5, 4, shape)
    found.reshape(-1, shape[-1])[1] = 0
    found.reshape(-1)[:4] = np.nan, np.inf, -np.inf, -0.0
    return found


def _equal(a: Any, b: Any) -> None:
    for mine, other in zip(pools_of(a)[:2], pools_of(b)[:2], strict=True):
        assert (
            np.where(mine & 0x7F == 0x7F, 0x7F, mine) == np.where(other & 0x7F == 0x7F, 0x7F, other)
        ).all()
    for mine, other in ((a.k_scale, b.k_scale), (a.v_scale, b.v_scale)):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", fp8_caches.SCALES)
@pytest.mark.parametrize("page_size", [None, 7, 16])
def test_the_last_keys(page_size: int | None, kind: str, dtype: str, library: Any) -> None:
    kv: Any = fp8_caches.pair([60, 0, 17, 2], kind=kind, capacity=CAPACITY, head_dim=64, value_dim=48)[0]
    kv = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    rng, wanted = np.random.default_rng(0), _copy(kv)
    new = [_new(rng, dtype, 4, HEADS, 3, width) for width in (64, 48)]
    oc.append(wanted, *new)
    _run(library, dtype, kv, *new, None)
    _equal(kv, wanted)


@pytest.mark.parametrize("kind", ["head", "token"])
@pytest.mark.parametrize("page_size", [None, 16])
def test_slots(page_size: int | None, kind: str, library: Any) -> None:
    kv: Any = fp8_caches.pair([60, 60], kind=kind, capacity=CAPACITY)[0]
    kv = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    rng, wanted = np.random.default_rng(0), _copy(kv)
    new = [_new(rng, "bfloat16", 5, HEADS, 64) for _ in "kv"]
    slots = np.array([17, -1, 0, 5, 31], np.int64)
    oc.append(wanted, *new, slots)
    _run(library, "bfloat16", kv, *new, slots)
    _equal(kv, wanted)


def test_every_number_of_16_bits(library: Any) -> None:
    """All that bfloat16 and float16 hold, at a scale of 1."""
    for dtype in DTYPES:
        new = aligned((1, HEADS, 512, 64), DTYPES[dtype])
        new.view(np.uint16).reshape(-1)[...] = np.arange(65536)
        lengths = aligned(1, np.int32)
        lengths[...] = 512
        kv = oc.CachedKV(*(aligned(new.shape, np.uint8) for _ in "kv"), lengths, k_scale=1.0, v_scale=1.0)
        wanted = _copy(kv)
        oc.append(wanted, new, new)
        _run(library, dtype, kv, new, new, None)
        _equal(kv, wanted)
        with np.errstate(all="ignore"):
            some = new.astype(np.float64).reshape(-1)[::97]
        nearest = np.array([fp8_caches.nearest(x) for x in some])
        found = kv.k.reshape(-1)[::97]
        number = nearest & 0x7F != 0x7F
        assert (found[number] == nearest[number]).all()
        assert (found[~number] & 0x7F == 0x7F).all()
