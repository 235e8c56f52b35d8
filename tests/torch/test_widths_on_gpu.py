"""Values of another width than keys on a CUDA device: numbers and gradients as exact as torch's, compiled, refusals."""

from __future__ import annotations

from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import omnicupy.torch  # noqa: E402 - needs torch

TOKENS = 700
WIDTHS = [(192, 128), (128, 192), (64, 128), (96, 64), (256, 128), (24, 16)]

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("torch_cuda")]


def _inputs(widths: tuple[int, int], dtype: Any = torch.bfloat16) -> list[Any]:
    """Transposed views of (batch, tokens, heads, columns) tensors, and the gradient of the output."""
    torch.manual_seed(0)
    shapes = ((4, widths[0]), (2, widths[0]), (2, widths[1]), (4, widths[1]))
    made = [torch.randn(2, TOKENS, *shape, device="cuda").to(dtype).transpose(1, 2) for shape in shapes]
    return [x.requires_grad_(i < 3) for i, x in enumerate(made)]


def _mask() -> oc.Mask:
    return oc.random(TOKENS, 1, text=(20, 90), image=(60, 200))


def _sdpa(q: Any, k: Any, v: Any, mask: oc.Mask) -> Any:
    seen = torch.from_numpy(mask.to_dense()).to(q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)


def _found(call: Any, inputs: list[Any], mask: oc.Mask) -> list[Any]:
    *qkv, dout = inputs
    out = call(*qkv, mask)
    return [out.detach(), *torch.autograd.grad(out, qkv, dout)]


def _errors(found: list[Any], exact: list[Any]) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_results_and_gradients_are_as_exact_as_sdpa_s(dtype: Any, widths: tuple[int, int]) -> None:
    inputs, mask = _inputs(widths, dtype), _mask()
    found = _found(oc.torch.attention, inputs, mask)
    assert found[0].shape == (2, 4, TOKENS, widths[1])
    exact = _found(_sdpa, [x.detach().double().requires_grad_(x.requires_grad) for x in inputs], mask)
    ours, theirs = _errors(found, exact), _errors(_found(_sdpa, inputs, mask), exact)
    assert all(0 < a <= 2 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    again = _found(oc.torch.attention, inputs, mask)
    assert all(map(torch.equal, found, again)), "the same call gives the same bits"


def test_given_memory_is_written_whole() -> None:
    inputs, mask = [x.detach() for x in _inputs((192, 128))], _mask()
    target = torch.full((2, TOKENS, 4, 128), torch.nan, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    assert oc.torch.attention(*inputs[:3], mask, out=target) is target
    assert torch.equal(target, oc.torch.attention(*inputs[:3], mask))


def test_compiled_is_eager(compiler: Any) -> None:
    layer = torch.compile(lambda q, k, v, mask: oc.torch.attention(q, k, v, mask), fullgraph=True)
    inputs, mask = _inputs((192, 128)), _mask()
    assert all(map(torch.equal, _found(layer, inputs, mask), _found(oc.torch.attention, inputs, mask)))


def test_a_pair_that_no_kernel_takes_is_refused() -> None:
    q, k, v, _ = _inputs((576, 512))
    with pytest.raises(oc.UnsupportedError, match="v has 512 columns where q and k have 576"):
        oc.torch.attention(q, k, v)
