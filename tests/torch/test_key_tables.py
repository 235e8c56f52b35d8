"""Launches of one row a sequence by tables of keys, over fake_device: what kernels are given, and how few plans."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import fake_device
import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - after what it needs

from omnicupy.gpu import cached as gpu_cached  # noqa: E402
from omnicupy.gpu import cached_planning, streams  # noqa: E402
from omnicupy.gpu.device import DeviceInfo  # noqa: E402
from omnicupy.torch import eager, key_layout, key_tables, memory  # noqa: E402

HEADS, DIM = 8, 64


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake = fake_device.install(monkeypatch)
    monkeypatch.setattr(eager, "raw_stream", lambda _: 7)
    monkeypatch.setattr(streams, "_external", {})
    monkeypatch.setattr(key_tables, "_gpu", None)
    monkeypatch.setattr(memory, "_empty_strided", lambda *of: torch.empty_strided(*of[:2], dtype=of[2]))
    monkeypatch.setattr(torch.Tensor, "get_device", lambda _: 0, raising=False)
    with torch.no_grad():
        yield fake


def _inputs(keys: int, batch: int = 3, kv_heads: int = 2) -> list[Any]:
    q = torch.zeros(batch, HEADS, 1, DIM, dtype=torch.bfloat16)
    return [q, *(torch.zeros(batch, kv_heads, keys, DIM, dtype=torch.bfloat16) for _ in range(2))]


def _numbers(address: int, count: int) -> list[int]:
    return np.frombuffer((ctypes.c_char * (4 * count)).from_address(address), np.int32).tolist()


def _by_table(fake: Any) -> int:
    """Launches of attention by tables."""
    return sum("page_table" in (one["params"].dtype.names or ()) for one in fake.launches)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_growing_cache(has_sinks: bool, fake: Any) -> None:
    """Two steps of three layers: the lists are made once a step; strides between heads alone ask for new plans."""
    sinks = torch.zeros(HEADS) if has_sinks else None
    for keys in (300, 301):
        seen = torch.ones(3, keys, dtype=torch.bool)
        seen[0, :17], seen[2] = False, False
        held = key_tables.SeenKeys(seen, keys)
        for _ in range(3):
            q, k, v = _inputs(keys)
            assert held.attention(q, k, v, sinks, (0.5, None)).shape == (3, 1, HEADS, DIM)
            params = fake.launches[-1]["params"]
            assert int(params["q"]) == q.data_ptr()
            assert (int(params["k"]), int(params["v"])) == (k.data_ptr(), v.data_ptr())
            assert bool(params["sink_logits"]) == has_sinks
            assert fake.launches[-1]["spec"].kernel == "sm90"
            assert (int(params["page_size"]), int(params["k_len"])) == (1, 512)
            assert int(params["k_strides"][0]) == DIM
            apart = 1 if has_sinks else 2
            assert (int(params["batch"]), int(params["q_heads"])) == (3 * apart, HEADS // apart)
            assert int(params["group"]) == HEADS // 2
            table, step = int(params["page_table"]), 4 * int(params["page_next"])
            first = 17
            assert _numbers(table, 2) == [first, first + 1]
            assert _numbers(table + 4 * (keys - 18), 2) == [keys - 1, -1]
            of_second = keys if apart == 2 else 2 * keys
            assert _numbers(table + step, 1) == [of_second + (first if apart == 2 else 0)]
            assert _numbers(table + step * (3 * apart - 1), 1) == [-1]
            if has_sinks:
                assert int(params["k_strides"][1]) == keys * DIM
        planner = fake.launches[-4]
        apart = 1 if has_sinks else 2
        wanted = [keys - 17] * apart + [keys] * apart + [0] * apart
        assert _numbers(int(planner["params"]["lengths"]), 3 * apart) == wanted
    assert len(fake.launches) == 8
    assert len(gpu_cached._plans) == (2 if has_sinks else 1)


def test_one_plan_serves_the_steps_of_a_static_cache(fake: Any) -> None:
    q, k, v = _inputs(2048)
    for row in (7, 8, 300):
        held = key_tables.SeenKeys(torch.ones(1, row, dtype=torch.bool), 2048)
        held.attention(q, k, v, torch.zeros(HEADS), (None, None))
    assert len(gpu_cached._plans) == 1


@pytest.mark.parametrize(
    "change",
    [
        "rows",
        "keys",
        "batch",
        "v elsewhere",
        "misaligned",
        "wide steps",
        "negative",
        "other kernel",
        "no kernel",
    ],
)
def test_what_masks_serve(change: str, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs(20)
    held = key_tables.SeenKeys(torch.ones(3, 20, dtype=torch.bool), 20)
    if change == "rows":
        q = q.expand(3, HEADS, 2, DIM)
    elif change == "keys":
        k, v = k[:, :, :19], v[:, :, :19]
    elif change == "batch":
        q, k, v = _inputs(20, batch=2)
    elif change == "v elsewhere":
        v = torch.zeros(3, 2, 21, DIM, dtype=q.dtype)[:, :, :20]
    elif change == "misaligned":
        q = torch.zeros(q.numel() + 1, dtype=q.dtype)[1:].view(q.shape)
    elif change == "wide steps":
        k, v = (one.transpose(2, 3).contiguous().transpose(2, 3) for one in (k, v))
    elif change == "negative":
        q = torch._neg_view(q)
    elif change == "other kernel":
        monkeypatch.setattr(cached_planning, "device_info", lambda _: DeviceInfo(8, 6, 20, 4 << 20))
    else:
        monkeypatch.setattr(fake_device.pick, "SERVED", frozenset())
    assert held.attention(q, k, v, None, (None, None)) is None
    assert not _by_table(fake)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_heads_of_a_fused_projection_are_copied(has_sinks: bool, fake: Any) -> None:
    """Those of one element are neighbours, those of the next element begin behind its keys and values."""
    _, k, v = _inputs(20)
    fused = torch.zeros(3, 1, 3 * HEADS * DIM, dtype=k.dtype)
    q = fused[..., : HEADS * DIM].view(3, 1, HEADS, DIM).transpose(1, 2)
    sinks = torch.zeros(HEADS) if has_sinks else None
    held = key_tables.SeenKeys(torch.ones(3, 20, dtype=torch.bool), 20)
    assert held.attention(q, k, v, sinks, (None, None)) is not None
    params = fake.launches[-1]["params"]
    assert int(params["q"]) != q.data_ptr()
    assert params["q_strides"].tolist()[:2] == [HEADS * DIM if has_sinks else HEADS // 2 * DIM, DIM]
    one = [array[:1] for array in (q, k, v)]
    held = key_tables.SeenKeys(torch.ones(1, 20, dtype=torch.bool), 20)
    assert held.attention(*one, sinks, (None, None)) is not None
    assert int(fake.launches[-1]["params"]["q"]) == q.data_ptr()


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("bad", ["negative", "no memory"])
def test_sinks_that_masks_serve(bad: str, is_warm: bool, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs(20)
    held = key_tables.SeenKeys(torch.ones(3, 20, dtype=torch.bool), 20)
    sinks = torch.zeros(HEADS)
    if is_warm:
        assert held.attention(q, k, v, sinks, (None, None)) is not None
    launches = _by_table(fake)
    if bad == "negative":
        sinks = torch._neg_view(sinks)
    else:
        sinks.data_ptr = lambda: 0
    assert held.attention(q, k, v, sinks, (None, None)) is None
    assert _by_table(fake) == launches == int(is_warm)


def test_keys_of_another_device(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied there once, for the layers of a stream."""
    held = key_tables.SeenKeys(torch.ones(3, 20, dtype=torch.bool), 20)
    monkeypatch.setattr(eager, "raw_stream", lambda index: stream)
    stream = 7
    there = held.on("meta")
    assert there._order.is_meta
    assert there._lengths.is_meta
    assert there.keys == 20
    assert held.on(torch.device("meta")) is there
    stream = 8
    assert held.on("meta") is not there
    assert held.on("cpu") is held
    there = key_tables.SeenKeys(torch.ones(3, 20, dtype=torch.bool), 20)
    held._index = 1
    monkeypatch.setattr(key_tables.SeenKeys, "on", lambda *_: there)
    assert held.attention(*_inputs(20), None, (None, None)) is not None
    assert not held._calls
    (call,) = there._calls.values()
    assert int(fake.launches[-1]["params"]["page_table"]) == call.table.data_ptr()


