"""Rivals in the modes whose gradients have the same bits each time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omnicupy.masks.constructors import causal
from omnicupy.tools.bench import peers, torch_inputs
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.workloads.workload import Workload


def test_gradients_of_a_peer_are_made_in_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch_inputs, "as_torch", torch.from_numpy)
    x = np.ones((1, 1, 4, 8), np.float32)
    shared = torch_inputs.Shared(
        Workload("tiny", 1, (1, 1, 8), lambda: causal(4), ""), causal(4), (x, x, x), x
    )
    modes = []

    def made(shared: Any, backend: str) -> peers.Peer:
        def call() -> Any:
            out = shared.q * shared.k * shared.v
            out.register_hook(lambda _: modes.append(torch.are_deterministic_algorithms_enabled()))
            return out

        return peers.Peer(call, call)

    monkeypatch.setattr(peers, "_sdpa", made)
    for name, same_bits in (("sdpa-flash", False), ("sdpa-flash-deterministic", True)):
        for timed in ("bwd", "fwd+bwd"):
            modes.clear()
            peers.prepare(name, shared, timed=PASSES[timed])
            assert modes == [same_bits]
            assert not torch.are_deterministic_algorithms_enabled()


def test_flash_attention_4_is_asked_for_the_same_bits_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = SimpleNamespace(flash_attn_func=lambda q, k, v, **how: asked.append(how) or q)
    monkeypatch.setattr(torch_inputs, "library", lambda name: module)
    shared = SimpleNamespace(kind="causal", bshd=(0, 0, 0))
    for name in ("fa4", "fa4-deterministic"):
        peers.SYSTEMS[name](shared).call()
    assert [one["deterministic"] for one in asked] == [False, True]
