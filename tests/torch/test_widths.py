"""Values of another width than keys on torch tensors: eager, autograd, compiled, as operators, transforms, caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.torch  # noqa: E402
from omnicupy.torch import operator  # noqa: E402

OPS = torch.ops.omnicupy
WIDTHS = [(24, 16), (16, 40), (192, 128)]
MASK = oc.causal(9, 11)


def _inputs(widths: tuple[int, int] = (24, 16), dtype: Any = torch.float64, grad: bool = True) -> list[Any]:
    """q, k and v, as transposed views of (batch, tokens, heads, columns)."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 9, 4, widths[0]), (2, 11, 2, widths[0]), (2, 11, 2, widths[1]))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [one.transpose(1, 2).requires_grad_(grad) for one in made]


def _sinks(grad: bool = True) -> Any:
    return torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64).requires_grad_(grad)


def plain(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """What defines it, in torch's own operations."""
    k, v = (one.repeat_interleave(2, dim=-3) for one in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = torch.where(torch.from_numpy(mask.to_dense()), scores, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


def _gradients(call: Any, inputs: list[Any], mask: Any = MASK) -> list[Any]:
    out = call(*inputs, mask)
    weights = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)
    return [out, *torch.autograd.grad((out * weights).square().sum(), inputs)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_results_and_gradients_are_those_of_plain_torch(widths: tuple[int, int]) -> None:
    found = _gradients(oc.torch.attention, _inputs(widths))
    assert found[0].shape == (2, 4, 9, widths[1])
    assert found[0].is_contiguous()
    for one, other in zip(found, _gradients(plain, _inputs(widths)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_numbers_are_those_of_scaled_dot_product_attention(dtype: Any) -> None:
    q, k, v = _inputs(dtype=dtype, grad=False)
    dense = torch.from_numpy(MASK.to_dense())
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, dense, enable_gqa=True)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    found = oc.torch.attention(q, k, v, MASK)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("widths", [(4, 3), (3, 5)])
def test_gradcheck(widths: tuple[int, int]) -> None:
    inputs, sinks = _inputs(widths), _sinks()

    def call(q: Any, k: Any, v: Any, sinks: Any) -> Any:
        return oc.torch.attention(q, k, v, MASK, sink_logits=sinks, softcap=2.0, return_lse=True)

    assert torch.autograd.gradcheck(call, (*inputs, sinks))


def test_a_loss_of_lse_alone() -> None:
    """Autograd hands no gradient of out on, which is one of out's shape."""
    inputs = _inputs()
    _, lse = oc.torch.attention(*inputs, MASK, return_lse=True)
    lse.sum().backward()
    q, k, v = _inputs()
    scores = q @ k.repeat_interleave(2, dim=1).transpose(2, 3) * 24**-0.5
    torch.logsumexp(scores.masked_fill(~torch.from_numpy(MASK.to_dense()), -torch.inf), 3).sum().backward()
    torch.testing.assert_close(inputs[0].grad, q.grad)
    torch.testing.assert_close(inputs[1].grad, k.grad)
    assert inputs[2].grad.shape == v.shape
    assert not inputs[2].grad.any()


def test_out_is_written_or_refused() -> None:
    inputs = _inputs(dtype=torch.float32, grad=False)
    out = torch.full((2, 9, 4, 16), torch.nan).transpose(1, 2)
    assert oc.torch.attention(*inputs, MASK, out=out) is out
    assert torch.equal(out, oc.torch.attention(*inputs, MASK))
    with pytest.raises(ValueError, match=r"^out must have the shape of q with the width of v \(16\)"):
        oc.torch.attention(*inputs, MASK, out=torch.empty(2, 4, 9, 24))
    with pytest.raises(ValueError, match=r"^v must have the batch, heads and tokens of k \(2, 2, 11\)"):
        oc.torch.attention(*inputs[:2], inputs[2][:, :, :10], MASK)
    with pytest.raises(ValueError, match=r"^v must have 4 axes"):
        oc.torch.attention(*inputs[:2], inputs[2][0, 0, 0], MASK)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_is_eager(grad: bool, dynamic: bool, compiler: Any) -> None:
    def layer(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return oc.torch.attention(q * 1, k, v, mask) + 1

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for widths in ((24, 16), (16, 24)):
        found = []
        for run in (layer, compiled):
            inputs = _inputs(widths, torch.float32, grad)
            found.append(_gradients(run, inputs) if grad else [run(*inputs, MASK)])
        assert all(map(torch.equal, *found))
    assert compiler["stats"]["unique_graphs"] <= 2


def test_inductor(compiler: Any) -> None:
    def layer(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return oc.torch.attention(q * 2, k, v, mask).transpose(1, 2).flatten(2) + 1

    inputs = _inputs(dtype=torch.float32, grad=False)
    found = torch.compile(layer, fullgraph=True)(*inputs, MASK)
    torch.testing.assert_close(found, layer(*inputs, MASK))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("tokens_first", [False, True])
def test_the_operators_keep_torch_s_contract(requires_grad: bool, tokens_first: bool) -> None:
    inputs = _inputs(grad=requires_grad)
    rest = ([MASK.handle], None, True, True, tokens_first)
    torch.library.opcheck(OPS.attention.default, (*inputs, *rest))
    if not requires_grad:
        target = torch.empty(2, 4, 9, 16, dtype=torch.float64)
        torch.library.opcheck(OPS.attention_out.default, (*inputs, target, [MASK.handle], None, True))
        out, lse = OPS.attention(*inputs, *rest)
        for grads in ((out, lse), (out, None), (None, lse)):
            saved = (*grads, *inputs, out, lse, [MASK.handle], None)
            torch.library.opcheck(OPS.attention_backward.default, (*saved, [True, False, True, False], True))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("tokens_first", [False, True])
def test_fake_tensors_have_the_shapes_and_strides(widths: tuple[int, int], tokens_first: bool) -> None:
    arguments = ([MASK.handle], None, True, True, tokens_first)
    real = OPS.attention(*_inputs(widths, grad=False), *arguments)
    with FakeTensorMode() as mode:
        fake = OPS.attention(*(mode.from_tensor(one) for one in _inputs(widths, grad=False)), *arguments)
    for one, other in zip(fake, real, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    assert operator.new_out(*_inputs(widths, grad=False)[::2], tokens_first).stride() == real[0].stride()


def test_transforms() -> None:
    q, k, v = _inputs(grad=False)
    for call in (
        lambda f: torch.func.grad(lambda *x: f(*x, MASK).square().sum(), (0, 1, 2))(q, k, v),
        lambda f: torch.func.vjp(lambda *x: f(*x, MASK), q, k, v)[1](torch.ones(2, 4, 9, 16).double()),
        lambda f: (torch.vmap(lambda *x: f(*x, MASK))(*(one[:, None] for one in (q, k, v))),),
    ):
        for one, other in zip(call(oc.torch.attention), call(plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_under_autocast() -> None:
    inputs = _inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = oc.torch.attention(*inputs, MASK)
    assert (out.dtype, out.shape) == (torch.bfloat16, (2, 4, 9, 16))
    out.sum().backward()
    assert [one.grad.shape for one in inputs] == [one.shape for one in inputs]


def test_masks_of_a_list_and_split() -> None:
    inputs, masks = _inputs(grad=False), [MASK, oc.full(9, 11)]
    out = oc.torch.attention(*inputs, masks, split=384)
    assert np.array_equal(out.numpy(), oc.attention(*(one.numpy() for one in inputs), masks))
    oc.torch.prepare(*inputs, masks, out=torch.empty_like(out), gradients=True)


@pytest.mark.parametrize("q_len", [1, 2])
def test_caches(q_len: int) -> None:
    q, k, v = _inputs((24, 16), torch.float32, grad=False)
    q, lengths = q[:, :, :q_len], torch.tensor([11, 7], dtype=torch.int32)
    kv, rule = oc.CachedKV(k, v, lengths), oc.cached(window=5, sink=1)
    arrays = [one.numpy() for one in (q, k, v)]
    wanted = oc.attention(arrays[0], oc.CachedKV(*arrays[1:], lengths.numpy()), mask=rule)
    assert wanted.shape == (2, 4, q_len, 16)
    for mask in (rule, oc.torch.plan(q, kv, rule)):
        out = torch.empty(wanted.shape)
        assert oc.torch.attention(q, kv, mask=mask, out=out) is out
        for found in (out, oc.torch.attention(q, kv, mask=mask)):
            assert np.array_equal(found.numpy(), wanted)
