"""Gradients of real tensors: on the CPU by NumPy and BLAS, on a GPU on the stream of the thread that asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from omnicupy import api
from omnicupy.torch import eager, memory, tensors

_NAMES = ("q", "k", "v")
_SINK = "sink_logits"
Scores: TypeAlias = tuple[Any, Any]  # scale and softcap
How: TypeAlias = tuple[Scores, tuple[bool, ...], bool]  # scores, wanted and deterministic, as in `gradients`
_GIVEN = ("dout", "q", "k", "v", "out", "lse", "dlse", _SINK)
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
    if dout.is_neg() or dout._is_zerotensor():
        dout = _in_memory(dout)
    if dlse is not None and (dlse.is_neg() or dlse._is_zerotensor()):
        dlse = _in_memory(dlse)
    given = (dout, q, k, v, out, lse, dlse, sink_logits)
    how = (scores, tuple(wanted), deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        index = tensors.cuda_index(q, k, v, out)
        if index is None:
            return _gradients_on_cpu(given, mask, how)
        gpu = _gpu or _load_gpu()
        stream = gpu.external_stream(index, eager.raw_stream(index))
        # The tensors are named in this frame, so they outlive the launches.
        return gpu.on_device(index, _launched, given, mask, how, stream)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):  # of torch, which says nothing of which tensor it is
        tensors.check_storage(**dict(zip(_GIVEN, given, strict=True)))
        raise


def _in_memory(grad: Any) -> Any:
    """A gradient whose elements are what lies in its memory: autograd also hands on negated views and bare zeros."""
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device).copy_(grad)


def _options(how: How) -> dict[str, Any]:
    """How gradients are made, as attention_backward takes it."""
    (scale, softcap), wanted, deterministic = how
    names = tuple(name for name, asked in zip((*_NAMES, _SINK), wanted, strict=True) if asked)
    return {"scale": scale, "softcap": softcap, "wanted": names, "deterministic": deterministic}


def _gradients_on_cpu(given: tuple[Any, ...], mask: Any, how: How) -> tuple[Any, Any, Any, Any]:
    arrays: dict[str, Any] = {
        name: None if one is None else tensors.on_host(name, one)
        for name, one in zip(_GIVEN, given, strict=True)
    }
    like = (*given[1:4], given[7])
    dq, dk, dv, dsinks = (
        torch.empty_like(one, memory_format=torch.contiguous_format) if asked else None
        for one, asked in zip(like, how[1], strict=True)
    )
    into = tuple(
        None if one is None else tensors.on_host(f"d{name}", one)
        for name, one in zip(_NAMES, (dq, dk, dv), strict=True)
    )
    found = api.attention_backward(**arrays, mask=mask, out_grads=into, **_options(how))
    if dsinks is not None:
        dsinks.copy_(torch.from_numpy(found[3]))
    return dq, dk, dv, dsinks


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
    with _gpu.using(stream):
        _gpu.prepare_backward(*arrays, mask, scale=scores[0], config=None, **changes)


def _launched(given: tuple[Any, ...], mask: Any, how: How, stream: Any) -> tuple[Any, Any, Any, Any]:
    """Gradients of CUDA tensors, from launches on `stream`; does not wait for them. Their device is current.

    given: dout, q, k, v, out, lse, dlse and sink_logits (these two or None).
    Called from autograd's thread of the device, too: device and stream are those of torch in the calling thread.
    The tensors belong to torch's allocator and are named by the caller until every kernel has been launched, so their
    memory is used again only behind these kernels.
    """
    gpu = _gpu
    dout, q, k, v, out, lse, dlse, sinks = given
    lse, dlse = lse.contiguous(), None if dlse is None else dlse.contiguous()
    at_q, at_k, at_v, at_out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
    at_lse, at_dout = lse.data_ptr(), dout.data_ptr()
    # A plan is determined by these and by the mask; gradients, lse and dlse are contiguous.
    of_q, of_k, of_v, dtype = q.shape, k.shape, v.shape, q.dtype
    key = (
        *("torch", q.get_device(), how, gpu.cache.epoch, isinstance(mask, (list, tuple))),
        *(of_q, q.stride(), of_k, k.stride(), of_v, v.stride(), out.shape, out.stride()),
        *(dout.shape, dout.stride(), at_dout % _ALIGN == 0, lse.shape),
        *(dtype, k.dtype, v.dtype, out.dtype, dout.dtype, lse.dtype),
        None if dlse is None else (dlse.shape, dlse.dtype),
        None if sinks is None else (sinks.shape, sinks.stride(), sinks.dtype),
    )
    plan = None
    if (
        not (at_q | at_k | at_v | at_out) % _ALIGN
        and at_q
        and at_k
        and at_v
        and at_out
        and at_lse
        and at_dout
    ):
        plan = gpu.find_plan(key, mask)
    if plan is None:
        plan = _new_plan(key, (dout, q, k, v, out, lse, dlse, sinks), mask, how, stream)
    asks_q, asks_k, asks_v, asks_sinks = how[1]
    dq = memory.new(of_q, dtype) if asks_q else None
    dk = memory.new(of_k, dtype) if asks_k else None
    dv = memory.new(of_v, dtype) if asks_v else None
    dsinks = memory.new(sinks.shape, sinks.dtype) if asks_sinks else None
    size = plan.scratch_bytes
    scratch = memory.new((size,), torch.uint8) if size else None
    at = (  # backward_plan.Addresses, but for the time that its names take
        at_q,
        at_k,
        at_v,
        at_out,
        at_lse,
        at_dout,
        0 if dlse is None else dlse.data_ptr(),
        0 if dq is None else dq.data_ptr(),
        0 if dk is None else dk.data_ptr(),
        0 if dv is None else dv.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        0 if dsinks is None else dsinks.data_ptr(),
    )
    plan.launch(at, stream, 0 if scratch is None else scratch.data_ptr())
    return dq, dk, dv, dsinks


def _new_plan(key: Any, given: tuple[Any, ...], mask: Any, how: How, stream: Any) -> Any:
    """The plan for such tensors, after all checks. given: as in _launched."""
    arrays = [None if one is None else _view(name, one) for name, one in zip(_GIVEN, given, strict=True)]
    *read, dlse, sinks = arrays
    rest = {"config": None, "dlse": dlse, _SINK: sinks}
    with _gpu.using(stream):
        return _gpu.make_plan(key, tuple(read), mask, _options(how) | rest)


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

    from omnicupy.gpu import backward, streams
    from omnicupy.jit import cache

    _gpu = SimpleNamespace(
        prepare_backward=backward.prepare_backward,
        find_plan=backward.find_plan,
        make_plan=backward.make_plan,
        cache=cache,
        external_stream=streams.external_stream,
        on_device=streams.on_device,
        using=streams.using,
        cupy=cupy,
    )
    return _gpu
