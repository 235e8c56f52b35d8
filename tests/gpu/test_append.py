"""gpu/append.py: launches, plans and checks, on a fake device."""

from __future__ import annotations

from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.gpu import append as gpu_append
from omnicupy.jit.append_spec import AppendSpec

INT32 = np.dtype(np.int32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _new(*shape: int, **more: Any) -> list[ndarray]:
    return [ndarray(shape, BF16, **more) for _ in "kv"]


def _paged(device: int = 0) -> oc.PagedKV:
    numbers = (ndarray((3, 20), INT32, device), ndarray((3,), INT32, device))
    return oc.PagedKV(*_new(50, 32, 2, 64, device=device), *numbers)


def test_a_call_is_one_launch(device: fake_device.Device) -> None:
    kv = oc.CachedKV(*_new(3, 2, 1000, 64), ndarray((3,), INT32))
    k_new, v_new = _new(3, 2, 5, 64)
    oc.append(kv, k_new, v_new)
    (launched,) = device.launches
    assert launched["spec"] == AppendSpec(arch="sm_90")
    params = launched["params"]
    assert [int(params[name]) for name in ("k_new", "v_new", "k", "v", "lengths", "page_table", "slots")] == [
        *(one.data.ptr for one in (k_new, v_new, kv.k, kv.v, kv.lengths)),
        *(0, 0),
    ]
    sizes = ("batch", "kv_heads", "tokens", "head_dim", "pages", "page_size", "capacity")
    assert [int(params[name]) for name in sizes] == [3, 2, 5, 64, 3, 1000, 1000]
    assert params["k_strides"].tolist() == [2 * 1000 * 64, 1000 * 64, 64]
    assert (launched["grid"], launched["block"]) == ((1, 1, 1), (256, 1, 1))
    oc.append(kv, *_new(3, 2, 5, 64))
    assert (len(device.kernels), len(device.launches)) == (1, 2)


def test_pages_and_slots_on_another_device(device: fake_device.Device) -> None:
    kv, slots = _paged(1), ndarray((70,), INT32, 1)
    oc.append(kv, *_new(70, 2, 64, device=1), slots)
    (launched,) = device.launches
    params = launched["params"]
    assert (launched["device"], device.current, launched["grid"]) == (1, 0, (5, 1, 1))
    assert int(params["slots"]) == slots.data.ptr
    names = ("batch", "tokens", "pages", "page_size", "page_next", "wide_slots")
    assert [int(params[name]) for name in names] == [1, 70, 50, 32, 20, 0]
    assert params["k_new_strides"].tolist() == [0, 64, 128]
    assert params["k_strides"].tolist() == [32 * 128, 64, 128]


@pytest.mark.parametrize("widths", [(192, 128), (64, 256)])
def test_values_of_another_width(device: fake_device.Device, widths: tuple[int, int]) -> None:
    kv = oc.CachedKV(*(ndarray((3, 2, 100, width), BF16) for width in widths), ndarray((3,), INT32))
    oc.append(kv, *(ndarray((3, 2, 5, width), BF16) for width in widths))
    (launched,) = device.launches
    params = launched["params"]
    assert (int(params["head_dim"]), int(params["value_dim"])) == widths
    assert params["v_strides"].tolist() == [200 * widths[1], 100 * widths[1], widths[1]]
    assert launched["grid"] == (-(-3 * 2 * 5 * max(widths) // 8 // 256), 1, 1)


def test_keys_and_values_of_one_array_are_checked_once(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose bytes lie between each other's; what is new may lie elsewhere each time."""
    both = ndarray((50, 32, 2, 2, 64), BF16)
    _, _, kv_step, *_ = both.strides
    pools = [ndarray((50, 32, 2, 64), BF16, strides=(*both.strides[:2], *both.strides[3:])) for _ in "kv"]
    numbers = ndarray((3, 20), INT32), ndarray((3,), INT32)
    for layer in range(3):
        pools[0].data.ptr = both.data.ptr + layer * both.nbytes
        pools[1].data.ptr = pools[0].data.ptr + kv_step
        oc.append(oc.PagedKV(*pools, *numbers), *_new(3, 2, 1, 64))
        monkeypatch.setattr(gpu_append.check_append, "call", None)
    assert len(device.launches) == 3


def test_numbers_start_on_multiples_of_their_size(device: fake_device.Device) -> None:
    kv = _paged()
    kv.lengths.data.ptr += 2
    with pytest.raises(ValueError, match="lengths must start on a multiple of 4 bytes"):
        oc.append(kv, *_new(3, 2, 1, 64))
    for dtype, size in ((np.int32, 4), (np.int64, 8)):
        slots = ndarray((70,), np.dtype(dtype))
        slots.data.ptr += size // 2
        with pytest.raises(ValueError, match=f"slots must start on a multiple of {size} bytes"):
            oc.append(_paged(), *_new(70, 2, 64), slots)
    assert device.launches == []


def test_what_is_refused(device: fake_device.Device) -> None:
    kv = _paged()
    bad: tuple[tuple[Any, ...], ...] = (
        ((kv, *_new(3, 2, 1, 64, device=1)), ValueError, "k_new must be on the device of k_pages"),
        ((kv, *_new(3, 2, 1, 32)), ValueError, "k_new must have the axes"),
        (
            (kv, *_new(3, 2, 1, 64, strides=(512, 256, 128, 4))),
            ValueError,
            "k_new must have a contiguous last axis",
        ),
        ((kv, *_new(4, 2, 64), ndarray((4,), np.dtype(np.int16))), TypeError, "slots must be int64 or int32"),
        (
            (kv, np.zeros((3, 2, 1, 64), np.float16), *_new(3, 2, 1, 64)[:1]),
            TypeError,
            "k_new must be a CuPy array like k_pages",
        ),
        ((kv.k_pages, *_new(3, 2, 1, 64)), TypeError, "append: kv must be a CachedKV or PagedKV"),
    )
    for arguments, error, message in bad:
        with pytest.raises(error, match=message):
            oc.append(*arguments)
    assert device.launches == []
