"""Caches of e4m3 on a device: the bits of caches that hold the numbers they mean, append, and graphs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import fp8_caches
import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.serving.caches import pools_of, with_arrays

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

LENGTHS = [0, 1, 15, 64, 65, 129, 1000]
NAIVE = AttnSpec(arch="sm_90", kernel="naive", dtype="float16", head_dim=64, br=64, bc=64)
SM80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="float16", head_dim=64, br=64, bc=64)


def _on_device(kv: Any) -> Any:
    def moved(array: Any) -> Any:
        return cp.asarray(array) if isinstance(array, np.ndarray) else array

    k, v, table = pools_of(kv)
    scales = moved(kv.k_scale), moved(kv.v_scale)
    return with_arrays(kv, (moved(k), moved(v)), moved(table), moved(kv.lengths), scales)


def _queries(batch: int, q_len: int, head_dim: int, dtype: Any) -> Any:
    values = np.random.default_rng(q_len).standard_normal((batch, 8, q_len, head_dim))
    return cp.asarray(values.astype(dtype))


def _plain(spec: AttnSpec) -> AttnSpec:
    if isinstance(spec, FewRowsSpec):  # which 16 bits get where it is asked for
        return spec
    return AttnSpec(**{field.name: getattr(spec, field.name) for field in fields(AttnSpec)})


def _same(q: Any, kv: Any, numbers: Any, rule: oc.CachedRule, config: AttnSpec | None = None) -> None:
    """The kernel that reads e4m3 on both: equal to the bit."""
    spec = oc.plan(q, kv, rule, config=config).kernel
    found = oc.attention(q, kv, mask=rule, return_lse=True, config=config)
    wanted = oc.attention(q, numbers, mask=rule, return_lse=True, config=_plain(spec))
    for mine, other, kind in zip(found, wanted, (np.uint16, np.uint32), strict=True):
        assert (mine.view(kind) == other.view(kind)).all()
    assert np.isfinite(cp.asnumpy(wanted[0]).astype(np.float32)).all()


@pytest.mark.parametrize("page_size", [None, 1, 8, 16, 17, 64])
@pytest.mark.parametrize("kind", fp8_caches.SCALES)
def test_bits_of_the_numbers(kind: str, page_size: int | None) -> None:
    for head_dim, q_len, dtype in ((128, 1, ml_dtypes.bfloat16), (64, 3, np.float16), (256, 70, np.float16)):
        kv, numbers = fp8_caches.pair(LENGTHS, kind=kind, capacity=1024, head_dim=head_dim, dtype=dtype)
        caches = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
        q = _queries(len(LENGTHS), q_len, head_dim, dtype)
        _same(q, _on_device(caches), _on_device(numbers), oc.cached(window=700, sink=3))


@pytest.mark.parametrize("config", [NAIVE, SM80], ids=["naive", "sm80"])
@pytest.mark.parametrize("page_size", [None, 8])
def test_other_kernels(page_size: int | None, config: AttnSpec) -> None:
    kv, numbers = fp8_caches.pair(LENGTHS, kind="token", capacity=1024, head_dim=64, dtype=np.float16)
    caches = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    q = _queries(len(LENGTHS), 2, 64, np.float16)
    _same(q, _on_device(caches), _on_device(numbers), oc.cached(), config)


def test_a_key_is_found_among_many() -> None:
    """Scores of magnitude 60 and parts of split rows."""
    kv, numbers = fp8_caches.pair([20_000], kind="token", capacity=20_000, head_dim=128, dtype=np.float16)
    key = numbers.k[:, :, 777:778].astype(np.float32)
    q = np.repeat(60 * 128**0.5 * key / np.square(key).sum(-1, keepdims=True), 4, axis=1).astype(np.float16)
    _same(cp.asarray(q), _on_device(kv), _on_device(numbers), oc.cached())


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("kind", fp8_caches.SCALES)
def test_append_and_a_graph(kind: str, page_size: int | None) -> None:
    """What the CPU engine writes; and one graph of append and attention for other lengths."""
    kv: Any = fp8_caches.pair([60, 0, 17], kind=kind, capacity=64, head_dim=128)[0]
    host = kv if page_size is None else fp8_caches.in_pages(kv, page_size)
    if page_size is not None:
        host.page_table[...] = np.arange(12).reshape(3, 4)
    device = _on_device(host)
    new = [np.random.default_rng(i).standard_normal((3, 2, 1, 128)).astype(np.float16) for i in range(2)]
    q, of_device = _queries(3, 1, 128, np.float16), [cp.asarray(one) for one in new]
    out = cp.empty(q.shape, np.float16)

    def step() -> None:
        oc.append(device, *of_device)
        oc.attention(q, device, mask=oc.cached(), out=out)

    step()
    cp.cuda.Device().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        step()
        stream.begin_capture()
        try:
            step()
        finally:
            graph = stream.end_capture()
        for lengths in ([60, 0, 17], [1, 64, 2]):
            device.lengths[...], host.lengths[...] = cp.asarray(np.array(lengths, np.int32)), lengths
            graph.launch(stream)
            oc.append(host, *new)
            stream.synchronize()
            for mine, other in zip(pools_of(device)[:2], pools_of(host)[:2], strict=True):
                assert (cp.asnumpy(mine) == other).all()
            if kind == "token":
                np.testing.assert_array_equal(cp.asnumpy(device.k_scale), host.k_scale)
            replayed = out.copy()
            step()
            stream.synchronize()
            assert (replayed.view(np.uint16) == out.view(np.uint16)).all()
