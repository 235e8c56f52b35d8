"""omnicupy.torch on CPU tensors: numbers, memory, strides, dtypes, errors; and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy import api

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import omnicupy.torch  # noqa: E402 - needs torch
from omnicupy.torch import operator  # noqa: E402

ROOT = Path(__file__).parents[2]
DTYPES = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
SHAPES = ((2, 4, 40, 16), (2, 2, 40, 16), (2, 2, 40, 16))


def _inputs(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def _numpy(tensor: Any) -> np.ndarray:
    """A copy as a NumPy array, in the dtype that holds the same bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def _same(tensor: Any, array: np.ndarray) -> None:
    assert _numpy(tensor).dtype == array.dtype
    assert _numpy(tensor).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_numbers_are_those_of_numpy_arrays(dtype: Any) -> None:
    arrays, mask = _inputs(dtype), oc.random(40, 3)
    out, lse = oc.torch.attention(*arrays, mask, scale=0.3, return_lse=True)
    wanted, wanted_lse = oc.attention(*map(_numpy, arrays), mask, scale=0.3, return_lse=True)
    assert (out.dtype, lse.dtype, out.shape, lse.shape) == (
        dtype,
        torch.promote_types(dtype, torch.float32),
        SHAPES[0],
        SHAPES[0][:3],
    )
    assert wanted.dtype == DTYPES[dtype]
    _same(out, wanted)
    _same(lse, wanted_lse)


def test_the_numbers_are_those_of_scaled_dot_product_attention() -> None:
    q, k, v = _inputs()
    mask = oc.segments([("text", 10), ("image", 20), ("text", 10)])
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, torch.from_numpy(mask.to_dense()), enable_gqa=True
    )
    torch.testing.assert_close(oc.torch.attention(q, k, v, mask), wanted)


def test_no_mask_and_a_list_of_masks() -> None:
    arrays, masks = _inputs(), [oc.causal(40), oc.random(40, 1)]
    for mask in (None, masks):
        _same(oc.torch.attention(*arrays, mask), oc.attention(*map(_numpy, arrays), mask))


def test_rows_that_see_nothing() -> None:
    out, lse = oc.torch.attention(*_inputs(), ~oc.full(40), return_lse=True)
    assert not out.any()
    assert torch.isneginf(lse).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tensor_is_copied(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    engine = api.cpu_attention.attention

    def spy(*arrays: Any, **options: Any) -> Any:
        seen.extend([*arrays[1:4], options["out"]])
        return engine(*arrays, **options)

    monkeypatch.setattr(api.cpu_attention, "attention", spy)
    tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in _inputs(dtype)]
    out = oc.torch.attention(*tensors, oc.causal(40))
    assert out.is_contiguous()
    for array, tensor in zip(seen, [*tensors, out], strict=True):
        assert array.ctypes.data == tensor.data_ptr()
        assert array.strides == tuple(tensor.element_size() * stride for stride in tensor.stride())


def test_any_strides() -> None:
    q, k, v = _inputs(torch.bfloat16)
    mask = oc.random(40, 5)
    wanted = oc.torch.attention(q, k[:, :1].repeat(1, 2, 1, 1), v, mask)
    views = [
        q.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
        k[:, :1].expand(2, 2, 40, 16),
        torch.cat([v, v], 3)[..., 16:],
    ]
    assert torch.equal(oc.torch.attention(*views, mask), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_is_written_in_place(dtype: Any) -> None:
    arrays, mask = _inputs(dtype), oc.causal(40)
    stored = torch.full((2, 40, 4, 16), torch.nan, dtype=dtype)
    version = stored._version
    target = stored.transpose(1, 2)
    assert oc.torch.attention(*arrays, mask, out=target) is target
    assert torch.equal(stored.transpose(1, 2), oc.torch.attention(*arrays, mask))
    assert stored._version == version + 1, "autograd must see that the tensor has changed"


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("index", range(4))
def test_gradients_do_not_pass_through_out(index: int, quiet: Callable[[], Any]) -> None:
    arrays = [*_inputs(), torch.empty(SHAPES[0])]
    arrays[index].requires_grad_()
    name = ("q", "k", "v", "out")[index]
    with pytest.raises(oc.UnsupportedError) as raised:
        oc.torch.attention(*arrays[:3], out=arrays[3])
    assert str(raised.value) == (
        "out requires a gradient, which writing it would lose; pass out.detach(), or call under torch.no_grad()"
        if name == "out"
        else f"out must be None where {name} requires a gradient; leave it out, or call under torch.no_grad()"
    )
    if name != "out":
        with quiet():
            wanted = oc.torch.attention(*(x.detach() for x in arrays[:3]))
            assert oc.torch.attention(*arrays[:3], out=arrays[3]) is arrays[3]
            assert torch.equal(arrays[3], wanted)


def _call(**changed: Any) -> Any:
    q, k, v = _inputs()
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v} | changed
    return oc.torch.attention(**arguments)


