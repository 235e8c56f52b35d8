"""Exchanges of a rank follow each other, whichever streams they are on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from omnicupy.parallel import peer_trip  # noqa: E402 - after what it needs


class Stream(SimpleNamespace):
    """cuda_stream: its handle.  waits: handles of the streams that it waited for."""

    def wait_stream(self, other: Stream) -> None:
        self.waits.append(other.cuda_stream)


def _memory(captures: dict[int, int]) -> SimpleNamespace:
    """captures: of the streams that are captured, by their handles."""
    device = SimpleNamespace(capture=captures.__getitem__)
    return SimpleNamespace(device=device, last=None, last_handle=-1, captured=(0, None))


def _streams(count: int) -> list[Stream]:
    return [Stream(cuda_stream=handle, waits=[]) for handle in range(1, count + 1)]


def _exchange(
    memory: SimpleNamespace, stream: Stream, *, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    peer_trip._order(memory, stream)


def test_exchanges_follow_those_ahead_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured between two of them does not run, and is waited for by none."""
    memory = _memory({2: 7})
    first, captured, second = _streams(3)
    for stream, is_captured in ((first, False), (captured, True), (second, False), (second, False)):
        _exchange(memory, stream, captured=is_captured, monkeypatch=monkeypatch)
    assert [first.waits, captured.waits, second.waits] == [[], [], [1]]
    assert (memory.last, memory.last_handle) == (second, 3)


def test_exchanges_of_one_capture_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """On streams that fork in it, and back on the first one; those of the next capture wait for none of them."""
    memory = _memory(captures := {1: 7, 2: 7})
    eager, forked, _ = streams = _streams(3)
    _exchange(memory, eager, captured=False, monkeypatch=monkeypatch)
    for stream in (eager, forked, forked, eager):
        _exchange(memory, stream, captured=True, monkeypatch=monkeypatch)
    assert [eager.waits, forked.waits] == [[2], [1]]
    captures.update({2: 8, 3: 8})
    for stream in streams[:0:-1]:
        _exchange(memory, stream, captured=True, monkeypatch=monkeypatch)
    assert [one.waits for one in streams] == [[2], [1, 3], []]
    assert (memory.last, memory.last_handle) == (eager, 1)
