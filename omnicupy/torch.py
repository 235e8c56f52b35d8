"""attention() on PyTorch tensors: no copy, torch's stream and allocator, and no graph break in torch.compile.

    import omnicupy as oc, omnicupy.torch
    out = oc.torch.attention(q, k, v, mask)

The only module that imports PyTorch; `import omnicupy` does not import this one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from omnicupy import api
from omnicupy.arrays import BFLOAT16, DeviceArray
from omnicupy.errors import UnsupportedError
from omnicupy.masks import Mask, of_handle
from omnicupy.spec import AttnSpec

__all__ = ["attention"]

DTYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BFLOAT16,
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_TORCH = {dtype: name for name, dtype in DTYPES.items()}
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other subclasses go through the dispatcher, which knows them
_LIST = 0  # no mask's handle: what follows is a list of masks, one a batch element

_launch: Any = None  # omnicupy.launch, imported at the first CUDA tensor: CPU users never import CuPy
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Mask | Sequence[Mask] | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    config: AttnSpec | None = None,
) -> Any:
    """`omnicupy.attention` on torch tensors: same meaning, shapes, promises and errors.

    q: (batch, q_heads, q_len, head_dim).  k, v: (batch, kv_heads, k_len, head_dim).  out: as q, or None for a
    new C-contiguous tensor. All on one device. Any strides on the CPU; on a GPU the last axis is contiguous
    and rows are 16-byte aligned, so x.transpose(1, 2) of a (batch, tokens, heads, head_dim) tensor passes.
    No tensor is copied.

    CUDA tensors (float16, bfloat16) run on torch's current stream of their device, without a synchronisation;
    torch allocates the outputs. CPU tensors (float16, bfloat16, float32, float64) run on NumPy and BLAS.
    Inside torch.compile the call is one operator of the graph, and masks are inputs of it: pass them as
    arguments, and a new mask of the same shape recompiles nothing (the second one does, once).
    In a CUDA graph, call once before the capture and keep the mask while the graph is used.

    Returns `out`, or (out, lse) with lse (batch, q_heads, q_len), float32.
    Raises what `omnicupy.attention` raises; UnsupportedError for tensors that require a gradient outside of
    torch.no_grad() and torch.inference_mode(), and for `config` inside torch.compile.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, torch.Tensor):
            _refuse(name, tensor)
    if out is not None and not isinstance(out, torch.Tensor):
        _refuse("out", out)
    if torch.is_grad_enabled():
        _check_gradients(q, k, v, out)
    if torch.compiler.is_compiling() or type(q) not in _PLAIN or _modes():
        return _through_operator(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)
    run = _run if "torch._dynamo" not in sys.modules else _untraced_run()
    return run(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)


def _run(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any) -> Any:
    """The call on real tensors."""
    device = q.device
    if k.device != device or v.device != device or (out is not None and out.device != device):
        _refuse_devices(device, (("k", k), ("v", v), ("out", out)))
    if device.type == "cuda":
        found = _on_gpu(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)
    elif device.type == "cpu":
        found = _on_cpu(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)
    else:
        raise ValueError(f"q must be on a CPU or a CUDA device, got {device}; move q, k and v to one")
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return found


@cache
def _untraced_run() -> Callable[..., Any]:
    """_run for a process that compiles: what torch.compile leaves to Python it must not try to trace again."""
    return torch.compiler.disable(_run)  # type: ignore[no-any-return]


