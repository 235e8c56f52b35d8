"""Gradients of real tensors: on the CPU by NumPy and BLAS, on a GPU on the stream of the thread that asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from omnicupy import api
from omnicupy.torch import eager, tensors

_NAMES = ("q", "k", "v")
_SINK = "sink_logits"
Scores: TypeAlias = tuple[Any, Any]  # scale and softcap
_READ = ("dout", "q", "k", "v", "out", "lse", "dlse")
_ALIGN = 16  # bytes: rows that kernels read in one go
_gpu: Any = None  # what gradients need of omnicupy.gpu and CuPy, imported at the first CUDA tensor


def gradients(
    grads: tuple[Any, Any],
    saved: tuple[Any, ...],
    mask: Any,
    scores: Scores,
    wanted: Any,
    deterministic: bool,
) -> tuple[Any, Any, Any, Any]:
    """dq, dk, dv, dsink_logits of real tensors; None for those that are not wanted and where nothing comes back.

    grads: the gradients of out and lse; None for one that is 0. saved: q, k, v, out, lse and sink_logits or None.
    wanted: a boolean for each of q, k, v and sink_logits. deterministic: False permits an order of sums that changes
    from call to call, unless torch.use_deterministic_algorithms asks for one that does not.
    """
    dout, dlse = grads
    if not any(wanted) or (dout is None and dlse is None):
        return None, None, None, None
    q, k, v, out, lse, sink_logits = saved
    if dout is None:
        dout = q.new_zeros(()).expand(out.shape)
    dout = _in_memory(dout)
    dlse = None if dlse is None else _in_memory(dlse)
    named = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "lse": lse, "dlse": dlse, _SINK: sink_logits}
    made = tuple(
        torch.empty_like(one, memory_format=torch.contiguous_format) if asked else None
        for one, asked in zip((q, k, v, sink_logits), wanted, strict=True)
    )
    scale, softcap = scores
    options = {
        "scale": scale,
        "softcap": softcap,
        "wanted": tuple(name for name, asked in zip((*_NAMES, _SINK), wanted, strict=True) if asked),
        "deterministic": deterministic or torch.are_deterministic_algorithms_enabled(),
    }
    try:
        if tensors.cuda_index(q, k, v, out) is None:
            _gradients_on_cpu(named, made, mask, options)
        else:
            gradients_on_gpu(named, made, mask, options)
    except (RuntimeError, TypeError):  # of torch, which says nothing of which tensor it is
        tensors.check_storage(**named)
        raise
    return made  # type: ignore[return-value]


def _in_memory(grad: Any) -> Any:
    """A gradient whose elements are what lies in its memory: autograd also hands on negated views and bare zeros."""
    if grad.is_neg() or grad._is_zerotensor():
        return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device).copy_(grad)
    return grad


def _gradients_on_cpu(
    named: dict[str, Any], made: tuple[Any, ...], mask: Any, options: dict[str, Any]
) -> None:
    arrays: dict[str, Any] = {
        name: None if one is None else tensors.on_host(name, one) for name, one in named.items()
    }
    into = tuple(
        None if one is None else tensors.on_host(f"d{name}", one)
        for name, one in zip(_NAMES, made[:3], strict=True)
    )
    found = api.attention_backward(**arrays, mask=mask, out_grads=into, **options)
    if made[3] is not None:
        made[3].copy_(torch.from_numpy(found[3]))


def gradients_on_gpu(
    named: dict[str, Any], made: tuple[Any, ...], mask: Any, options: dict[str, Any], config: Any = None
) -> None:
    """Gradients of CUDA tensors into `made`, on torch's current stream of their device; does not wait for it.

    named: dout, q, k, v, out, lse, dlse and sink_logits (these two or None).  made: dq, dk, dv and dsink_logits.
    options: scale, softcap, wanted, deterministic.  config: a BackwardSpec.
    Called from autograd's thread of the device, too: device and stream are those of torch in the calling thread.
    The tensors belong to torch's allocator and are named by the caller until every kernel has been launched, so their
    memory is used again only behind these kernels.
    """
    gpu = _gpu or _load_gpu()
    index = named["q"].get_device()
    stream = gpu.external_stream(index, eager.raw_stream(index))
    gpu.on_device(index, _launched, named, made, mask, options | {"config": config}, stream)


def prepare_on_gpu(inputs: tuple[Any, Any, Any], mask: Any, scores: Scores, sink_logits: Any) -> None:
    """What the first backward pass of such CUDA tensors does before its launches, on torch's current stream."""
    gpu = _gpu or _load_gpu()
    index = tensors.cuda_index(*inputs, None)
    assert index is not None
    stream = gpu.external_stream(index, eager.raw_stream(index))
    gpu.on_device(index, _prepared, inputs, mask, scores, sink_logits, stream)


