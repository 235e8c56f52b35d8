"""PyTorch tensors as the arrays that the library takes, without a copy, and what is wrong with some."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch

from omnicupy.call.arrays import BFLOAT16, DeviceArray
from omnicupy.errors import UnsupportedError
from omnicupy.torch import state

DTYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BFLOAT16,
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def on_device(name: str, tensor: Any, dtype: np.dtype[Any] | None = None) -> DeviceArray:
    """The memory of a CUDA tensor. dtype: of its elements; None for one of DTYPES."""
    dtype = dtype or DTYPES.get(tensor.dtype) or _refuse_dtype(name, tensor)
    strides = tuple(dtype.itemsize * stride for stride in tensor.stride())
    return DeviceArray(dtype, tensor.data_ptr(), tensor.get_device(), tuple(tensor.shape), strides)


def on_host(name: str, tensor: Any) -> Any:
    """The NumPy array of a CPU tensor's own memory."""
    dtype = DTYPES.get(tensor.dtype) or _refuse_dtype(name, tensor)
    if not lie_in_memory(tensor):  # PyTorch 2.9 makes an array of zeros without memory, too
        check_storage(**{name: tensor})
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy knows it by ml_dtypes' name, torch does not
        return tensor.view(torch.int16).numpy().view(dtype)
    return tensor.numpy()


def new_out(q: Any, v: Any) -> Any:
    """Memory for the output of a call, C-contiguous: q's shape with the width of v. Where they are no inputs of one
    call, any tensor: the checks of the call say so.
    """
    width = v.shape[-1:]
    if q.shape[-1:] == width:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    return q.new_empty((*q.shape[:-1], *width))