def _on_gpu(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
    global _launch
    if _launch is None:
        from omnicupy import launch

        _launch = launch
    index = q.device.index
    # The tensors are named in this frame and their callers', so they outlive the launch.
    out = options.pop("out")
    found = _launch.attention(
        _on_device("q", q),
        _on_device("k", k),
        _on_device("v", v),
        mask,
        out=None if out is None else _on_device("out", out),
        stream=_launch.external_stream(index, torch.cuda.current_stream(index).cuda_stream),
        empty=_allocator(index),
        **options,
    )
    return (found[0].owner, found[1].owner) if options["return_lse"] else found.owner


def _on_device(name: str, tensor: Any) -> DeviceArray:
    dtype = DTYPES.get(tensor.dtype) or _refuse_dtype(name, tensor)
    array = DeviceArray(tensor, dtype, tensor.data_ptr(), tensor.device.index)
    size = dtype.itemsize
    array.shape = tuple(tensor.shape)
    array.strides = tuple([size * stride for stride in tensor.stride()])
    return array


@cache
def _allocator(index: int) -> Callable[[tuple[int, ...], Any], DeviceArray]:
    """Makes outputs on CUDA device `index` from torch's memory, on torch's current stream."""
    device = torch.device("cuda", index)

    def empty(shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        dtype = np.dtype(dtype)
        tensor = torch.empty(shape, dtype=_TORCH[dtype], device=device)
        return DeviceArray(tensor, dtype, tensor.data_ptr(), index)  # a launch reads its address alone

    return empty


def _on_cpu(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any) -> Any:
    if config is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    inputs = (_on_host("q", q), _on_host("k", k), _on_host("v", v))
    target = torch.empty(q.shape, dtype=q.dtype) if out is None else out
    found = api.attention(*inputs, mask, scale=scale, return_lse=return_lse, out=_on_host("out", target))
    return (target, torch.from_numpy(found[1])) if return_lse else target


def _on_host(name: str, tensor: Any) -> Any:
    """The NumPy array of a CPU tensor's own memory."""
    dtype = DTYPES.get(tensor.dtype) or _refuse_dtype(name, tensor)
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy knows it by ml_dtypes' name, torch does not
        return tensor.view(torch.int16).numpy().view(dtype)
    return tensor.numpy()


def _through_operator(
    q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any
) -> Any:
    """The call as an operator. Traced by torch.compile, to which a mask's handle is an integer input."""
    if config is not None:
        raise UnsupportedError("config must be None inside torch.compile; call attention outside of it")
    if mask is None:
        handles = []
    elif isinstance(mask, Mask):
        handles = [mask.handle]
    elif isinstance(mask, (list, tuple)) and all(isinstance(one, Mask) for one in mask):
        handles = [_LIST, *[one.handle for one in mask]]
    else:
        raise TypeError(
            "mask must be a Mask, a list of one Mask per batch element, or None (full); "
            "a boolean array becomes one with from_dense"
        )
    if out is None:
        out, lse = _operator(q, k, v, handles, scale, return_lse)
    else:
        lse = _operator_out(q, k, v, out, handles, scale, return_lse)
    return (out, lse) if return_lse else out


def _masks_of(handles: Sequence[int]) -> Mask | list[Mask] | None:
    if not handles:
        return None
    if handles[0] == _LIST:
        return [of_handle(handle) for handle in handles[1:]]
    return of_handle(handles[0])


def _forward(*arguments: Any) -> Any:
    """(q, k, v, handles, scale, return_lse) -> (out, lse); lse has no elements when it is not wanted."""
    q, k, v, handles, scale, return_lse = arguments
    found = _run(q, k, v, _masks_of(handles), scale=scale, return_lse=return_lse, out=None, config=None)
    return found if return_lse else (found, _empty_lse(q, False))


def _forward_fake(*arguments: Any) -> Any:
    q, return_lse = arguments[0], arguments[-1]
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), _empty_lse(q, return_lse)


def _forward_out(*arguments: Any) -> Any:
    """(q, k, v, out, handles, scale, return_lse) -> lse."""
    q, k, v, out, handles, scale, return_lse = arguments
    found = _run(q, k, v, _masks_of(handles), scale=scale, return_lse=return_lse, out=out, config=None)
    return found[1] if return_lse else _empty_lse(q, False)


def _forward_out_fake(*arguments: Any) -> Any:
    return _empty_lse(arguments[0], arguments[-1])


def _empty_lse(q: Any, wanted: bool) -> Any:
    return torch.empty(q.shape[:3] if wanted else (0,), dtype=torch.float32, device=q.device)


_REST = "SymInt[] masks, float? scale, bool return_lse"
_operator = torch.library.custom_op(
    "omnicupy::attention",
    _forward,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_REST}) -> (Tensor, Tensor)",
)
_operator.register_fake(_forward_fake)
_operator_out = torch.library.custom_op(
    "omnicupy::attention_out",
    _forward_out,
    mutates_args=("out",),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor(a!) out, {_REST}) -> Tensor",
)
_operator_out.register_fake(_forward_out_fake)


def _check_gradients(*tensors: Any) -> None:
    for name, tensor in zip(("q", "k", "v", "out"), tensors, strict=True):
        if tensor is not None and tensor.requires_grad:
            raise UnsupportedError(
                f"{name} requires a gradient, but attention has no backward pass yet; call it under "
                f"torch.no_grad() or pass {name}.detach()"
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


def _refuse_devices(device: Any, named: Sequence[tuple[str, Any]]) -> None:
    for name, tensor in named:
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} must be on the device of q ({device}), got {tensor.device}; move it with "
                f"{name}.to({str(device)!r})"
            )