def _given(change: str) -> list[Any]:
    """q, k, v and sinks or None, on a device but for what `change` says."""
    dtypes = {"float32": [torch.float32] * 3, "two dtypes": [torch.float16, torch.bfloat16, torch.bfloat16]}
    of = dtypes.get(change, [torch.bfloat16] * 3)
    q, k, v = (
        fake_tensor.cuda(torch.zeros(3, 2, 4, DIM, dtype=dtype), int(change == f"{name} elsewhere"))
        for name, dtype in zip("qkv", of, strict=True)
    )
    if change == "gradients":
        k.requires_grad_(True)
    if change == "host":
        q = torch.zeros(q.shape, dtype=q.dtype)
    if "sinks" not in change:
        return [q, k, v, None]
    sinks = torch.zeros(4, dtype=torch.float64 if "float64" in change else torch.float32)
    sinks = sinks[::2] if "apart" in change else sinks
    return [q, k, v, fake_tensor.cuda(sinks, int("elsewhere" in change))]


@pytest.mark.parametrize(
    "change",
    [
        *(
            None,
            "sinks",
            "host",
            "float32",
            "two dtypes",
            "q elsewhere",
            "k elsewhere",
            "v elsewhere",
            "gradients",
        ),
        *("float64 sinks", "sinks apart", "sinks elsewhere", "captured", "a mode", "a transform", "a trace"),
    ],
)
def test_serves(change: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensor.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: change == "captured")
    changed = {"a mode": ("modes", 1), "a transform": ("transform", 0), "a trace": ("tracer", print)}
    if change in changed:
        name, value = changed[change]
        monkeypatch.setattr(key_tables.state, name, lambda: value)
    assert key_tables.serves(*_given(change or "")) == (change in (None, "sinks"))
    if change == "gradients":
        with torch.no_grad():
            assert key_tables.serves(*_given(change))


def test_layouts_of_pools() -> None:
    """More pages than 31 bits count are no layout."""
    one = torch.zeros(1, 1, 1, 8).expand(1 << 12, 1 << 10, 1 << 10, 8)
    assert key_layout.layout_of(one, one, apart=True) is not None  # all at one place
    far = torch.empty(1, device="meta").as_strided((1 << 12, 1 << 10, 1 << 10, 8), (1 << 23, 1 << 13, 8, 1))
    assert key_layout.layout_of(far, far, apart=True) is None
    assert key_layout.layout_of(far, far, apart=False) is None
