"""attention_backward after prepare, and in captures: what it needs is ready; on a fake device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, parts, run, with_strides
from fake_device import Event

import omnicupy as oc
from omnicupy.gpu import backward as gpu_backward
from omnicupy.gpu import stream_memory, workspace


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_backward.device(monkeypatch)


def _wide_target(call: Call) -> dict[str, Any]:
    _, dk, _ = call.targets()
    return {"out_grads": (None, with_strides(dk, 2 * dk.strides[0], None, None, None), None)}


MASKS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "one": lambda: oc.causal(300),
    "dead": lambda: oc.ranges([(10, 290, 5, 200)], 300, 300),
    "each": lambda: [oc.causal(300), oc.random(300, 1)],
}
LATER: dict[str, Callable[[Call], dict[str, Any]]] = {
    "plain": lambda _: {},
    "with dlse": lambda call: {"dlse": call.dlse()},
    "given": lambda call: {"out_grads": call.targets()},
    "scale": lambda _: {"scale": 0.25},
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("what", MASKS)
def test_the_call_after_prepare_can_be_captured(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch, what: str, later: str
) -> None:
    mask, first, call = MASKS[what](), Call(), Call()
    options = LATER[later](call)
    scale = options.get("scale")
    assert oc.prepare(first.q, first.k, first.v, mask, scale=scale, gradients=True) is None
    assert device.launches == []
    assert len(device.kernels) == 4  # of the forward pass, and three
    uploads, allocated = len(device.uploads), device.allocating.made
    device.driver.begin(device.streams[0])
    monkeypatch.setattr(gpu_backward, "new_plan", None)  # nothing is planned
    made = run(call, mask, **options)
    assert parts(device.launches) == ["prepare", "dkdv", "dq"]
    for launched in device.launches:
        assert launched["params"]["dq"] == made[0].data.ptr
        assert launched["stream"] is device.streams[0]
    assert (len(device.uploads), device.allocating.made) == (uploads, allocated)


@pytest.mark.parametrize("change", ["wanted", "layout of dout", "layout of dk"])
def test_other_calls_after_prepare_can_be_captured_too(device: fake_device.Device, change: str) -> None:
    """Their plan is made in the capture, where it needs nothing that a capture forbids."""
    mask, call = oc.causal(300), Call()
    oc.prepare(call.q, call.k, call.v, mask, gradients=True)
    uploads = len(device.uploads)
    options: dict[str, Any] = {}
    if change == "wanted":
        options = {"wanted": ("v",)}
    elif change == "layout of dout":
        with_strides(call.dout, 0, 0, 0, 0)
    else:
        options = _wide_target(call)
    graph = device.driver.begin(device.streams[0])
    run(call, mask, **options)
    device.driver.end(graph)
    assert len(device.uploads) == uploads
    assert device.driver.mode == 0
    assert len(device.launches) == (2 if change == "wanted" else 3)


def test_large_work_memory_is_made_in_the_capture(device: fake_device.Device) -> None:
    call, mask = Call(heads=64, q_len=3000, k_len=3000), oc.ranges([(20, 3000, 0, 3000)], 3000, 3000)
    oc.prepare(call.q, call.k, call.v, mask, gradients=True)
    small = device.allocating.nbytes
    assert small < workspace.MOST_SPARE_BYTES
    graph = device.driver.begin(device.streams[0])
    run(call, mask)
    device.driver.end(graph)
    assert 2 * call.q.nbytes < device.allocating.nbytes - small < 3 * call.q.nbytes
    graph.end()


def test_without_prepare_a_capture_is_refused(device: fake_device.Device) -> None:
    mask, call = oc.causal(300), Call()
    oc.prepare(call.q, call.k, call.v, mask)  # without gradients
    device.driver.begin(device.streams[0])
    with pytest.raises(oc.UnsupportedError, match=r"for gradients prepare\(\.\.\., gradients=True\)"):
        run(call, mask)


def test_prepare_checks_its_arguments(device: fake_device.Device) -> None:
    call = Call()
    for q in ([1], np.zeros((2, 4, 300, 64), np.float16), None):
        with pytest.raises((TypeError, ValueError)):
            gpu_backward.prepare_backward(q, call.k, call.v, None)
    with pytest.raises(ValueError, match="mask must have the shape"):
        gpu_backward.prepare_backward(call.q, call.k, call.v, oc.causal(299))
    assert device.uploads == []


def test_a_captured_backward_pass_keeps_its_memory(device: fake_device.Device) -> None:
    """Work memory and block lists are the graph's own until it has ended."""
    mask, call = oc.causal(300), Call()
    run(call, mask)
    graphs = []
    for _ in range(3):
        graphs.append(device.driver.begin(device.streams[0]))
        run(call, mask)
        device.driver.end(graphs[-1])
    lse2 = [int(launched["params"]["lse2"]) for launched in device.launches if launched["spec"].part == "dq"]
    assert len(set(lse2)) == 4
    captures = list(stream_memory._captures.values())
    assert [len(capture._blocks) for capture in captures] == [2, 2, 2]
    assert len(Event.synchronized) >= 2  # a graph has no order after the copies
    for graph in graphs:
        graph.end()
    stream_memory.prepare(0, None)
    assert stream_memory._captures == {}