BAD = {
    "an array": (
        lambda: _call(k=np.zeros(SHAPES[1], np.float32)),
        TypeError,
        "k must be a torch.Tensor, got numpy.ndarray; convert it with torch.as_tensor, or call "
        "omnicupy.attention, which takes CuPy and NumPy arrays",
    ),
    "out a list": (
        lambda: _call(out=[]),
        TypeError,
        "out must be a torch.Tensor, got list; convert it with torch.as_tensor, or call "
        "omnicupy.attention, which takes CuPy and NumPy arrays",
    ),
    "dtype": (
        lambda: _call(q=torch.zeros(SHAPES[0], dtype=torch.int32)),
        TypeError,
        "q must be float16, bfloat16, float32 or float64, got torch.int32; cast q, k and v",
    ),
    "other dtype": (
        lambda: _call(v=_inputs(torch.bfloat16)[2]),
        TypeError,
        "v must have the dtype of q (float32), got bfloat16; cast it",
    ),
    "shape": (
        lambda: _call(q=torch.zeros(40, 16)),
        ValueError,
        "q must have 4 axes (batch, heads, tokens, head_dim), got shape (40, 16); add missing axes with None",
    ),
    "mask": (
        lambda: _call(mask=oc.causal(39)),
        ValueError,
        "mask must have the shape (q tokens, k tokens) = (40, 40), got (39, 39); build it for these lengths "
        "or cut it with mask.rows or mask[a:b, c:d]",
    ),
    "mask tensor": (
        lambda: _call(mask=torch.ones(40, 40, dtype=torch.bool)),
        TypeError,
        "mask must be a Mask, a list of one Mask per batch element, or None (full), got torch.Tensor; "
        "a boolean array becomes one with from_dense",
    ),
    "scale": (
        lambda: _call(scale=-1.0),
        ValueError,
        "scale must be finite and above 0 in float32, got -1.0; pass None for 1/sqrt(head_dim)",
    ),
    "config": (
        lambda: _call(config=object()),
        ValueError,
        "config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors",
    ),
    "device": (
        lambda: oc.torch.attention(*(x.to("meta") for x in _inputs())),
        ValueError,
        "q must be on a CPU or a CUDA device, got meta; move q, k and v to one",
    ),
    "devices": (
        lambda: _call(k=_inputs()[1].to("meta")),
        ValueError,
        "k must be on the device of q (cpu), got meta; move it with k.to('cpu')",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_errors(what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_an_out_that_overlaps() -> None:
    q, k, v = _inputs()
    with pytest.raises(ValueError, match="out must not overlap q"):
        oc.torch.attention(q, k, v, out=q)


def test_cpu_tensors_import_no_cupy_and_torch_is_torch() -> None:
    code = """
import sys, torch, omnicupy as oc
print("omnicupy.torch" in sys.modules)
import omnicupy.torch
print("torch._dynamo" in sys.modules)  # over a second of importing, which only torch.compile needs
x = torch.ones(1, 1, 8, 16)
oc.torch.attention(x, x, x, oc.causal(8))
print("cupy" in sys.modules, sys.modules["torch"] is torch, hasattr(torch, "Tensor"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.stdout.splitlines() == ["False", "False", "False True True"], done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lse_is_float64_for_float64_alone(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 9, 8).to(dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert oc.torch.attention(x, x, x, return_lse=True)[1].dtype == wanted
    traced = operator._forward_fake(x, x, x, [], None, True)
    assert [one.dtype for one in traced] == [dtype, wanted]
    with pytest.raises(
        TypeError, match=r"^attention: return_lse must be True or False, got str 'no'; pass a bool$"
    ):
        oc.torch.attention(x, x, x, return_lse="no")  # type: ignore[arg-type]


def test_lengths_and_bounds_may_be_tensors() -> None:
    bounds = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    assert oc.presets.varlen(bounds) == oc.presets.varlen([0, 3, 3, 8])
    assert oc.documents(torch.tensor([3, 0, 5])) == oc.documents([3, 0, 5])
    assert oc.ranges(torch.tensor([[0, 3, 1, 4]]), 8) == oc.ranges([(0, 3, 1, 4)], 8)
    lists = torch.tensor([[0, 1], [1, -1]])
    assert oc.from_tiles(lists, 8, 8, 4, 4) == oc.from_tiles([[0, 1], [1]], 8, 8, 4, 4)
    for wrong in (torch.tensor([0.0, 3.0]), torch.tensor([True])):
        with pytest.raises(TypeError, match=r"^varlen: cu_seqlens must hold integers, got an array of "):
            oc.presets.varlen(wrong)


@pytest.mark.parametrize("call", ["attention", "prepare"])
def test_the_arguments_are_those_of_numpy_arrays(call: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, call)).parameters for module in (oc.torch, oc))
    more = (
        {"deterministic"} if call == "attention" else set()
    )  # of its gradients, a function of its own there
    assert {n: (p.kind, p.default) for n, p in ours.items() if n not in more} == {
        n: (p.kind, p.default) for n, p in theirs.items()
    }
    assert more <= set(ours)


def test_prepare_refuses_what_attention_refuses() -> None:
    q = torch.zeros(1, 2, 9, 8)
    assert oc.torch.prepare(q, q, q, oc.causal(9), return_lse=True) is None
    assert oc.torch.prepare(q.requires_grad_(), q, q, gradients=True) is None
    for name in ("return_lse", "gradients"):
        with pytest.raises(TypeError, match=rf"^prepare: {name} must be"):
            oc.torch.prepare(q, q, q, **{name: 1})
    with pytest.raises(TypeError, match=r"^attention: deterministic must be"):
        oc.torch.attention(q, q, q, deterministic=None)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_tensor_that_is_missing_is_named(name: str) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=f"^{name} must be a torch"):
            _call(**{name: None})
