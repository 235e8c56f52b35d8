"""The kernel for few query rows, asked for by `config` and chosen: what is launched, on a fake device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.errors import UnsupportedError
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec

BATCH = 3
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
CONFIG = FewRowsSpec.of(
    AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=64, warps=8)
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _e4m3(
    batch: int, q_heads: int, q_len: int, head_dim: int = 128, in_pages: bool = False
) -> tuple[Any, Any]:
    """q and a cache of two key heads."""
    q, lengths = ndarray((batch, q_heads, q_len, head_dim), BF16), ndarray((batch,), np.dtype(np.int32))
    scales = {"k_scale": 0.5, "v_scale": 0.25}
    if in_pages:
        pools = [ndarray((50, 17, 2, head_dim), E4M3) for _ in "kv"]
        return q, oc.PagedKV(*pools, ndarray((batch, 20), np.dtype(np.int32)), lengths, **scales)
    return q, oc.CachedKV(*(ndarray((batch, 2, 9000, head_dim), E4M3) for _ in "kv"), lengths, **scales)


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("q_heads", "q_len"), [(2, 1), (8, 2), (6, 3), (2, 16), (8, 4), (32, 1)])
def test_calls_of_few_rows_choose_it(
    device: fake_device.Device, q_heads: int, q_len: int, head_dim: int, in_pages: bool
) -> None:
    """Two thread blocks a multiprocessor where sequences are many, else one of more warps; for 8 rows, or for 16."""
    for batch, shape in ((1, (12, 1)), (65, (12, 1)), (66, (6, 2))):
        q, kv = _e4m3(batch, q_heads, q_len, head_dim, in_pages)
        oc.attention(q, kv, mask=oc.cached(), softcap=3.0)
        spec = device.launches[-1]["spec"]
        assert isinstance(spec, FewRowsSpec)
        most_rows = 8 if q_heads // 2 * q_len <= 8 else 16
        assert (spec.compute_warps, spec.blocks, spec.most_rows) == (*shape, most_rows)
        assert (spec.e4m3, spec.page, spec.softcap) == (True, int(in_pages), True)
        assert device.launches[-1]["block"] == (32 * shape[0], 1, 1)


@pytest.mark.parametrize(
    ("q_heads", "q_len", "head_dim", "split"),
    [
        (2, 17, 128, None),
        (8, 5, 64, None),
        (34, 1, 128, None),
        (8, 1, 96, None),
        (8, 1, 112, None),
        (8, 1, 128, 512),
    ],
)
def test_others_do_not_choose_it(
    device: fake_device.Device, q_heads: int, q_len: int, head_dim: int, split: int | None
) -> None:
    """With split the kernel may not depend on how many rows or sequences there are."""
    oc.attention(*_e4m3(3, q_heads, q_len, head_dim), mask=oc.cached(), split=split)
    assert type(device.launches[-1]["spec"]) is Fp8Spec


def test_parts_of_a_row_are_as_many_as_lanes(device: fake_device.Device) -> None:
    q, kv = _e4m3(1, 8, 1)
    oc.attention(q, kv, mask=oc.cached())
    params = next(one["params"] for one in device.launches if "most_cuts" in one["params"].dtype.names)
    assert (int(params["most_cuts"]), float(params["item"])) == (32, 12.0)


def _16_bits(batch: int, q_heads: int, q_len: int, head_dim: int, in_pages: bool) -> tuple[Any, Any]:
    """q and a cache of two key heads, of 9,000 keys a sequence, or a few more where they are in pages."""
    q, lengths = ndarray((batch, q_heads, q_len, head_dim), BF16), ndarray((batch,), np.dtype(np.int32))
    if in_pages:
        pools = [ndarray((50, 17, 2, head_dim), BF16) for _ in "kv"]
        return q, oc.PagedKV(*pools, ndarray((batch, 530), np.dtype(np.int32)), lengths)
    return q, oc.CachedKV(*(ndarray((batch, 2, 9000, head_dim), BF16) for _ in "kv"), lengths)


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize(("q_heads", "q_len"), [(2, 1), (2, 16), (8, 4), (32, 1)])
def test_large_caches_of_16_bits_choose_it(
    device: fake_device.Device, q_heads: int, q_len: int, in_pages: bool
) -> None:
    """By the keys that they may hold for each multiprocessor, whatever their layout."""
    for head_dim, batch, shape in (
        (128, 11, (12, 1)),
        (128, 10, None),
        (64, 4, (8, 2)),
        (64, 66, (8, 2)),
        (64, 3, None),
    ):
        q, kv = _16_bits(batch, q_heads, q_len, head_dim, in_pages)
        oc.attention(q, kv, mask=oc.cached(), softcap=3.0)
        spec = device.launches[-1]["spec"]
        assert isinstance(spec, FewRowsSpec) == (shape is not None)
        if isinstance(spec, FewRowsSpec):
            assert (spec.compute_warps, spec.blocks) == shape
            assert (spec.e4m3, spec.page, spec.softcap, spec.stages) == (False, int(in_pages), True, 2)
            assert oc.plan(q, kv, oc.cached(), softcap=3.0).kernel == spec


@pytest.mark.parametrize("in_pages", [False, True])
def test_rows_of_their_own_on_large_caches_choose_it(device: fake_device.Device, in_pages: bool) -> None:
    _, kv = _16_bits(16, 8, 1, 128, in_pages)
    q, rows = ndarray((20, 8, 128), BF16), ndarray((17,), np.dtype(np.int32))
    for most in (4, 5):
        oc.attention(q, kv, mask=oc.cached(), rows=rows, max_rows=most)
        spec = device.launches[-1]["spec"]
        assert isinstance(spec, FewRowsSpec) == (most == 4)
        assert spec.defines()["OMNI_RAGGED"] == 1


@pytest.mark.parametrize(
    ("q_heads", "q_len", "head_dim", "split"),
    [(2, 17, 128, None), (34, 1, 128, None), (8, 1, 96, None), (8, 1, 128, 512)],
)
@pytest.mark.parametrize("in_pages", [False, True])
def test_other_calls_on_16_bits_do_not_choose_it(
    device: fake_device.Device, in_pages: bool, q_heads: int, q_len: int, head_dim: int, split: int | None
) -> None:
    oc.attention(*_16_bits(66, q_heads, q_len, head_dim, in_pages), mask=oc.cached(), split=split)
    assert not isinstance(device.launches[-1]["spec"], FewRowsSpec)


@pytest.mark.parametrize(
    ("batch", "q_heads", "mask", "split", "chosen"),
    [
        (66, 8, oc.causal(1, 9000), None, True),
        (66, 8, oc.sliding_window(1, 9000, left=8), None, False),  # few keys
        (66, 8, oc.causal(1, 9000), 512, False),
        (66, 34, oc.causal(1, 9000), None, False),  # 17 rows
        (15, 8, oc.causal(1, 9000), None, False),
        (1, 8, oc.causal(1, 200_000), None, False),  # two key heads, in many parts
        (2, 8, oc.causal(1, 100_000), None, True),
    ],
)
def test_masks_that_the_host_knows(
    device: fake_device.Device, batch: int, q_heads: int, mask: oc.Mask, split: int | None, chosen: bool
) -> None:
    keys = mask.shape[1]
    q, k, v = (ndarray((batch, heads, n, 128), BF16) for heads, n in ((q_heads, 1), (2, keys), (2, keys)))
    oc.attention(q, k, v, mask, split=split)
    launched = device.launches[-1]
    assert isinstance(launched["spec"], FewRowsSpec) == chosen
    if chosen:
        assert launched["spec"].defines()["OMNI_CACHED"] == 0
        assert launched["params"].dtype == PARAMS["sm90"]


def test_a_variant_for_masks_is_asked_for(device: fake_device.Device) -> None:
    q, k, v = (ndarray((1, heads, n, 128), BF16) for heads, n in ((8, 1), (2, 900), (2, 900)))
    with pytest.raises(UnsupportedError, match=r"config: .* reads caches; pass config=config.for_masks\(\)"):
        oc.attention(q, k, v, config=CONFIG)
    oc.attention(q, k, v, config=CONFIG.for_masks())
    assert device.launches[-1]["spec"] == CONFIG.for_masks()
    q = ndarray((1, 8, 5, 128), BF16)
    with pytest.raises(UnsupportedError, match="config: the kernel for few rows serves at most 16 rows"):
        oc.attention(q, k, v, config=CONFIG.for_masks())


@pytest.mark.parametrize(("e4m3", "in_pages"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_variant_for_a_cache_is_launched(device: fake_device.Device, e4m3: bool, in_pages: bool) -> None:
    q, lengths = ndarray((BATCH, 8, 2, 128), BF16), ndarray((BATCH,), np.dtype(np.int32))
    scales = {"k_scale": 0.5, "v_scale": 0.25} if e4m3 else {}
    shape = (50, 17, 2, 128) if in_pages else (BATCH, 2, 9000, 128)
    pools = [ndarray(shape, E4M3 if e4m3 else BF16) for _ in "kv"]
    table = [ndarray((BATCH, 20), np.dtype(np.int32))] if in_pages else []
    kv = (oc.PagedKV if in_pages else oc.CachedKV)(*pools, *table, lengths, **scales)  # type: ignore[operator]
    step = oc.plan(q, kv, oc.cached(), config=CONFIG)
    oc.attention(q, kv, mask=step)
    launched = device.launches[-1]
    assert step.kernel == launched["spec"] == CONFIG.for_caches(e4m3=e4m3, in_pages=in_pages, ragged=False)
    assert launched["spec"].entry == "attention_fwd_few_rows"


def test_more_rows_are_refused(device: fake_device.Device) -> None:
    q, lengths = ndarray((BATCH, 8, 5, 128), BF16), ndarray((BATCH,), np.dtype(np.int32))
    kv = oc.CachedKV(*(ndarray((BATCH, 2, 90, 128), BF16) for _ in "kv"), lengths)
    with pytest.raises(UnsupportedError, match="config: the kernel for few rows serves at most 16 rows"):
        oc.attention(q, kv, mask=oc.cached(), config=CONFIG)
    assert device.launches == []


@pytest.mark.parametrize(
    "fields", [{"e4m3": True}, {"e4m3": False, "page": 1}, {"e4m3": False, "ragged": True}]
)
def test_a_variant_for_masks_has_keys_of_16_bits_in_one_piece(fields: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"config: cached=False is for keys of 16 bits in one piece, got .*for_masks"
    ):
        replace(CONFIG, cached=False, **fields)
