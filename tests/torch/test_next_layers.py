"""The layers of a step behind its first one: launched as the whole way would, and sent there where anything differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_steps import BATCH, HEADS, KEYS, PAGE, Step, given_to, new_out, new_sinks  # noqa: E402
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit import cache  # noqa: E402
from omnicupy.torch import next_layers, state  # noqa: E402

_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


@pytest.mark.parametrize("paged", [False, True], ids=["one piece", "pages"])
@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {"scale": 0.25, "softcap": 30.0},
        lambda: {"sink_logits": new_sinks()},
        lambda: {"out": new_out()},
        lambda: {"return_lse": True},
    ],
    ids=["plain", "numbers", "sinks", "out", "lse"],
)
def test_later_layers_are_launched_as_the_first_one(
    device: Any, monkeypatch: pytest.MonkeyPatch, paged: bool, options: Callable[[], dict[str, Any]]
) -> None:
    step = Step(monkeypatch, paged=paged)
    for _ in range(3):
        q, kv, given = step.q(), step.caches(), options()
        found = step(q, kv, **given)
        last = device.launches[-1]["params"]
        out, lse = found if "return_lse" in given else (found, None)
        k, v = (kv.k_pages, kv.v_pages) if paged else (kv.k, kv.v)
        addresses = [x.data_ptr() for x in (q, k, v, out)] + [0 if lse is None else lse.data_ptr()]
        assert [int(last[name]) for name in ("q", "k", "v", "out", "lse")] == addresses
        assert (out.shape, out.dtype) == (q.shape, q.dtype)
        if "out" in given:
            assert out is given["out"]
        if "sink_logits" in given:
            assert int(last["sink_logits"]) == given["sink_logits"].data_ptr()
    assert step.taken == [False, True, True]
    _, first, *later = given_to(device)
    assert later == [first, first]


def test_numbers_are_compared_by_value_and_type(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    step(scale=0.125)
    step(scale=float("0.125"))
    assert step.taken == [False, True]
    step(scale=0.25)
    step()
    assert step.taken[2:] == [False, False]
    with pytest.raises(TypeError, match="scale"):
        step(scale="0.125")
    step = Step(monkeypatch)
    step(scale=1)
    with pytest.raises(TypeError, match="scale"):
        step(scale=True)


OTHERS: dict[str, Callable[[Step], dict[str, Any]]] = {
    "scale": lambda step: {"scale": 0.5},
    "softcap": lambda step: {"softcap": 9.0},
    "sinks": lambda step: {"sink_logits": new_sinks()},
    "out": lambda step: {"out": new_out()},
    "strides of q": lambda step: {"q": cuda(_zeros(BATCH, HEADS, 1, 64, dtype=torch.bfloat16))},
    "strides of k": lambda step: {
        "kv": oc.CachedKV(
            cuda(_zeros(BATCH, KEYS, 2, 64, dtype=torch.bfloat16).transpose(1, 2)),
            step.caches().v,
            step.lengths,
        )
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_goes_the_whole_way(device: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    step = Step(monkeypatch)
    step()
    count = len(device.launches)
    step(**OTHERS[name](step))
    assert step.taken == [False, False]
    assert len(device.launches) == count + 1
    step()
    assert step.taken[2]  # the first layer's call stays the one that others are compared with


@pytest.mark.parametrize("name", ["any_autocast", "modes", "jit_traces", "transform", "tangents", "tracer"])
def test_calls_that_torch_looks_at_go_the_whole_way(
    device: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    step = Step(monkeypatch)
    step()
    with monkeypatch.context() as patched:
        if name == "tangents":
            patched.setattr(torch.autograd.forward_ad, "_current_level", 0)
        else:
            patched.setattr(state, name, lambda: True)
        watched: AbstractContextManager[Any] = (
            nullcontext() if name in ("any_autocast", "tracer") else pytest.raises(oc.UnsupportedError)
        )
        with watched:
            step()
    assert not step.taken[1]


def test_frames_that_are_compiled_never_come_here(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile would make code of them, with guards on what the step keeps."""
    step = Step(monkeypatch)
    step()
    monkeypatch.setattr(next_layers, "again", lambda *given: pytest.fail("it was called"))
    monkeypatch.setattr(state, "tracer", lambda: True)
    step()
    assert len(device.launches) == 3


def test_other_kernels_go_the_whole_way(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    step()
    monkeypatch.setattr(cache, "epoch", cache.epoch + 1)
    step()
    assert step.taken == [False, False]


def test_another_table_goes_the_whole_way(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch, paged=True)
    step()
    kv = step.caches()
    kv.page_table = cuda(_zeros(BATCH, KEYS // PAGE, dtype=torch.int32))
    step(kv=kv)
    assert int(device.launches[-1]["params"]["page_table"]) == kv.page_table.data_ptr()
    assert step.taken == [False, False]


def test_rows_are_those_of_the_step(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch)
    rows = cuda(_zeros(BATCH + 1, dtype=torch.int32))
    queries = [cuda(_zeros(9, HEADS, 64, dtype=torch.bfloat16)) for _ in range(3)]
    step.made = oc.torch.plan(queries[0], step.caches(), oc.cached(), rows=rows, max_rows=5)
    for q in queries[:2]:
        assert step(q).shape == q.shape
    *_, first, second = given_to(device)
    assert second == first
    # torch fills new tensors then, which shows in rows of no sequence.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    step(queries[2])
    assert step.taken == [False, True, False]
    step = Step(monkeypatch)
    step()
    step()
    assert step.taken == [False, True]


def test_scales_that_are_set_later_go_the_whole_way(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch, dtype=torch.float8_e4m3fn)
    kv = step.caches()
    step(kv=kv)
    step(kv=kv)
    kv.k_scale = cuda(_zeros(2))
    step(kv=kv)
    assert int(device.launches[-1]["params"]["k_scale"]) == kv.k_scale.data_ptr()
    assert step.taken == [False, True, False]
