"""Calls on caches whose sequences have numbers of rows of their own, on a fake device: plans, steps, structs."""

from __future__ import annotations

from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import AttnSpec

BATCH, TOTAL, HEADS, CAPACITY = 3, 90, 8, 1024
INT32 = np.dtype(np.int32)
SM80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)
NAIVE = AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(page_size: int | None = None, **changes: Any) -> tuple[ndarray, Any, dict[str, Any]]:
    q = changes.pop("q", ndarray((TOTAL, HEADS, 64), BF16))
    lengths = ndarray((BATCH,), INT32)
    if page_size is None:
        kv: Any = oc.CachedKV(*(ndarray((BATCH, 2, CAPACITY, 64), BF16) for _ in "kv"), lengths)
    else:
        pools = (ndarray((99, page_size, 2, 64), BF16) for _ in "kv")
        kv = oc.PagedKV(*pools, ndarray((BATCH, CAPACITY // page_size), INT32), lengths)
    return q, kv, {"rows": ndarray((BATCH + 1,), INT32), "max_rows": 7, **changes}


@pytest.mark.parametrize("page_size", [None, 4, 32])
@pytest.mark.parametrize("most", [1, 7, 80, 1000])
def test_what_is_launched(most: int, page_size: int | None, device: fake_device.Device) -> None:
    q, kv, how = _inputs(page_size, max_rows=most)
    out, lse = oc.attention(q, kv, mask=oc.cached(window=100), return_lse=True, **how)
    assert (out.shape, lse.shape) == ((TOTAL, HEADS, 64), (HEADS, TOTAL))
    planner, kernel = device.launches
    assert planner["spec"] == PlanSpec(arch=planner["spec"].arch, ragged=True)
    spec, p, of_kernel = kernel["spec"], planner["params"], kernel["params"]
    assert type(spec) is RaggedSpec
    assert spec.kernel == "sm90"
    assert spec.page == {None: 0, 4: 1, 32: 32}[page_size]
    assert spec.pack == (most < 64)
    assert [int(p[name]) for name in ("q_len", "total", "batch")] == [min(most, TOTAL), TOTAL, BATCH]
    assert (p["row_starts"], p["lengths"]) == (how["rows"].data.ptr, kv.lengths.data.ptr)
    assert p["row_ranges"] == of_kernel["row_ranges"] > 0
    assert [int(of_kernel[name]) for name in ("q_len", "batch", "mask_batch")] == [TOTAL, BATCH, BATCH]
    assert of_kernel["q_strides"].tolist()[1:] == of_kernel["out_strides"].tolist()[1:] == [64, HEADS * 64]
    pools = (kv.k, kv.v) if page_size is None else (kv.k_pages, kv.v_pages)
    addresses = [one.data.ptr for one in (q, *pools, out, lse)]
    assert [int(of_kernel[name]) for name in ("q", "k", "v", "out", "lse")] == addresses


def test_growing_plans_nothing_anew_and_other_rows_are_read(device: fake_device.Device) -> None:
    for _ in range(3):
        q, kv, how = _inputs()
        oc.attention(q, kv, mask=oc.cached(), **how)
        assert device.launches[-2]["params"]["row_starts"] == how["rows"].data.ptr
    assert len(device.kernels) == 2
    oc.attention(q, kv, mask=oc.cached(), **how | {"max_rows": 80})
    assert device.launches[-2]["params"]["q_len"] == 80


def test_a_step_brings_its_rows(device: fake_device.Device) -> None:
    q, kv, how = _inputs(32)
    step = oc.plan(q, kv, oc.cached(), **how)
    for given in ({}, how):
        oc.attention(q, kv, mask=step, **given)
    planned, *layers = (launched["params"] for launched in device.launches)
    assert {int(params["row_ranges"]) for params in layers} == {int(planned["row_ranges"])}
    assert len(device.launches) == 3
    with pytest.raises(ValueError, match="the step was made of another array of rows"):
        oc.attention(q, kv, mask=step, **_inputs()[2])


@pytest.mark.parametrize("config", [SM80, NAIVE], ids=["sm80", "naive"])
def test_other_kernels(config: AttnSpec, device: fake_device.Device) -> None:
    q, kv, how = _inputs()
    oc.attention(q, kv, mask=oc.cached(), config=config, **how)
    kernel = device.launches[-1]
    assert kernel["spec"] == RaggedSpec.of(config)
    assert kernel["grid"][0] == (TOTAL * HEADS if config is NAIVE else BATCH * HEADS)
    with pytest.raises(
        oc.UnsupportedError, match="split goes with rows of up to 64 a sequence whose heads are packed"
    ):
        oc.attention(q, kv, mask=oc.cached(), config=config, split=384, **how)


def test_a_split_of_packed_rows(device: fake_device.Device) -> None:
    q, kv, how = _inputs()
    oc.attention(q, kv, mask=oc.cached(), split=384, **how)
    assert device.launches[0]["params"]["split_tiles"] == 3
    with pytest.raises(oc.UnsupportedError, match="split goes with rows of up to 64"):
        oc.attention(q, kv, mask=oc.cached(), split=384, **how | {"max_rows": 90})


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rows": ndarray((BATCH + 1,), INT32, 1)}, ValueError, "rows must be on the device of q"),
    ({"rows": np.zeros(BATCH + 1, np.int32)}, TypeError, "rows must be a CuPy array like q"),
    ({"rows": ndarray((BATCH + 2,), INT32)}, ValueError, "k must have the batch size of q"),
    ({"q": ndarray((TOTAL, HEADS, 64), BF16, strides=(1024, 128, 4))}, ValueError, "q must have a contiguous"),
    ({"q": ndarray((TOTAL, HEADS, 64), BF16, strides=(1032, 128, 2))}, ValueError, "multiples of 16 bytes, got 1032"),
    ({"out": ndarray((TOTAL, HEADS, 32), BF16)}, ValueError, "out must have the shape of q with the width of v"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_is_refused(
    device: fake_device.Device, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    q, kv, how = _inputs(**changes)
    with pytest.raises(error, match=message):
        oc.attention(q, kv, mask=oc.cached(), **how)
    assert device.launches == []
