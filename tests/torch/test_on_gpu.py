"""omnicupy.torch on a CUDA device: numbers, streams, graphs, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import omnicupy.torch  # noqa: E402 - needs torch

SHAPE = (2, 4, 700, 64)


pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("torch_cuda")]


def _inputs(dtype: Any = torch.bfloat16, seed: int = 0, tokens: int = SHAPE[2]) -> list[Any]:
    """Transposed views of (batch, tokens, heads, head_dim) tensors."""
    torch.manual_seed(seed)
    return [torch.randn(2, tokens, heads, 64, device="cuda").to(dtype).transpose(1, 2) for heads in (4, 2, 2)]


def _mask(seed: int = 1) -> oc.Mask:
    return oc.random(SHAPE[2], seed, text=(20, 90), image=(60, 200))


def _close(out: Any, arrays: list[Any], mask: oc.Mask) -> None:
    """Near scaled_dot_product_attention in float32; the error budget proper has tests of its own."""
    q, k, v = (x.float() for x in arrays)
    seen = torch.from_numpy(mask.to_dense()).cuda()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(out.float(), wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_numbers_are_right(dtype: Any) -> None:
    arrays, mask = _inputs(dtype), _mask()
    out, lse = oc.torch.attention(*arrays, mask, return_lse=True)
    assert (out.dtype, out.shape, out.device, lse.dtype) == (dtype, SHAPE, arrays[0].device, torch.float32)
    assert out.is_contiguous()
    _close(out, arrays, mask)
    target = torch.full((2, 700, 4, 64), torch.nan, dtype=dtype, device="cuda").transpose(1, 2)
    assert oc.torch.attention(*arrays, mask, out=target) is target
    assert torch.equal(target, out)


def test_outputs_come_from_torch_s_allocator() -> None:
    import cupy

    arrays, mask = _inputs(), _mask()
    oc.torch.attention(*arrays, mask)
    before, of_cupy = torch.cuda.memory_allocated(), cupy.get_default_memory_pool().used_bytes()
    out = oc.torch.attention(*arrays, mask)
    assert torch.cuda.memory_allocated() - before == out.nbytes
    assert cupy.get_default_memory_pool().used_bytes() == of_cupy


def test_it_runs_behind_the_work_of_torch_s_stream() -> None:
    mask, streams = _mask(), [torch.cuda.Stream(), torch.cuda.Stream()]
    arrays = _inputs()
    outs = []
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            late = [torch.full_like(x, torch.nan) for x in arrays]
            torch.cuda._sleep(100_000_000)
            for to, x in zip(late, arrays, strict=True):
                to.copy_(x)
            outs.append(oc.torch.attention(*late, mask))
    torch.cuda.synchronize()
    for out in outs:
        _close(out, arrays, mask)


def test_a_mask_first_used_on_one_stream_is_waited_for_on_another() -> None:
    arrays = _inputs()
    oc.torch.attention(*arrays, _mask())  # compiled and loaded
    torch.cuda.synchronize()
    mask = _mask()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        oc.torch.attention(*arrays, mask)
    with torch.cuda.stream(torch.cuda.Stream()):
        out = oc.torch.attention(*arrays, mask)
    torch.cuda.synchronize()
    _close(out, arrays, mask)


@pytest.mark.parametrize("first", ["attention", "prepare"])
def test_a_cuda_graph_replays_on_new_inputs(first: str) -> None:
    arrays, mask = _inputs(), _mask()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        getattr(oc.torch, first)(*arrays, mask)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # on a stream of its own, which the mask has not met
        out = oc.torch.attention(*arrays, mask)
    for x, fresh in zip(arrays, _inputs(seed=5), strict=True):
        x.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    _close(out, arrays, mask)


def test_the_first_call_with_a_mask_cannot_be_captured() -> None:
    arrays = _inputs()
    oc.torch.attention(*arrays, _mask())
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.graph(graph),
        pytest.raises(oc.UnsupportedError, match="cannot be copied while the stream is captured"),
    ):
        oc.torch.attention(*arrays, _mask())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_twenty_masks_of_one_shape_are_two_graphs(compiler: Any, mode: str) -> None:
    arrays = _inputs()
    layer = torch.compile(
        lambda q, k, v, mask: oc.torch.attention(q * 2, k, v, mask) + 1, fullgraph=True, mode=mode
    )
    for seed in range(20):
        mask = _mask(seed)
        for _ in range(3 if mode == "reduce-overhead" else 1):  # warm-up, capture, replay
            out = layer(*arrays, mask)
        assert torch.equal(out, oc.torch.attention(arrays[0] * 2, *arrays[1:], mask) + 1)
    assert compiler["stats"]["unique_graphs"] == 2


def test_the_operators_keep_torch_s_contract() -> None:
    mask = _mask()
    torch.library.opcheck(torch.ops.omnicupy.attention.default, (*_inputs(), [mask.handle], 0.5, True))


def test_float32_and_unaligned_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="q must be float16 or bfloat16 on the GPU, got float32"):
        oc.torch.attention(*_inputs(torch.float32), _mask())
    q, k, v = _inputs()
    shifted = torch.zeros(q.numel() + 1, dtype=q.dtype, device="cuda")[1:].view(SHAPE)
    with pytest.raises(ValueError, match=r"q must start on a multiple of 16 bytes, .*\.clone\("):
        oc.torch.attention(shifted, k, v, _mask())


def test_tensors_run_on_their_own_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    arrays, mask = [x.to("cuda:1") for x in _inputs()], _mask()
    out = oc.torch.attention(*arrays, mask)
    assert (out.device, torch.cuda.current_device()) == (torch.device("cuda:1"), 0)
    _close(out.to("cuda:0"), [x.to("cuda:0") for x in arrays], mask)
