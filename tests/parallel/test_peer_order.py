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


def test_exchanges_follow_those_ahead_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured between two of them does not run, and is waited for by none."""
    memory = SimpleNamespace(last=None, last_handle=-1)
    first, captured, second = (Stream(cuda_stream=handle, waits=[]) for handle in (1, 2, 3))
    for stream, is_capturing in ((first, False), (captured, True), (second, False), (second, False)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda of=is_capturing: of)
        peer_trip._order(memory, stream)
    assert [first.waits, captured.waits, second.waits] == [[], [], [1]]
    assert (memory.last, memory.last_handle) == (second, 3)
