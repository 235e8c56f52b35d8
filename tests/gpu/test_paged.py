"""gpu/cached.py on keys and values in pages: kernels, parameters and what is refused, on a fake device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.choose import paged
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec

BATCH, PAGES, MOST = 3, 50, 20
INT32 = np.dtype(np.int32)
SM90 = AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=64, stages=2, warps=8)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(
    page_size: int = 32, q_len: int = 1, head_dim: int = 64, **changes: Any
) -> tuple[ndarray, oc.PagedKV]:
    q, value_dim = ndarray((BATCH, 8, q_len, head_dim), BF16), changes.pop("value_dim", head_dim)
    widths = {"k_pages": head_dim, "v_pages": value_dim}
    arrays = {name: ndarray((PAGES, page_size, 2, width), BF16) for name, width in widths.items()}
    arrays |= {"page_table": ndarray((BATCH, MOST), INT32), "lengths": ndarray((BATCH,), INT32)}
    return q, oc.PagedKV(**{**arrays, **changes})


@pytest.mark.parametrize(
    ("page_size", "box"), [(1, 1), (12, 1), (8, 8), (16, 16), (48, 16), (32, 32), (256, 64)]
)
def test_which_variant_reads_pages(device: fake_device.Device, page_size: int, box: int) -> None:
    q, kv = _inputs(page_size)
    step = oc.plan(q, kv, oc.cached())
    oc.attention(q, kv, mask=step)
    spec = device.launches[-1]["spec"]
    assert type(spec) is PagedSpec
    assert (spec.kernel, spec.page, spec.params) == ("sm90", box, "sm90_paged")
    assert step.kernel == spec
    assert f"page={box}" in str(step.kernel)
    assert repr(step).endswith(f"capacity {MOST * page_size}, kernel sm90>")


def test_what_the_kernel_is_given(device: fake_device.Device) -> None:
    table = ndarray((BATCH, MOST), INT32, strides=(4 * 33, 4))
    both = ndarray((PAGES, 32, 2, 128), BF16)
    k, v = (ndarray((PAGES, 32, 2, 64), BF16, strides=both.strides) for _ in "kv")
    q, kv = _inputs(k_pages=k, v_pages=v, page_table=table)
    out = oc.attention(q, kv, mask=oc.cached(window=90))
    planner, kernel = (launched["params"] for launched in device.launches)
    assert (planner["capacity"], kernel["k_len"]) == (MOST * 32, MOST * 32)
    assert planner["lengths"] == kv.lengths.data.ptr
    assert [int(kernel[name]) for name in ("q", "k", "v", "out", "page_table")] == [
        one.data.ptr for one in (q, k, v, out, table)
    ]
    assert [int(kernel[name]) for name in ("page_next", "pages", "page_size")] == [33, PAGES, 32]
    assert kernel["k_strides"].tolist() == [32 * 2 * 128, 128, 2 * 128]  # of a page, a head, a token
    again = ndarray((BATCH, MOST), INT32, strides=(4 * 33, 4))
    made = len(device.kernels)
    oc.attention(q, oc.PagedKV(k, v, again, kv.lengths), mask=oc.cached(window=90))
    assert len(device.kernels) == made
    assert device.launches[-1]["params"]["page_table"] == again.data.ptr


@pytest.mark.parametrize(("page_size", "head_dim"), [(7, 64), (7, 128), (8, 128)])
def test_prompts_keep_their_tile_on_pages(device: fake_device.Device, page_size: int, head_dim: int) -> None:
    oc.attention(*_inputs(page_size, q_len=3000, head_dim=head_dim), mask=oc.cached())
    spec = device.launches[-1]["spec"]
    assert (spec.kernel, spec.br, spec.warps, spec.source) == ("sm90", 192, 16, "attention_fwd_paged.cu")
    assert spec.page == (8 if page_size == 8 else 1)


def test_a_tile_of_the_portable_kernel_that_looks_up_pages_has_registers_for_it() -> None:
    row = AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=128, br=128, bc=64)
    assert row.warps == 4
    assert paged.fitted(row) == replace(row, warps=8)
    assert paged.fitted(replace(row, head_dim=64)) == replace(row, head_dim=64)


@pytest.mark.parametrize(("page_size", "kernel"), [(6, "sm90"), (32, "sm90")])
def test_values_of_another_width(device: fake_device.Device, page_size: int, kernel: str) -> None:
    q, kv = _inputs(page_size, head_dim=192, value_dim=128)
    out = oc.attention(q, kv, mask=oc.cached())
    launched = device.launches[-1]
    spec, params = launched["spec"], launched["params"]
    assert (spec.kernel, spec.head_dim, spec.value_dim) == (kernel, 192, 128)
    assert out.shape == (BATCH, 8, 1, 128)
    assert [int(params[name]) for name in ("head_dim", "value_dim")] == [192, 128]
    strides = {name: params[f"{name}_strides"].tolist() for name in "kv"}
    assert strides == {"k": [page_size * 384, 192, 384], "v": [page_size * 256, 128, 256]}
    with pytest.raises(ValueError, match="v_pages must have the pages, tokens and heads of k_pages"):
        oc.attention(
            q,
            _inputs(page_size, head_dim=192, v_pages=ndarray((PAGES, page_size, 1, 128), BF16))[1],
            mask=oc.cached(),
        )


def test_score_changes_and_splits(device: fake_device.Device) -> None:
    (q, kv), sinks = _inputs(), ndarray((8,), np.dtype(np.float32))
    options: dict[str, Any] = {"sink_logits": sinks, "softcap": 30.0}
    for mask in (oc.cached(), oc.plan(q, kv, oc.cached(), softcap=30.0)):
        oc.attention(q, kv, mask=mask, **options)
        kernel = device.launches[-1]
        assert (type(kernel["spec"]), kernel["spec"].softcap) == (PagedSpec, True)
        assert int(kernel["params"]["sink_logits"]) == sinks.data.ptr
        assert int(kernel["params"]["page_table"]) == kv.page_table.data.ptr
    made = len(device.kernels)
    oc.attention(q, kv, mask=oc.cached(), softcap=30.0)
    assert len(device.kernels) == made
    assert int(device.launches[-1]["params"]["sink_logits"]) == 0
    step = oc.plan(q, kv, oc.cached(), split=384)
    assert device.launches[-1]["params"]["split_tiles"] > 0
    oc.attention(q, kv, mask=step)
    with pytest.raises(ValueError, match="the step was made for another kernel, split or device"):
        oc.attention(q, kv, mask=step, split=768)


def test_a_step_serves_layers_with_other_tables(device: fake_device.Device) -> None:
    q, kv = _inputs()
    step = oc.plan(q, kv, oc.cached())
    other = _inputs()[1]
    oc.attention(q, oc.PagedKV(other.k_pages, other.v_pages, other.page_table, kv.lengths), mask=step)
    assert device.launches[-1]["params"]["page_table"] == other.page_table.data.ptr
    small = _inputs(16)[1]
    with pytest.raises(
        ValueError, match=r"\(heads, capacity\) \(2, 640\), got \(3, 8, 1, 64\) and \(2, 320\)"
    ):
        oc.attention(q, oc.PagedKV(small.k_pages, small.v_pages, kv.page_table, kv.lengths), mask=step)


def test_a_config_that_cannot_read_the_pages_is_refused(device: fake_device.Device) -> None:
    for page_size, box in ((16, 16), (8, 8), (24, 8), (128, 64), (6, 1)):
        oc.attention(*_inputs(page_size), mask=oc.cached(), config=SM90)
        assert device.launches[-1]["spec"].page == box
    many = replace(SM90, br=192, warps=16)
    for page_size, box in ((8, 8), (6, 1)):
        oc.attention(*_inputs(page_size), mask=oc.cached(), config=many)
        launched = device.launches[-1]["spec"]
        assert (launched.page, launched.source) == (box, "attention_fwd_paged.cu")
    with pytest.raises(
        oc.UnsupportedError, match=r"stages=2 and more, got pages of 6, stages=1 and br=192; leave"
    ):
        oc.attention(*_inputs(6), mask=oc.cached(), config=replace(many, stages=1))
    oc.attention(*_inputs(6), mask=oc.cached(), config=replace(SM90, stages=1))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"page_table": ndarray((BATCH, MOST), np.dtype(np.int64))}, TypeError, "page_table must be int32, got int64"),
    ({"page_table": ndarray((BATCH, MOST), INT32, 1)}, ValueError, "page_table must be on the device of q"),
    ({"page_table": np.zeros((BATCH, MOST), np.int32)}, TypeError, "page_table must be a CuPy array like q"),
    ({"page_table": ndarray((BATCH, MOST), INT32, strides=(4, 12))}, ValueError, "page_table must have contiguous"),
    ({"k_pages": ndarray((PAGES, 32, 2, 64), BF16, 1)}, ValueError, "k_pages must be on the device of q"),
    (
        {"k_pages": ndarray((PAGES, 32, 2, 64), BF16, strides=(8192, 256, 2, 4))},
        ValueError,
        "k_pages must have a contiguous last axis",
    ),
    (
        {"v_pages": ndarray((PAGES, 32, 2, 64), BF16, strides=(8200, 256, 128, 2))},
        ValueError,
        "v_pages must have strides that are multiples of 16 bytes, got 8200 on the pages axis",
    ),
    ({"lengths": ndarray((BATCH + 1,), INT32)}, ValueError, "lengths must have one entry per sequence"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_is_refused(
    device: fake_device.Device, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        oc.attention(*_inputs(**changes), mask=oc.cached())
    assert device.launches == []


def test_a_capture_is_prepared(device: fake_device.Device) -> None:
    q, kv = _inputs()
    oc.prepare(q, kv, mask=oc.cached(), max_length=MOST * 32)
    made = len(device.kernels)
    assert device.launches == []
    oc.attention(q, kv, mask=oc.cached())
    assert (len(device.kernels), len(device.launches)) == (made, 2)
    with pytest.raises(ValueError, match="max_length must be from 1 to the capacity 640, got 641"):
        oc.prepare(q, kv, mask=oc.cached(), max_length=641)
