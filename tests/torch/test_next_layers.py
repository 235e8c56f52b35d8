"""The layers of a step behind its first one: launched as the whole way would, and sent there where anything differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from fake_tensor import cuda  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.jit import cache  # noqa: E402
from omnicupy.torch import next_layers, state  # noqa: E402

BATCH, HEADS, KEYS, PAGE = 3, 8, 64, 16
_zeros = torch.zeros


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensor.install(monkeypatch)


class Step:
    """A step, and what its layers are called with. taken: of each call since, whether it was as the first one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, paged: bool = False, **options: Any) -> None:
        self.paged, self.options = paged, options
        self.lengths = cuda(_zeros(BATCH, dtype=torch.int32))
        self.table = cuda(_zeros(BATCH, KEYS // PAGE, dtype=torch.int32))
        self.made = oc.torch.plan(self.q(), self.caches(), oc.cached(window=30))
        self.taken: list[bool] = []
        launched = next_layers._launched

        def launches(*given: Any) -> Any:
            self.taken[-1] = True
            return launched(*given)

        monkeypatch.setattr(next_layers, "_launched", launches)

    def q(self, dtype: Any = torch.bfloat16) -> Any:
        return cuda(_zeros(BATCH, 1, HEADS, 64, dtype=dtype).transpose(1, 2))

    def caches(self, columns: int = 64) -> Any:
        if self.paged:
            pools = (cuda(_zeros(9, PAGE, 2, columns, dtype=torch.bfloat16)) for _ in "kv")
            return oc.PagedKV(*pools, self.table, self.lengths)
        pools = (cuda(_zeros(BATCH, 2, KEYS, columns, dtype=torch.bfloat16)) for _ in "kv")
        return oc.CachedKV(*pools, self.lengths)

    def __call__(self, q: Any = None, kv: Any = None, v: Any = None, **options: Any) -> Any:
        self.taken.append(False)
        q, kv = self.q() if q is None else q, self.caches() if kv is None else kv
        return oc.torch.attention(q, kv, v, self.made, **self.options | options)


def _given(device: Any) -> list[dict[str, int]]:
    """The parameters of all launches but the addresses of arrays that are a layer's own."""
    own = {"q", "k", "v", "out", "lse", "sink_logits", "q_map", "k_map", "v_map"}
    return [
        {name: one[name].tobytes() for name in one.dtype.names if name not in own}
        for one in (launch["params"] for launch in device.launches)
    ]


def _sinks() -> Any:
    return cuda(_zeros(HEADS))


def _out() -> Any:
    return cuda(_zeros(BATCH, 1, HEADS, 64, dtype=torch.bfloat16).transpose(1, 2))


@pytest.mark.parametrize("paged", [False, True], ids=["one piece", "pages"])
@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {"scale": 0.25, "softcap": 30.0},
        lambda: {"sink_logits": _sinks()},
        lambda: {"out": _out()},
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
    _, first, *later = _given(device)
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
    "sinks": lambda step: {"sink_logits": _sinks()},
    "out": lambda step: {"out": _out()},
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


@pytest.mark.parametrize(
    "name", ["any_autocast", "modes", "jit_traces", "transform", "has_tangents", "tracer"]
)
def test_calls_that_torch_looks_at_go_the_whole_way(
    device: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    step = Step(monkeypatch)
    step()
    with monkeypatch.context() as patched:
        patched.setattr(state, name, lambda: True)
        watched: AbstractContextManager[Any] = (
            nullcontext() if name in ("any_autocast", "tracer") else pytest.raises(oc.UnsupportedError)
        )
        with watched:
            step()
    assert not step.taken[1]


def test_other_kernels_streams_and_addresses_go_the_whole_way(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(monkeypatch)
    step()
    monkeypatch.setattr(cache, "epoch", cache.epoch + 1)
    step()
    assert step.taken == [False, False]
    monkeypatch.undo()


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
    step(sink_logits=_sinks())
    sinks = _sinks()
    sinks.address += 2
    with pytest.raises(ValueError, match="sink_logits"):
        step(sink_logits=sinks)
    assert step.taken == [False, False, False, False]
