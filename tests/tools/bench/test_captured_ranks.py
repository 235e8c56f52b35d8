"""What `bench parallel` says of calls as CUDA graphs, with stand-ins for the graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from omnicupy.tools.bench import captured_ranks  # noqa: E402 - after what it needs
from omnicupy.tools.bench.torch_passes import forward  # noqa: E402


class Graph:
    """Does the call again, and writes where it wrote before. stale: not what the inputs have become."""

    stale = False

    def __init__(self, call: Any) -> None:
        self.call, self.results = call, [one.clone() for one in call()]
        self.first = [one.clone() for one in self.results]

    def __call__(self) -> Any:
        for to, new in zip(self.results, self.first if self.stale else self.call(), strict=True):
            to.copy_(new)
        return self.results


def _problem(others: float = 0.0) -> Any:
    """others: the greatest value of the other ranks."""
    on_gpu = SimpleNamespace(type="cuda")
    return SimpleNamespace(device=on_gpu, slowest=lambda value: max(value, others), time=lambda call: 1.5)


def _own() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 5, 4, generator=generator) for _ in range(4)]


CALLS = {"a way": lambda q, k, v: q * k + v}


@pytest.mark.parametrize("stale", [False, True])
def test_replays_on_other_inputs_are_compared(stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_ranks, "Captured", Graph)
    monkeypatch.setattr(Graph, "stale", stale)
    assert captured_ranks.checked(_problem(), _own(), CALLS) == {"captured bits": not stale}
    assert captured_ranks.checked(_problem(1.0), _own(), CALLS) == {
        "captured bits": "another rank could not capture it"
    }


def test_calls_are_timed_as_they_are_and_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_ranks, "Captured", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = captured_ranks.figures(_problem(), _own(), forward, CALLS, lambda: None)
    assert found.pop("a way, captured, ms") == 1.5
    names = ("one device", "a way", "a way, captured")
    assert set(found) == {f"{name}, in a row, ms" for name in names}

    def fails(call: Any) -> Any:
        try:
            raise RuntimeError("no\nstream")
        finally:
            raise ValueError("the capture failed")  # as its end does

    monkeypatch.setattr(captured_ranks, "Captured", fails)
    found = captured_ranks.figures(_problem(), _own(), forward, CALLS, lambda: None)
    assert found["a way, captured"] == "RuntimeError: no"
    assert captured_ranks.checked(_problem(), _own(), CALLS) == {"captured bits": "RuntimeError: no"}
