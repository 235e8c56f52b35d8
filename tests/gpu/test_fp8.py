"""gpu/cached.py and gpu/append.py on caches of e4m3: kernels, parameters and what is refused, on a fake device."""

from __future__ import annotations

from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.jit.append_spec import Fp8AppendSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.spec import AttnSpec

BATCH, PAGES, MOST = 3, 50, 20
INT32, FLOAT, E4M3 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(ml_dtypes.float8_e4m3fn)
SM90 = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=128, bc=64, stages=2, warps=12
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(
    page_size: int | None = 16, q_len: int = 1, head_dim: int = 128, q_heads: int = 8, **changes: Any
) -> tuple[ndarray, Any]:
    q, lengths = ndarray((BATCH, q_heads, q_len, head_dim), BF16), ndarray((BATCH,), INT32)
    scales = {name: changes.pop(name, 0.5) for name in ("k_scale", "v_scale")}
    if page_size is None:
        return q, oc.CachedKV(*(ndarray((BATCH, 2, 1000, head_dim), E4M3) for _ in "kv"), lengths, **scales)
    pools = (ndarray((PAGES, page_size, 2, head_dim), E4M3) for _ in "kv")
    return q, oc.PagedKV(*pools, ndarray((BATCH, MOST), INT32), lengths, **scales)


@pytest.mark.parametrize("page_size", [None, 1, 8, 16, 100])
@pytest.mark.parametrize(("q_len", "q_heads", "packed"), [(5, 8, True), (17, 2, False), (3000, 8, False)])
def test_which_kernel_reads_e4m3(
    device: fake_device.Device, page_size: int | None, q_len: int, q_heads: int, packed: bool
) -> None:
    """Hopper's, whatever the pages, with 64 rows where there are more than 16."""
    q, kv = _inputs(page_size, q_len, q_heads=q_heads)
    step = oc.plan(q, kv, oc.cached())
    oc.attention(q, kv, mask=step)
    launched = device.launches[-1]
    spec = launched["spec"]
    assert type(spec) is Fp8Spec
    assert step.kernel == spec
    assert (spec.kernel, spec.br, spec.warps, spec.pack, spec.page) == (
        "sm90",
        64,
        8,
        packed,
        int(page_size is not None),
    )
    assert (spec.apart_warps, spec.stages) == (8, 2)
    assert launched["block"] == (512, 1, 1)


def test_other_kernels(device: fake_device.Device) -> None:
    """Wide heads and queries that no tensor map holds; a config of too many warps is refused."""
    oc.attention(*_inputs(head_dim=272), mask=oc.cached())
    assert device.launches[-1]["spec"].params == "sm80_fp8"
    q, kv = _inputs()
    q = ndarray(q.shape, BF16, strides=(0, *q.strides[1:]))
    oc.attention(q, kv, mask=oc.cached())
    assert device.launches[-1]["spec"].params == "sm80_fp8"
    with pytest.raises(
        oc.UnsupportedError, match="kernel 'sm90' reads e4m3 with warps=8 alone, got warps=12"
    ):
        oc.attention(*_inputs(head_dim=64), mask=oc.cached(), config=SM90)


def test_scales_of_all_kinds_are_given(device: fake_device.Device) -> None:
    both = ndarray((PAGES, 16, 2, 3), FLOAT)
    tokens = ndarray((PAGES, 16, 2), FLOAT, strides=both.strides[:3])
    heads, one = ndarray((2,), FLOAT), ndarray((), FLOAT)
    for k_scale, v_scale, strides in (
        (tokens, heads, ([96, 3, 6], [0, 1, 0])),
        (one, None, ([0, 0, 0], [0, 0, 0])),
        (0.25, 3, ([0, 0, 0], [0, 0, 0])),
    ):
        q, kv = _inputs(k_scale=k_scale, v_scale=v_scale)
        oc.attention(q, kv, mask=oc.cached())
        params = device.launches[-1]["params"]
        for name, scale, steps in zip("kv", (k_scale, v_scale), strides, strict=True):
            at = scale.data.ptr if isinstance(scale, ndarray) else 0
            assert int(params[f"{name}_scale"]) == at
            assert params[f"{name}_scale_strides"].tolist() == steps
            assert float(params[f"{name}_factor"]) == (0 if at else 1 if scale is None else scale)
        assert params["k_strides"].tolist() == [16 * 2 * 128, 128, 2 * 128]
        assert int(params["page_table"]) == kv.page_table.data.ptr


