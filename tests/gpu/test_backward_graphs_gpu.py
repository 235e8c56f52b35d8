"""Captured forward and backward passes on a device: replayed beside eager work, after prepare, on new inputs."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from gradients_gpu import Gradients, bits

import omnicupy as oc

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

ROUNDS = 300


def _mask(rows: int) -> Any:
    return oc.random(rows, 1, text=(20, 90), image=(60, 200))


def _holes(rows: int) -> Any:
    return oc.ranges([(30, rows // 2, 0, 200), (rows // 2 + 100, rows - 7, 210, rows - 9)], rows, rows)


def _stream() -> Any:
    return cp.cuda.Stream(non_blocking=True)


class Captured:
    """One forward and backward pass of a call, captured on a stream; out, lse and gradients are the graph's."""

    def __init__(self, call: Gradients, stream: Any) -> None:
        self.call, self.targets = call, call.targets()
        cp.cuda.Device().synchronize()
        with stream:
            # What is allocated in the capture comes from the stream's pool.
            oc.attention(call.q, call.k, call.v, call.mask, return_lse=True)
            stream.synchronize()
            stream.begin_capture()
            try:
                self.out, self.lse = oc.attention(call.q, call.k, call.v, call.mask, return_lse=True)
                given = (call.dout, call.q, call.k, call.v, self.out, self.lse)
                oc.attention_backward(*given, call.mask, out_grads=self.targets)
            finally:  # else every later call would find the stream under capture
                self.graph = stream.end_capture()

    def poison(self) -> None:
        for array in (self.out, self.lse, *self.targets):
            array.fill(np.nan)


@pytest.mark.parametrize("make", [_mask, _holes])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_replays_beside_eager_calls_leave_nothing_unwritten(make: Any, head_dim: int) -> None:
    rows = 1000
    mask = make(rows)
    calls = [Gradients(cp, mask, (1, 8, rows, head_dim), kv_heads=4, seed=seed) for seed in range(2)]
    wanted = [bits(cp, call.run()) for call in calls]
    home, other = _stream(), _stream()
    with home:
        oc.prepare(calls[0].q, calls[0].k, calls[0].v, mask, gradients=True)
        home.synchronize()
    captured = Captured(calls[0], home)
    eager = calls[1].targets()
    bad = [0, 0]
    for _ in range(ROUNDS):
        captured.poison()
        for array in eager:
            array.fill(np.nan)
        cp.cuda.Device().synchronize()
        captured.graph.launch(other)
        with home:
            calls[1].run(out_grads=eager)
        cp.cuda.Device().synchronize()
        for i, made in enumerate((captured.targets, eager)):
            bad[i] += bits(cp, made) != wanted[i]
    assert bad == [0, 0]


def test_a_graph_replays_on_new_inputs_after_its_mask_was_dropped() -> None:
    stream = _stream()
    first, fresh = (Gradients(cp, _mask(700), (2, 4, 700, 128), seed=seed) for seed in range(2))
    wanted = bits(cp, fresh.run())
    with stream:
        oc.prepare(first.q, first.k, first.v, first.mask, gradients=True)
    captured = Captured(first, stream)
    for name in ("q", "k", "v", "dout"):
        getattr(first, name)[...] = getattr(fresh, name)
    first.mask = None
    gc.collect()
    captured.poison()
    junk = [cp.full(1 << 16, 255, np.uint8) for _ in range(64)]  # the pool hands freed memory out again
    cp.cuda.Device().synchronize()
    captured.graph.launch(stream)
    stream.synchronize()
    assert bits(cp, captured.targets) == wanted
    assert len(junk) == 64


def test_the_first_backward_pass_with_a_mask_cannot_be_captured() -> None:
    call, stream = Gradients(cp, _mask(300), (1, 2, 300, 64)), _stream()
    call.run()
    call.mask, targets = _mask(300), call.targets()
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(oc.UnsupportedError, match=r"for gradients prepare\(\.\.\., gradients=True\)"):
                call.run(out_grads=targets)
        finally:
            stream.end_capture()


def test_a_broadcast_dlse_is_refused_in_a_capture() -> None:
    call, stream = Gradients(cp, _mask(300), (1, 2, 300, 64)), _stream()
    dlse = cp.broadcast_to(cp.ones((), np.float32), call.lse.shape)
    call.check(call.run())
    call.run(dlse=dlse)
    targets = call.targets()
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(
                oc.UnsupportedError, match="dlse must be contiguous while the stream is captured"
            ):
                call.run(dlse=dlse, out_grads=targets)
        finally:
            stream.end_capture()
