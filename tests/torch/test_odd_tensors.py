"""Every argument of omnicupy.torch as each odd tensor: a result, or an error in the library's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
import odd_tensors  # noqa: E402
import odd_values  # noqa: E402
from fake_tensor import cuda  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy import parallel  # noqa: E402

Q, NEW = torch.zeros(odd_tensors.SHAPE), torch.zeros((1, 1, 1, 8))
LENGTHS, TABLE = torch.tensor([6], dtype=torch.int32), torch.tensor([[1, 0]], dtype=torch.int32)
CACHED = {"k": torch.zeros((1, 1, 8, 8)), "v": torch.zeros((1, 1, 8, 8)), "lengths": LENGTHS}
PAGED = {
    "k_pages": torch.zeros((2, 4, 1, 8)),
    "v_pages": torch.zeros((2, 4, 1, 8)),
    "page_table": TABLE,
    "lengths": LENGTHS,
}
SCALES = {"k_scale": None, "v_scale": None}
OPTIONS: dict[str, Any] = {"scale": None, "sink_logits": None, "softcap": None, "out": None, "split": None}
RAGGED = {"rows": None, "max_rows": None}


def attention(caches: Any, **given: Any) -> None:
    names = [name for name in given if name in CACHED | PAGED | SCALES]
    oc.torch.attention(Q, caches(**{name: given.pop(name) for name in names}), mask=oc.cached(), **given)


def append(caches: Any, k_new: Any, v_new: Any, slots: Any, **of_caches: Any) -> None:
    oc.torch.append(caches(**of_caches), k_new, v_new, slots)


def mask_of(**given: Any) -> None:
    oc.torch.from_mask_mod(lambda b, h, q, k: q >= k, **given)


def cases() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    plain = {"q": Q, "k": Q, "v": Q, "mask": None} | OPTIONS
    yield "attention", oc.torch.attention, plain | RAGGED
    yield "prepare", partial(oc.torch.prepare, gradients=True), plain | RAGGED | {"max_length": None}
    for name, caches, arrays in (("cached", oc.CachedKV, CACHED), ("paged", oc.PagedKV, PAGED)):
        yield name, partial(attention, caches), arrays | SCALES | OPTIONS | RAGGED
        new = {"k_new": NEW, "v_new": NEW, "slots": None}
        yield f"append, {name}", partial(append, caches), arrays | SCALES | new
    kv = oc.CachedKV(**CACHED)
    yield (
        "plan",
        oc.torch.plan,
        {"q": Q, "kv": kv, "mask": oc.cached(), "softcap": None, "split": None} | RAGGED,
    )
    yield "mask_mod", mask_of, {"q_len": 4, "k_len": 4, "batch": 1, "heads": 1, "device": "cpu"}


CASES = {name: (call, good) for name, call, good in cases()}


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", CASES)
def test_odd_tensors_never_fail_inside(name: str) -> None:
    call, good = CASES[name]
    with torch.no_grad():
        call(**good)
        assert not odd_values.raw_errors(call, good, odd_tensors.odd)


@pytest.mark.parametrize("name", CASES)
def test_tensors_whose_elements_lie_elsewhere_are_refused_by_name(name: str) -> None:
    """On a GPU a kernel would read what lies at their address."""
    call, good = CASES[name]
    for argument in set(good) & {
        *CACHED,
        *PAGED,
        *SCALES,
        "q",
        "sink_logits",
        "out",
        "k_new",
        "v_new",
        "slots",
    }:
        for value in (*odd_tensors.unreadable(),)[:3]:  # negated, and zeros without memory
            with torch.no_grad(), pytest.raises(oc.UnsupportedError, match=f"^{argument} (is|holds)"):
                call(**good | {argument: value})


class Sees(TorchDispatchMode):
    """Sends calls through the dispatcher."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _seen(given: Any, how: Any) -> Any:
    with Sees():
        return oc.torch.attention(*given, **how)


WAYS: dict[str, Callable[..., Any]] = {
    "eager": oc.torch.attention,
    "a mode": lambda *given, **how: _seen(given, how),
    "a subclass": lambda *given, **how: oc.torch.attention(
        *(one.as_subclass(odd_tensors.Derived) for one in given), **how
    ),
    "vmap": lambda *given, **how: torch.func.vmap(lambda *one: oc.torch.attention(*one, **how))(
        *(one[None] for one in given)
    ),
    "torch.compile": lambda *given, **how: torch.compile(
        lambda *one: oc.torch.attention(*one, **how), backend="eager"
    )(*given),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_no_gradient_of_a_number_is_lost(name: str, way: str) -> None:
    """The dispatcher makes a number of a tensor, and of True."""
    q = torch.randn(odd_tensors.SHAPE, requires_grad=True)
    for value in (torch.nn.Parameter(torch.tensor(0.5)), torch.tensor(0.5), True):
        with pytest.raises(Exception, match=f"{name} must be a number or None"):
            WAYS[way](q, q, q, **{name: value})
    assert WAYS[way](q, q, q, **{name: 0.5}).requires_grad


def test_on_a_device_no_negated_view_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_tensor.install(monkeypatch)
    half = torch.float16
    k, v, new = (cuda(torch.zeros(shape, dtype=half)) for shape in ((1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 1, 8)))
    kv = oc.CachedKV(k, v, cuda(LENGTHS))
    negated = cuda(torch._neg_view(torch.ones((1, 1, 1, 8), dtype=half)))
    for given in ((negated, new), (new, negated)):
        with torch.no_grad(), pytest.raises(oc.UnsupportedError, match=r"^[kv]_new is a negated view; pass"):
            oc.torch.append(kv, *given)
    scale = cuda(torch._neg_view(torch.ones(1)))
    scaled = oc.CachedKV(k, v, kv.lengths, k_scale=scale)
    with torch.no_grad(), pytest.raises(oc.UnsupportedError, match=r"^k_scale is a negated view; pass"):
        oc.torch.attention(new, scaled, mask=oc.cached())
    assert not device.launches


def test_nested_tensors_are_no_shards() -> None:
    plan = parallel.plan(oc.causal(4), 1)
    nested = next(one for one in odd_tensors.unreadable() if one.is_nested)
    for call in (partial(plan.shard, rank=0), plan.shift, lambda x: plan.unshard([x])):
        with pytest.raises(
            TypeError, match="must be an array or a tensor that has a shape, got Tensor; convert it"
        ):
            call(nested)
