"""The kernel for few query rows, asked for by `config`: what is launched, on a fake device."""

from __future__ import annotations

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.errors import UnsupportedError
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec

BATCH = 3
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
CONFIG = FewRowsSpec.of(
    AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=64, warps=8)
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("e4m3", [False, True])
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
