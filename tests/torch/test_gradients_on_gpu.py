"""Gradients of omnicupy.torch on a CUDA device: numbers, streams, graphs, torch.compile, masks that are dropped."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.utils import checkpoint  # noqa: E402

import omnicupy.torch  # noqa: E402 - needs torch

TOKENS = 700


pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("torch_cuda")]


def _inputs(
    dtype: Any = torch.bfloat16, seed: int = 0, head_dim: int = 64, device: str = "cuda"
) -> list[Any]:
    """Transposed views of (batch, tokens, heads, head_dim) tensors, and the gradient of the output."""
    torch.manual_seed(seed)
    shapes = [(2, TOKENS, heads, head_dim) for heads in (4, 2, 2, 4)]
    made = [torch.randn(shape, device=device).to(dtype).transpose(1, 2) for shape in shapes]
    return [x.requires_grad_(i < 3) for i, x in enumerate(made)]


def _mask(seed: int = 1) -> oc.Mask:
    return oc.random(TOKENS, seed, text=(20, 90), image=(60, 200))


def _gradients(call: Any, inputs: list[Any], mask: Any) -> list[Any]:
    *qkv, dout = inputs
    return list(torch.autograd.grad(call(*qkv, mask), qkv, dout))


def _sdpa(q: Any, k: Any, v: Any, mask: oc.Mask) -> Any:
    seen = torch.from_numpy(mask.to_dense()).to(q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)


def _exact(inputs: list[Any], mask: oc.Mask) -> list[Any]:
    widened = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    return _gradients(_sdpa, widened, mask)


def _errors(found: list[Any], exact: list[Any]) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


def _right(found: list[Any], inputs: list[Any], mask: oc.Mask) -> None:
    """At most twice as far from float64 as torch's own attention of the same inputs."""
    exact = _exact(inputs, mask)
    ours, theirs = _errors(found, exact), _errors(_gradients(_sdpa, inputs, mask), exact)
    assert all(0 < a <= 2 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_numbers_are_right(dtype: Any, head_dim: int) -> None:
    inputs, mask = _inputs(dtype, head_dim=head_dim), _mask()
    found = _gradients(oc.torch.attention, inputs, mask)
    assert all(x.dtype == dtype and x.is_contiguous() for x in found)
    _right(found, inputs, mask)
    again = _gradients(oc.torch.attention, inputs, mask)
    assert all(map(torch.equal, found, again)), "the same call gives the same bits"


def test_the_gradient_of_lse() -> None:
    *qkv, _ = _inputs()
    mask = _mask()
    lse = oc.torch.attention(*qkv, mask, return_lse=True)[1]
    found = torch.autograd.grad(lse.square().sum(), qkv[:2])
    q, k = (x.detach().double().requires_grad_() for x in qkv[:2])
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) / 8
    seen = torch.from_numpy(mask.to_dense()).cuda()
    wanted = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    exact = torch.autograd.grad(wanted.square().sum(), (q, k))
    assert max(_errors(list(found), list(exact))) <= 0.01


def test_gradients_of_any_strides() -> None:
    mask = _mask()
    for dout in (
        torch.ones((), device="cuda").expand(2, 4, TOKENS, 64),
        torch.randn(2, 4, 64, TOKENS, device="cuda").transpose(2, 3),
        torch.randn(2, 4, TOKENS, 192, device="cuda")[..., 64:128],
    ):
        inputs = [*_inputs()[:3], dout.bfloat16()]
        plain = [*inputs[:3], inputs[3].contiguous()]
        found, wanted = (_gradients(oc.torch.attention, x, mask) for x in (inputs, plain))
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("needed", ["q", "k", "v", "kv"])
def test_only_what_is_asked_for(needed: str) -> None:
    """Other kernels may make it than all gradients: as exact, and the bits of calls that ask for the same."""
    *qkv, dout = inputs = _inputs()
    mask = _mask()
    exact, theirs = (
        dict(zip("qkv", made, strict=True))
        for made in (_exact(inputs, mask), _gradients(_sdpa, inputs, mask))
    )
    given = [x.detach().requires_grad_(name in needed) for name, x in zip("qkv", qkv, strict=True)]
    oc.torch.attention(*given, mask).backward(dout)
    again = [x.detach().requires_grad_(name in needed) for name, x in zip("qkv", qkv, strict=True)]
    oc.torch.attention(*again, mask).backward(dout)
    for name, x, same in zip("qkv", given, again, strict=True):
        assert (x.grad is None) == (same.grad is None) == (name not in needed)
        if x.grad is not None:
            assert torch.equal(x.grad, same.grad)
            ours, other = _errors([x.grad, theirs[name]], [exact[name]] * 2)
            assert 0 < ours <= 2 * other