def test_a_plan_is_kept_and_knows_its_scales(device: fake_device.Device) -> None:
    q, kv = _inputs(None, k_scale=ndarray((BATCH, 1000, 2), FLOAT))
    oc.attention(q, kv, mask=oc.cached())
    made = len(device.kernels)
    assert device.launches[-1]["params"]["k_scale_strides"].tolist() == [2000, 1, 2]
    kv.k_scale = ndarray((BATCH, 1000, 2), FLOAT)
    oc.attention(q, kv, mask=oc.cached())
    assert int(device.launches[-1]["params"]["k_scale"]) == kv.k_scale.data.ptr
    assert len(device.kernels) == made
    kv.v_scale = 0.125
    oc.attention(q, kv, mask=oc.cached())
    assert float(device.launches[-1]["params"]["v_factor"]) == 0.125


def test_what_is_refused(device: fake_device.Device) -> None:
    q, kv = _inputs(head_dim=72)
    with pytest.raises(ValueError, match="k_pages must have strides that are multiples of 16 bytes"):
        oc.attention(q, kv, mask=oc.cached())
    pools = (ndarray((PAGES, 16, 2, 72), E4M3, strides=(16 * 160, 160, 80, 1)) for _ in "kv")
    kv = oc.PagedKV(*pools, kv.page_table, kv.lengths)
    with pytest.raises(
        ValueError, match="a width that is a multiple of 16 where it is e4m3 on the GPU, got 72"
    ):
        oc.attention(q, kv, mask=oc.cached())
    q, kv = _inputs(k_scale=ndarray((2,), FLOAT, 1))
    with pytest.raises(ValueError, match="k_scale must be on the device of q"):
        oc.attention(q, kv, mask=oc.cached())
    q, kv = _inputs(k_scale=np.ones(2, np.float32))
    with pytest.raises(TypeError, match="k_scale must be a CuPy array like q, got a NumPy array"):
        oc.attention(q, kv, mask=oc.cached())
    q, kv = _inputs()
    with pytest.raises(TypeError, match="q must be float16 or bfloat16 on the GPU, got float8_e4m3fn"):
        oc.attention(ndarray(q.shape, E4M3), kv, mask=oc.cached())


@pytest.mark.parametrize("page_size", [None, 16])
def test_append(device: fake_device.Device, page_size: int | None) -> None:
    shape = (BATCH, 1000, 2) if page_size is None else (PAGES, page_size, 2)
    _, kv = _inputs(page_size, k_scale=ndarray(shape, FLOAT))
    k_new, v_new = (ndarray((BATCH, 2, 1, 128), BF16) for _ in "kv")
    for _ in range(2):
        oc.append(kv, k_new, v_new)
    launched = device.launches[-1]
    assert (len(device.kernels), len(device.launches)) == (1, 2)
    assert launched["spec"] == Fp8AppendSpec(arch="sm_90", dtype="bfloat16")
    params = launched["params"]
    assert int(params["k_scale"]) == kv.k_scale.data.ptr
    assert (int(params["v_scale"]), float(params["v_factor"])) == (0, 0.5)
    pool = kv.k if page_size is None else kv.k_pages
    assert int(params["k"]) == pool.data.ptr
    steps = list(pool.strides[:3]) if page_size is None else [pool.strides[axis] for axis in (0, 2, 1)]
    assert params["k_strides"].tolist() == steps
    assert params["k_new_strides"].tolist() == [256, 128, 128]
    with pytest.raises(TypeError, match="v_new must have the dtype of k_new"):
        oc.append(kv, k_new, ndarray(v_new.shape, np.dtype(np.float16)))