def _prepared(inputs: tuple[Any, Any, Any], mask: Any, scores: Scores, sink_logits: Any, stream: Any) -> None:
    arrays = (_view(name, one) for name, one in zip(_NAMES, inputs, strict=True))
    changes = {
        "sink_logits": None if sink_logits is None else _view(_SINK, sink_logits),
        "softcap": scores[1],
    }
    with stream:
        _gpu.prepare_backward(*arrays, mask, scale=scores[0], config=None, **changes)


def _launched(
    named: dict[str, Any], made: tuple[Any, ...], mask: Any, options: dict[str, Any], stream: Any
) -> None:
    named = named | {name: named[name].contiguous() for name in ("lse", "dlse") if named[name] is not None}
    dout, q, k, v, out, lse, dlse = (named[name] for name in _READ)
    sinks = named[_SINK]
    index = q.get_device()
    read = [0 if one is None else one.data_ptr() for one in (q, k, v, out, lse, dout, dlse)]
    # A plan is determined by these and by the mask; `made`, lse and dlse are contiguous.
    key = (
        ("torch", index, options["wanted"], options["deterministic"], options["scale"], options["config"]),
        (options["softcap"], None if sinks is None else (sinks.shape, sinks.stride(), sinks.dtype)),
        (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), out.shape, out.stride(), lse.shape),
        (dout.shape, dout.stride(), read[5] % _ALIGN == 0, None if dlse is None else dlse.shape),
        (q.dtype, k.dtype, v.dtype, out.dtype, dout.dtype, lse.dtype, None if dlse is None else dlse.dtype),
        (_gpu.epoch(), isinstance(mask, (list, tuple))),
    )
    plan = None
    if not (read[0] | read[1] | read[2] | read[3]) % _ALIGN and 0 not in read[:6]:
        plan = _gpu.find_plan(key, mask)
    if plan is None:
        arrays = {name: None if one is None else _view(name, one) for name, one in named.items()}
        given = tuple(arrays[name] for name in _READ[:-1])
        with stream:
            rest = {name: arrays[name] for name in ("dlse", _SINK)}
            plan = _gpu.make_plan(key, given, mask, {**options, **rest})
    scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=q.device)
    *written, dsinks = (0 if one is None else one.data_ptr() for one in made)
    at_sinks = 0 if sinks is None else sinks.data_ptr()
    plan.launch(_gpu.Addresses(*read, *written, at_sinks, dsinks), stream, scratch.data_ptr())


def _view(name: str, tensor: Any) -> Any:
    """The memory of a CUDA tensor as a CuPy array, which keeps the tensor."""
    found = tensors.on_device(name, tensor)
    if not found.data.ptr:
        tensors.check_storage(**{name: tensor})
    extent = sum((count - 1) * stride for count, stride in zip(found.shape, found.strides, strict=True))
    cupy = _gpu.cupy
    memory = cupy.cuda.UnownedMemory(
        found.data.ptr, extent + found.dtype.itemsize, tensor, found.data.device_id
    )
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(found.shape, found.dtype, pointer, found.strides)


def _load_gpu() -> Any:
    global _gpu
    import cupy

    from omnicupy.gpu import backward, backward_plan, streams
    from omnicupy.jit import cache

    _gpu = SimpleNamespace(
        prepare_backward=backward.prepare_backward,
        find_plan=backward.find_plan,
        make_plan=backward.make_plan,
        Addresses=backward_plan.Addresses,
        epoch=lambda: cache.epoch,
        external_stream=streams.external_stream,
        on_device=streams.on_device,
        cupy=cupy,
    )
    return _gpu
