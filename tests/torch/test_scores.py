"""sink_logits and softcap on torch tensors: eager, autograd, compiled, as operators, under autocast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402

OPS = torch.ops.omnicupy
CHANGES: list[dict[str, Any]] = [
    {"softcap": 1.5},
    {"sink_logits": True},
    {"softcap": 1.5, "sink_logits": True},
]


def _inputs(dtype: Any = torch.float64, grad: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 40, 16), (2, 2, 50, 16), (2, 2, 50, 16))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [one.requires_grad_(grad) for one in made]


def _sinks(dtype: Any = torch.float64, grad: bool = True) -> Any:
    return torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=dtype).requires_grad_(grad)


def _options(changes: dict[str, Any], sinks: Any) -> dict[str, Any]:
    return {name: sinks if name == "sink_logits" else value for name, value in changes.items()}


def plain(q: Any, k: Any, v: Any, mask: Any, softcap: Any = None, sink_logits: Any = None) -> Any:
    """What defines them, in torch's own operations."""
    seen = torch.from_numpy(mask.to_dense())
    k, v = (one.repeat_interleave(2, dim=1) for one in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = torch.where(seen, scores, -torch.inf)
    if sink_logits is not None:
        own = sink_logits[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, own], dim=3)
    return torch.softmax(scores, dim=3)[..., : k.shape[2]] @ v


@pytest.mark.parametrize("changes", CHANGES, ids=lambda one: "-".join(one))
def test_results_and_gradients_are_those_of_plain_torch(changes: dict[str, Any]) -> None:
    mask = oc.causal(40, 50)
    found, wanted = [], []
    for call, into in ((oc.torch.attention, found), (plain, wanted)):
        inputs, sinks = _inputs(), _sinks()
        out = call(*inputs, mask, **_options(changes, sinks))
        (out * torch.linspace(-1, 1, 16, dtype=out.dtype)).sum().backward()
        into += [out, *(one.grad for one in inputs)]
        into += [sinks.grad] if "sink_logits" in changes else []
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda one: "-".join(one))
def test_gradcheck_with_lse(changes: dict[str, Any]) -> None:
    inputs, sinks, mask = [one.detach()[:1, :, :7].clone() for one in _inputs()], _sinks(), oc.causal(7, 7)
    inputs = [one.requires_grad_() for one in inputs]
    names = ["q", "k", "v"] + ["sink_logits"] * ("sink_logits" in changes)
    rest = {name: value for name, value in changes.items() if name != "sink_logits"}

    def call(*given: Any) -> Any:
        return oc.torch.attention(**dict(zip(names, given, strict=True)), mask=mask, return_lse=True, **rest)

    assert torch.autograd.gradcheck(call, (*inputs, sinks)[: len(names)])


def test_only_the_sink_needs_a_gradient() -> None:
    inputs, sinks = _inputs(grad=False), _sinks()
    oc.torch.attention(*inputs, oc.causal(40, 50), sink_logits=sinks).sum().backward()
    whole = _sinks()
    oc.torch.attention(*_inputs(), oc.causal(40, 50), sink_logits=whole).sum().backward()
    assert torch.equal(sinks.grad, whole.grad)
    assert sinks.grad.abs().sum() > 0


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("changes", CHANGES, ids=lambda one: "-".join(one))
def test_compiled_is_eager(changes: dict[str, Any], grad: bool) -> None:
    mask = oc.causal(40, 50)
    names = sorted(changes)

    def layer(q: Any, k: Any, v: Any, sinks: Any) -> Any:
        return oc.torch.attention(q * 1, k, v, mask, **_options(changes, sinks * 1))

    found = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        inputs, sinks = _inputs(torch.float32, grad), _sinks(torch.float32, grad)
        out = run(*inputs, sinks)
        if grad:
            out.square().sum().backward()
        found.append([out, *(one.grad for one in (*inputs, sinks) if one.grad is not None)])
    assert len(found[0]) == (1 + 3 * grad + grad * ("sink_logits" in names))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_operators_keep_torch_s_contract(requires_grad: bool) -> None:
    mask = oc.causal(40, 50)
    inputs, sinks = _inputs(torch.float32, requires_grad), _sinks(torch.float32, requires_grad)
    for given in ((sinks, 2.0), (sinks, None), (None, 2.0)):
        arguments = (*inputs, [mask.handle], None, True, True, False, *given)
        torch.library.opcheck(OPS.attention.default, arguments)
    if not requires_grad:
        arguments = (*inputs, torch.empty(inputs[0].shape), [mask.handle], None, True, sinks, 2.0)
        torch.library.opcheck(OPS.attention_out.default, arguments)
        out, lse = oc.torch.attention(*inputs, mask, sink_logits=sinks, softcap=2.0, return_lse=True)
        saved = (torch.ones_like(out), torch.ones_like(lse), *inputs, out, lse)
        rest = ([mask.handle], None, [True, False, True, True], True, sinks, 2.0)
        torch.library.opcheck(OPS.attention_backward.default, (*saved, *rest))