def test_a_mask_that_is_dropped_before_the_backward_pass() -> None:
    *qkv, dout = _inputs()
    wanted = _gradients(oc.torch.attention, [*qkv, dout], _mask())
    mask: Any = _mask()
    out = oc.torch.attention(*qkv, mask)
    del mask
    gc.collect()
    assert all(map(torch.equal, torch.autograd.grad(out, qkv, dout), wanted))


def test_checkpoints() -> None:
    inputs, mask = _inputs(), _mask()
    wanted = _gradients(oc.torch.attention, inputs, mask)
    found = _gradients(
        lambda *x: checkpoint.checkpoint(oc.torch.attention, *x, use_reentrant=False), inputs, mask
    )
    assert all(map(torch.equal, found, wanted))


def test_two_streams() -> None:
    """Each backward pass runs behind the work of the stream of its forward pass, in autograd's thread."""
    mask, streams = _mask(), [torch.cuda.Stream(), torch.cuda.Stream()]
    inputs = [_inputs(seed=seed) for seed in range(2)]
    wanted = [_gradients(oc.torch.attention, one, mask) for one in inputs]
    torch.cuda.synchronize()
    found = []
    for stream, one in zip(streams, inputs, strict=True):
        with torch.cuda.stream(stream):
            late = [torch.full_like(x, torch.nan) for x in one]
            torch.cuda._sleep(100_000_000)
            for to, x in zip(late, one, strict=True):
                to.copy_(x.detach())
            late = [x.requires_grad_(i < 3) for i, x in enumerate(late)]
            found.append(_gradients(oc.torch.attention, late, mask))
    torch.cuda.synchronize()
    for one, other in zip(found, wanted, strict=True):
        assert all(map(torch.equal, one, other))


def test_a_cuda_graph_of_both_passes_replays_on_new_inputs() -> None:
    inputs, mask = _inputs(), _mask()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _gradients(oc.torch.attention, inputs, mask)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _gradients(oc.torch.attention, inputs, mask)
    fresh = _inputs(seed=5)
    with torch.no_grad():
        for x, new in zip(inputs, fresh, strict=True):
            x.copy_(new)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, found, _gradients(oc.torch.attention, fresh, mask)))


def test_prepare_before_a_capture() -> None:
    inputs, mask = _inputs(), _mask()
    oc.torch.prepare(*inputs[:3], mask, gradients=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _gradients(oc.torch.attention, inputs, mask)
    graph.replay()
    torch.cuda.synchronize()
    _right(found, inputs, mask)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_training_step_with_changing_masks(compiler: Any, mode: str) -> None:
    def step(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return oc.torch.attention(q * 2, k, v, mask) + 1

    *qkv, dout = _inputs()
    layer = torch.compile(step, fullgraph=True, mode=mode)
    for seed in range(8):
        wanted = _gradients(step, [*qkv, dout], _mask(seed))
        mask: Any = _mask(seed)
        for _ in range(3 if mode == "reduce-overhead" else 1):  # warm-up, capture, replay
            torch.compiler.cudagraph_mark_step_begin()
            out = layer(*qkv, mask)
            found = torch.autograd.grad(out, qkv, dout)
            assert all(map(torch.equal, found, wanted))
        torch.compiler.cudagraph_mark_step_begin()
        out = layer(*qkv, mask)
        del mask
        gc.collect()
        assert all(map(torch.equal, torch.autograd.grad(out, qkv, dout), wanted))
    assert compiler["stats"]["unique_graphs"] == 2


def test_the_operators_keep_torch_s_contract() -> None:
    *qkv, _ = _inputs()
    mask, ops = _mask(), torch.ops.omnicupy
    torch.library.opcheck(ops.attention.default, (*qkv, [mask.handle], 0.5, True))
    inputs = [x.detach() for x in qkv]
    out, lse = ops.attention(*inputs, [mask.handle], 0.5, True)
    given = (out, lse, *inputs, out, lse, [mask.handle], 0.5, [True] * 3 + [False], True)
    torch.library.opcheck(ops.attention_backward.default, given)


def test_tensors_run_on_their_own_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    mask = _mask()
    found = _gradients(oc.torch.attention, _inputs(device="cuda:1"), mask)
    assert {x.device for x in found} == {torch.device("cuda:1")}
    assert torch.cuda.current_device() == 0
    _right(found, _inputs(device="cuda:1"), mask)
