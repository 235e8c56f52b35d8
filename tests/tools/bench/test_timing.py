"""bench/timing.py: what is done before a sample."""

from __future__ import annotations

import numpy_gpu
import pytest

from omnicupy.tools.bench import timing


def test_a_cache_is_left_full_of_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes and reads come before each sample; what is read has the size of what is written."""
    fake = numpy_gpu.install(monkeypatch)
    order: list[str] = []
    clock = timing.Clock(fake, 96, "read")
    assert clock._read.nbytes == 96

    class Watched:
        def max(self, axis: int) -> None:
            order.append(f"read {axis}")

    clock._read = Watched()
    clock.sample(lambda: order.append("call"))
    clock.sample(lambda: order.append("call"), flush=False)
    assert order == ["read 1", "call", "call"]
    with pytest.raises(ValueError, match="flush: expected one of write, read, got 'none'"):
        timing.Clock(fake, 96, "none")
