"""Captured calls: what they use is the capture's own, and lives until its graph has ended; on a fake device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import fake_device
import pytest
from fake_device import Event, Stream

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.gpu import attention as gpu_attention
from omnicupy.gpu import mask_cache, stream_memory
from omnicupy.jit.spec import AttnSpec

SPLIT = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=128, bc=128, stages=2, warps=12
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_device.Device]:
    fake = fake_device.install(monkeypatch)
    check_masks._full.cache_clear()
    gc.disable()  # whatever dies in these tests dies by its last reference
    yield fake
    gc.enable()


def _split_call(device: fake_device.Device, **more: Any) -> Any:
    q = fake_device.ndarray((1, 4, 200, 128), fake_device.BF16)
    k, v = (fake_device.ndarray((1, 4, 9000, 128), fake_device.BF16) for _ in range(2))
    oc.attention(q, k, v, more.get("mask"), config=SPLIT)
    p = device.launches[-1]["params"]
    return tuple(int(p[name]) for name in ("counter", "partials", "arrivals"))


def test_a_captured_call_and_an_eager_one_share_no_work_memory(device: fake_device.Device) -> None:
    device.streams[0] = stream = Stream(16)
    eager = _split_call(device)
    graphs, captured = [], []
    for _ in range(3):
        graphs.append(device.driver.begin(stream))
        captured.append(_split_call(device))
        device.driver.end(graphs[-1])
    assert _split_call(device) == eager
    assert all(len(set(addresses)) == 4 for addresses in zip(eager, *captured, strict=True))


def test_a_capture_waits_for_the_copy_it_reads(device: fake_device.Device) -> None:
    """`prepare` gave the copy to a busy stream; the graph has no order after it."""
    mask, arrays = oc.causal(300), fake_device.inputs()
    device.streams[0] = Stream(16)
    oc.prepare(*arrays, mask)
    uploaded = Event.made[0]
    device.streams[0] = stream = Stream(32)
    device.driver.begin(stream)
    for _ in range(3):
        oc.attention(*arrays, mask)
    assert Event.synchronized == [uploaded]
    assert stream.waited == []
    assert device.driver.mode == 0


def _copy_of(device: fake_device.Device) -> weakref.ref[Any]:
    (capture,) = stream_memory._captures.values()
    (blocks,) = capture._blocks.values()
    return weakref.ref(blocks)


@pytest.mark.parametrize("how", ["other shapes", "other lists", "dropped"])
def test_block_lists_live_as_long_as_the_graph(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(gpu_attention, "MAX_PLANS", 4)
    monkeypatch.setattr(mask_cache, "MAX_STACKS", 4)
    device.streams[0] = stream = Stream(16)
    first = oc.causal(300)
    masks: list[Any] = [
        None if how == "other shapes" else [first, oc.full(300)] if how == "other lists" else first
    ]
    arrays = fake_device.inputs()
    oc.prepare(*arrays, masks[0])
    graph = device.driver.begin(stream)
    oc.attention(*arrays, masks[0])
    device.driver.end(graph)
    blocks = _copy_of(device)
    others = []
    for i in range(1, 80):
        if how == "other shapes":
            oc.attention(*fake_device.inputs(q_len=i, k_len=i))
        elif how == "other lists":
            others.append(oc.full(300))
            oc.attention(*arrays, [first, others[-1]])
    masks.clear()
    del first
    others.clear()
    assert blocks() is not None
    graph.end()
    stream_memory.prepare(0, None)
    assert blocks() is None
