"""attention() on PyTorch tensors: no copy, torch's stream and allocator, and no graph break in torch.compile.

    import omnicupy as oc, omnicupy.torch
    out = oc.torch.attention(q, k, v, mask)

`import omnicupy` does not import this module, so PyTorch stays optional.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad

from omnicupy import api, tensors
from omnicupy.errors import UnsupportedError
from omnicupy.masks import Mask, of_handle
from omnicupy.spec import AttnSpec

__all__ = ["attention", "prepare"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other subclasses go through the dispatcher, which knows them
_LIST = 0  # no mask's handle: what follows is a list of masks, one a batch element

_launch: Any = None  # omnicupy.launch, imported at the first CUDA tensor: CPU users never import CuPy
# The handle of torch's current stream of a device; through the public call it would cost a Stream object each time.
_raw_stream: Callable[[int], int] = getattr(
    torch._C,
    "_cuda_getCurrentRawStream",
    lambda index: int(torch.cuda.current_stream(index).cuda_stream),
)
# What torch.compile has set to look at frames; None where nothing is, and older versions do not say.
_tracer: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame,
    "get_eval_frame_callback",
    lambda: sys.modules.get("torch._dynamo"),
)
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
    In a CUDA graph, call `prepare` or this once before the capture and keep the mask while the graph is used.

    Returns `out`, or (out, lse) with lse (batch, q_heads, q_len), float32.
    Raises what `omnicupy.attention` raises; UnsupportedError for tensors that require a gradient outside of
    torch.no_grad() and torch.inference_mode() or carry a tangent, and for `config` inside torch.compile.
    """
    tensors.check(q, k, v, out)
    if torch.is_grad_enabled():
        tensors.check_gradients(q, k, v, out)
    if torch.compiler.is_compiling() or type(q) not in _PLAIN or _modes():
        return _through_operator(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)
    run = _run if _tracer() is None else _untraced_run()
    return run(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)


def prepare(
    q: Any,
    k: Any,
    v: Any,
    mask: Mask | Sequence[Mask] | None = None,
    *,
    scale: float | None = None,
    out: Any = None,
    config: AttnSpec | None = None,
) -> None:
    """`omnicupy.prepare` on torch tensors: what the first `attention` call with these arguments does before its
    launch, on torch's current stream. On CPU tensors it checks the arguments and does nothing else.

    Raises what `attention` raises, but for gradients: none are lost here.
    """
    tensors.check(q, k, v, out)
    index = tensors.cuda_index(q, k, v, out)
    if index is not None:
        stream = (_launch or _launcher()).external_stream(index, _raw_stream(index))
        _plan_of((q, k, v, out), _addresses(q, k, v, out), mask, scale, config, stream)
        return
    arrays = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = None if out is None else tensors.on_host("out", out)
    api.prepare(*arrays, mask, scale=scale, out=target, config=config)


def _run(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any) -> Any:
    """The call on real tensors."""
    if getattr(forward_ad, "_current_level", -1) >= 0:  # there are tangents, which would be lost
        tensors.check_tangents(q=q, k=k, v=v, out=out)
    index = tensors.cuda_index(q, k, v, out)
    if index is None:
        found = _on_cpu(q, k, v, mask, scale=scale, return_lse=return_lse, out=out, config=config)
    else:
        launch = _launch or _launcher()
        stream = launch.external_stream(index, _raw_stream(index))
        addresses = _addresses(q, k, v, out)
        plan = _plan_of((q, k, v, out), addresses, mask, scale, config, stream)
        # The tensors are named in this frame, so they outlive the launch.
        to = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
        lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
        at_q, at_k, at_v, _ = addresses
        at_lse = 0 if lse is None else lse.data_ptr()
        launch.on_device(index, plan.launch, at_q, at_k, at_v, to.data_ptr(), at_lse, stream)
        found = (to, lse) if return_lse else to
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return found


@cache
def _untraced_run() -> Callable[..., Any]:
    """_run for a process that compiles: what torch.compile leaves to Python it must not try to trace again."""
    return torch.compiler.disable(_run)  # type: ignore[no-any-return]


def _addresses(q: Any, k: Any, v: Any, out: Any) -> tuple[int, int, int, int | None]:
    return q.data_ptr(), k.data_ptr(), v.data_ptr(), None if out is None else out.data_ptr()


def _plan_of(
    named: tuple[Any, Any, Any, Any], addresses: Any, mask: Any, scale: Any, config: Any, stream: Any
) -> Any:
    """The plan for q, k, v and `out`, all of one CUDA device: found by torch's words for them, or a new one."""
    q, k, v, out = named
    words = (
        (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype),
        q.get_device(),
        None if out is None else (out.shape, out.stride(), out.dtype),
    )
    plan = _launch.find_plan(words, addresses, mask, scale, config)
    if plan is None:
        arrays = tuple(
            None if tensor is None else tensors.on_device(name, tensor)
            for name, tensor in zip(("q", "k", "v", "out"), named, strict=True)
        )
        plan = _launch.make_plan(words, arrays, mask, scale=scale, config=config, stream=stream)
    return plan


def _launcher() -> Any:
    global _launch
    if _launch is None:
        from omnicupy import launch

        _launch = launch
    return _launch


def _on_cpu(q: Any, k: Any, v: Any, mask: Any, *, scale: Any, return_lse: bool, out: Any, config: Any) -> Any:
    if config is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    inputs = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    found = api.attention(
        *inputs, mask, scale=scale, return_lse=return_lse, out=tensors.on_host("out", target)
    )
    return (target, torch.from_numpy(found[1])) if return_lse else target


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