def autocast(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The tensors as torch.autocast has scaled_dot_product_attention take them: in its dtype, but for float64."""
    kind = "cuda" if q.is_cuda else "cpu"  # others are refused
    if not torch.is_autocast_enabled(kind):
        return q, k, v
    dtype = torch.get_autocast_dtype(kind)
    q, k, v = (
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in (q, k, v)
    )
    return q, k, v


def check_storage(**named: Any) -> None:
    """Raises UnsupportedError for a tensor whose elements do not lie in its own memory, by its strides."""
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.is_nested:
            raise UnsupportedError(
                f"{name} is a nested tensor; pass its sequences one after the other, as {name}.values(), with a mask "
                "of presets.varlen"
            )
        if tensor.layout is not torch.strided:
            raise UnsupportedError(f"{name} is stored as {tensor.layout}; pass {name}.to_dense()")
        if tensor.is_neg():
            raise UnsupportedError(f"{name} is a negated view; pass {name}.resolve_neg()")
        if state.transform() is not None:  # which wraps tensors and unwraps them for operators
            continue
        if tensor.device.type in ("cpu", "cuda") and tensor.numel() and not _address(tensor):
            raise UnsupportedError(
                f"{name} holds no memory of its own, as a {type(tensor).__qualname__} that wraps other tensors; pass "
                "the plain tensor that it stands for"
            )


def lie_in_memory(*given: Any) -> bool:
    """Whether the elements of all that are not None lie in memory of their own: a cheap test that only check_storage
    can overrule.
    """
    try:
        for one in given:
            if one is not None and (one.is_nested or one.is_neg() or not one.data_ptr()):
                return False
    except RuntimeError:  # of data_ptr, where there is no memory
        return False
    return True


def _address(tensor: Any) -> int:
    try:
        address: int = tensor.data_ptr()
    except RuntimeError:
        return 0
    return address


def check(q: Any, k: Any, v: Any, out: Any, sink_logits: Any = None) -> None:
    """Raises TypeError where one is no tensor; out and sink_logits may be None."""
    kind = torch.Tensor
    if not (isinstance(q, kind) and isinstance(k, kind) and isinstance(v, kind)):
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if not isinstance(tensor, kind):
                _refuse(name, tensor)
    if out is not None and not isinstance(out, kind):
        _refuse("out", out)
    if sink_logits is not None and not isinstance(sink_logits, kind):
        _refuse("sink_logits", sink_logits)


def cuda_index(q: Any, k: Any, v: Any, out: Any) -> int | None:
    """The CUDA device that all are on, None for the CPU; raises ValueError for other devices and for several."""
    if q.is_cuda and k.is_cuda and v.is_cuda and (out is None or out.is_cuda):
        index: int = q.get_device()
        if k.get_device() == v.get_device() == index and (out is None or out.get_device() == index):
            return index
    device = q.device
    for name, tensor in (("k", k), ("v", v), ("out", out)):
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} must be on the device of q ({device}), got {tensor.device}; move it with "
                f"{name}.to({str(device)!r})"
            )
    if not q.is_cpu:
        raise ValueError(f"q must be on a CPU or a CUDA device, got {device}; move q, k and v to one")
    return None


def check_device(where: str, device: Any, which: str) -> None:
    """Raises TypeError for what names no device, ValueError for the one whose tensors have no elements. which: what to
    pass.
    """
    try:
        found = torch.device(device)
    except (TypeError, RuntimeError, ValueError):  # ValueError: a number beyond any index
        raise TypeError(
            f"{where}: device must be a torch.device or name one, got {type(device).__name__} {device!r:.60}; pass "
            f"{which}"
        ) from None
    if found.type == "meta":
        raise ValueError(f"{where}: device must be one whose tensors have elements, got meta; pass {which}")


def check_sink(sink_logits: Any, q: Any) -> None:
    """Raises ValueError where sink_logits, a tensor, is on another device than q."""
    if sink_logits.device != q.device:
        raise ValueError(
            f"sink_logits must be on the device of q ({q.device}), got {sink_logits.device}; move it with "
            f"sink_logits.to({str(q.device)!r})"
        )


def check_tangents(**named: Any) -> None:
    """Raises UnsupportedError where a tensor carries a tangent, that of forward-mode differentiation."""
    for name, tensor in named.items():
        if tensor is not None and _tangent(tensor) is not None:
            no_forward_mode(name)


def no_forward_mode(name: str) -> NoReturn:
    """Raises UnsupportedError for a tensor that carries a tangent."""
    raise UnsupportedError(
        f"{name} carries a tangent, but attention has no derivative in forward mode; use reverse mode (backward, "
        f"torch.func.vjp), or pass what torch.autograd.forward_ad.unpack_dual gives as primal"
    )


def _tangent(tensor: Any) -> Any:
    # Of level 0, the only one there is: a compiled program enters it without a word to torch.autograd.forward_ad.
    try:
        return torch._VF._unpack_dual(tensor, 0)[1]
    except RuntimeError:  # a tracer that has autograd's part of the dispatcher off
        return None


def need_gradients(q: Any, k: Any, v: Any, sink_logits: Any = None) -> bool:
    """Whether autograd may ask for a gradient of one of these."""
    if not torch.is_grad_enabled():
        return False
    return any(map(needs_gradient, (q, k, v, sink_logits)))


def needs_gradient(tensor: Any) -> bool:
    """Whether a tensor requires a gradient; None does not."""
    return tensor is not None and bool(tensor.requires_grad)


def check_out(out: Any, **inputs: Any) -> None:
    """Raises UnsupportedError where out would be written though a gradient is to pass through it."""
    for name, tensor in inputs.items():
        if tensor is not None and tensor.requires_grad:
            raise UnsupportedError(
                f"out must be None where {name} requires a gradient; leave it out, or call under torch.no_grad()"
            )
    if out.requires_grad:
        raise UnsupportedError(
            "out requires a gradient, which writing it would lose; pass out.detach(), or call under torch.no_grad()"
        )


def _refuse(name: str, value: object) -> None:
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    shown = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    raise TypeError(
        f"{name} must be a torch.Tensor, got {shown}; convert it with torch.as_tensor, or call "
        "omnicupy.attention, which takes CuPy and NumPy arrays"
    )


def _refuse_dtype(name: str, tensor: Any) -> Any:
    raise TypeError(
        f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; cast q, k and v"
    )
