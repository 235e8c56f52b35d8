"""Structs that plans keep, one a stream: whose they are, what is written into them anew, and how many; on a fake
device.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call
from fake_device import Stream
from fake_driver import Function

import omnicupy as oc
from omnicupy.gpu import backward_plan, plan, stream_memory
from omnicupy.gpu.workspace import Need


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_backward.install(monkeypatch)


class Both:
    """A call and its gradients, with one mask on the stream at hand."""

    def __init__(self, device: fake_device.Device) -> None:
        self.device, self.mask, self.call = device, oc.causal(300), Call()

    def structs(self, stream: Any, **options: Any) -> list[int]:
        """Whose structs the kernels got, one a launch."""
        launched = self.launches(stream, **options)
        assert launched[0]["spec"] is not launched[-1]["spec"]
        return [id(one["argument"]) for one in launched]

    def launches(self, stream: Any, **options: Any) -> list[dict[str, Any]]:
        self.device.streams[0] = stream
        before = len(self.device.launches)
        call = self.call
        oc.attention(call.q, call.k, call.v, self.mask, **options)
        oc.attention_backward(*call.arrays, self.mask, **options)
        return self.device.launches[before:]


def test_a_stream_s_launches_share_a_struct_and_no_other_stream_has_it(device: fake_device.Device) -> None:
    both = Both(device)
    first, second, again = (both.structs(Stream(at)) for at in (16, 32, 16))
    assert first == again
    assert len({*first, *second}) == len(first) + len(second)  # one a kernel and stream
    assert both.structs(Stream(0)) == both.structs(Stream(1)) != first  # two handles of one stream


def test_a_capture_s_launches_have_structs_of_their_own(device: fake_device.Device) -> None:
    both, stream = Both(device), Stream(16)
    eager = both.launches(stream)
    graph = device.driver.begin(stream)
    captured = both.launches(stream) + both.launches(stream)
    device.driver.end(graph)
    kept = [one["argument"] for one in eager + captured]
    assert len({id(one) for one in kept}) == len(kept)
    assert both.structs(stream) == [id(one["argument"]) for one in eager]


def test_a_new_stream_with_the_handle_of_a_destroyed_one_has_another(device: fake_device.Device) -> None:
    both = Both(device)
    kept = both.launches(Stream(16))
    device.driver.destroy(16)
    assert not {id(one["argument"]) for one in kept} & set(both.structs(Stream(16)))


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_structs_are_bounded(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(plan if kind == "forward" else backward_plan, "MAX_BOUND", 3)
    monkeypatch.setattr(stream_memory, "MAX_STREAMS", 100)
    both = Both(device)
    for at in range(1, 9):
        both.structs(Stream(16 * at))
    (kept,) = both.mask._device.values()
    found = [one for one in kept.plans.values() if isinstance(one, plan.Plan) == (kind == "forward")]
    assert [len(one._bound) for one in found] == [2]  # of eight: three, then three, then two


def test_each_launch_writes_all_addresses_anew(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A struct that another call has filled holds nothing of it."""
    monkeypatch.setattr(backward_plan, "OWN_BYTES", 1 << 20)  # work memory is the stream's
    warm, mask = Both(device), oc.causal(300)
    sinks = fake_device.ndarray((4,), np.dtype(np.float32))
    others = [Call(), Call()]
    fresh: list[bytes] = []
    for made in (mask, oc.causal(300)):  # the second has plans of its own, which no call has used
        warm.mask = made
        if made is mask:
            for call in others:
                warm.call = call
                warm.launches(Stream(16))
                warm.launches(Stream(16), sink_logits=sinks)
        warm.call = others[0]
        fresh.append(b"".join(_addresses(one) for one in warm.launches(Stream(16))))
    assert fresh[0] == fresh[1]


def _addresses(launched: dict[str, Any]) -> bytes:
    """What a launch's struct says of the call's inputs and of the stream's memory."""
    params = launched["params"]
    names = (
        "q",
        "k",
        "v",
        "lse",
        "dout",
        "dlse",
        "lse2",
        "delta",
        "sink_logits",
        "sink_sums",
        "dsink_logits",
    )
    names += ("q_map", "dout_map", "k_map", "v_map", "counter", "arrivals")
    return b"".join(params[name].tobytes() for name in names if name in params.dtype.names)


def test_work_memory_at_the_same_address_is_asked_what_it_holds(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a stream's workspace was given back, and a smaller one now lies where it was."""
    monkeypatch.setattr(backward_plan, "OWN_BYTES", 1 << 20)
    both, stream = Both(device), Stream(16)
    both.launches(stream)
    (kept,) = both.mask._device.values()
    (need,) = [one.need for one in kept.plans.values() if isinstance(one, backward_plan.BackwardPlan)]
    memory = stream_memory.memory_of(0, stream)
    smaller = copy.copy(memory.latest)
    assert smaller is not None
    smaller.need, smaller.number = Need(256, 1), -1
    memory._workspaces, memory.latest = [smaller], smaller
    launched = both.launches(stream)[-1]["params"]
    assert memory.latest is not smaller
    assert need.within(memory.latest.need)
    assert int(launched["delta"]) >= memory.latest.partials


def test_a_launch_that_the_driver_still_reads_is_not_written_to(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread launches the same plan on another stream meanwhile; on the same stream it would wait."""
    both, others = Both(device), [Call(), Call()]
    both.launches(Stream(32))
    both.launches(Stream(16))
    plain, running = Function.__call__, []

    def slow(self: Function, grid: Any, block: Any, args: Any, smem: int, stream: Any) -> None:
        if stream.ptr == 16 and not running:
            running.append(True)
            both.call = others[1]
            thread = threading.Thread(target=both.launches, args=(Stream(32),))
            thread.start()
            thread.join()
            device.streams[0] = stream  # current streams are a thread's own, but for the fake
            running.clear()
        plain(self, grid, block, args, smem, stream)

    monkeypatch.setattr(Function, "__call__", slow)
    both.call = others[0]
    launched = both.launches(Stream(16))
    found = {(one["stream"].ptr, int(one["params"]["q"])) for one in launched}
    assert found == {(16, others[0].q.data.ptr), (32, others[1].q.data.ptr)}