def test_transforms_reach_the_sink() -> None:
    q, k, v = _inputs(grad=False)
    mask = oc.causal(40, 50)

    def loss(sinks: Any) -> Any:
        return oc.torch.attention(q, k, v, mask, sink_logits=sinks, softcap=2.0).square().sum()

    sinks = _sinks()
    loss(sinks).backward()
    torch.testing.assert_close(torch.func.grad(loss)(_sinks(grad=False)), sinks.grad)


def test_under_autocast_sinks_stay_as_they_are() -> None:
    inputs, sinks, mask = _inputs(torch.float32), _sinks(torch.float32), oc.causal(40, 50)
    with torch.autocast("cpu", torch.bfloat16):
        out = oc.torch.attention(*inputs, mask, sink_logits=sinks, softcap=2.0)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert sinks.grad.dtype == torch.float32
    halves = [one.detach().bfloat16() for one in inputs]
    assert torch.equal(out, oc.torch.attention(*halves, mask, sink_logits=sinks.detach(), softcap=2.0))


def test_out_is_written() -> None:
    q, k, v = _inputs(torch.float32, grad=False)
    sinks, out = _sinks(torch.float32, grad=False), torch.full_like(q, torch.nan)
    found = oc.torch.attention(q, k, v, sink_logits=sinks, softcap=2.0, out=out)
    assert found is out
    arrays = [one.numpy() for one in (q, k, v)]
    assert np.array_equal(out.numpy(), oc.attention(*arrays, sink_logits=sinks.numpy(), softcap=2.0))


@pytest.mark.parametrize(
    ("sinks", "kind", "message"),
    [
        (np.zeros(4, np.float32), TypeError, "sink_logits must be a torch.Tensor, got numpy.ndarray"),
        (torch.zeros(4, dtype=torch.bfloat16), TypeError, "sink_logits must be float32 where q is float32"),
        (torch.zeros(3), ValueError, r"sink_logits must have the shape \(q heads,\)"),
        (torch.zeros(4, device="meta"), ValueError, "sink_logits must be on the device of q"),
        (torch.full((4,), torch.inf), ValueError, "sink_logits must hold numbers below infinity"),
    ],
)
def test_bad_sinks_are_named(sinks: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        oc.torch.attention(*_inputs(torch.float32, grad=False), sink_logits=sinks)


def test_prepare_checks_them() -> None:
    inputs = _inputs(torch.float32, grad=False)
    oc.torch.prepare(*inputs, sink_logits=_sinks(torch.float32, grad=False), softcap=3.0, gradients=True)
    with pytest.raises(ValueError, match="softcap must be finite"):
        oc.torch.prepare(*inputs, softcap=0.0)
    with pytest.raises(ValueError, match="sink_logits must have the shape"):
        oc.torch.prepare(*inputs, sink_logits=torch.zeros(2))


def test_out_is_refused_where_the_sink_needs_a_gradient() -> None:
    inputs = _inputs(torch.float32, grad=False)
    with pytest.raises(oc.UnsupportedError, match="out must be None where sink_logits requires a gradient"):
        oc.torch.attention(*inputs, sink_logits=_sinks(torch.float32), out=torch.empty_like(inputs[0]))
