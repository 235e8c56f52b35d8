"""What is refused in a first layer of a step is refused in the layers behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_steps import BATCH, HEADS, Step, new_out, new_sinks  # noqa: E402
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402

_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


def _scaled(kv: Any) -> Any:
    kv.k_scale = 0.5
    return kv


REFUSED: dict[str, tuple[Callable[[Step], dict[str, Any]], type[Exception], str]] = {
    "v": (lambda step: {"v": step.q()}, TypeError, "v must be left out"),
    "dtype": (lambda step: {"q": step.q(torch.float16)}, TypeError, "must"),
    "columns": (lambda step: {"kv": step.caches(72)}, ValueError, "must"),
    "lengths": (
        lambda step: {
            "kv": oc.CachedKV(step.caches().k, step.caches().v, cuda(_zeros(BATCH, dtype=torch.int32)))
        },
        ValueError,
        "another array of lengths",
    ),
    "no tensor": (lambda step: {"q": [1.0]}, TypeError, "q must be a torch.Tensor"),
    "sinks of another dtype": (
        lambda step: {"sink_logits": cuda(_zeros(HEADS, dtype=torch.float64))},
        TypeError,
        "sink_logits must be float32",
    ),
    "gradients": (lambda step: {"q": step.q().requires_grad_()}, oc.UnsupportedError, "no gradients"),
    "gradients of sinks": (
        lambda step: {"sink_logits": new_sinks().requires_grad_()},
        oc.UnsupportedError,
        "no gradients",
    ),
    "scales": (lambda step: {"kv": _scaled(step.caches())}, TypeError, "k_scale must be None"),
    "another device": (
        lambda step: {"q": cuda(_zeros(BATCH, 1, HEADS, 64, dtype=torch.bfloat16).transpose(1, 2), 1)},
        ValueError,
        "device",
    ),
    "config": (lambda step: {"config": "sm90"}, TypeError, "config"),
    "split": (lambda step: {"split": "2"}, TypeError, "split"),
    "rows": (lambda step: {"rows": step.lengths}, ValueError, "rows"),
    "max_rows": (lambda step: {"max_rows": 1}, ValueError, "rows"),
    "return_lse": (lambda step: {"return_lse": 1}, TypeError, "return_lse"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_later_layers(
    device: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    step = Step(monkeypatch)
    step()
    given, error, said = REFUSED[name]
    with pytest.raises(error, match=said):
        step(**given(step))
    assert step.taken == [False, False]


def test_an_output_on_an_input_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    step(out=new_out())
    q, out = step.q(), new_out()
    out.address = q.address + 32
    with pytest.raises(ValueError, match="out"):
        step(q, out=out)
    sinks = new_sinks()
    step = Step(monkeypatch)
    step(out=new_out(), sink_logits=new_sinks())
    out.address = sinks.address
    with pytest.raises(ValueError, match="sink_logits"):
        step(out=out, sink_logits=sinks)
    assert step.taken == [False, False]


def test_another_stream_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    step()
    device.torch_streams[0] = 8
    with pytest.raises(ValueError, match="the step was made on another stream"):
        step()
    device.torch_streams[0] = 7
    step()
    assert step.taken == [False, False, True]


def test_unaligned_arrays_are_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    step()
    q = step.q()
    q.address += 8
    with pytest.raises(ValueError, match="16"):
        step(q)
    step(sink_logits=new_sinks())
    sinks = new_sinks()
    sinks.address += 2
    with pytest.raises(ValueError, match="sink_logits"):
        step(sink_logits=sinks)
    assert step.taken == [False, False, False, False]
