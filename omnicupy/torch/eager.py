"""The call on real tensors: torch's stream, torch's allocator, no dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from omnicupy import api
from omnicupy.torch import memory, tensors

Named: TypeAlias = tuple[Any, Any, Any, Any]  # q, k, v and `out` or None
Options: TypeAlias = tuple[Any, Any, Any, Any]  # scale, softcap, config and split, as in omnicupy.attention
_gpu: Any = None  # what a launch needs of omnicupy.gpu, imported at the first CUDA tensor: CPU users never import CuPy
# The handle of torch's current stream of a device; through the public call it would cost a Stream object each time.
raw_stream: Callable[[int], int] = getattr(
    torch._C,
    "_cuda_getCurrentRawStream",
    lambda index: int(torch.cuda.current_stream(index).cuda_stream),
)


def run_eagerly(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any,
    return_lse: bool,
    out: Any,
    config: Any,
    split: Any = None,
    sink_logits: Any = None,
    softcap: Any = None,
) -> Any:
    """The call on real tensors."""
    index = tensors.cuda_index(q, k, v, out)
    if sink_logits is not None:
        tensors.check_sink(sink_logits, q)
    options = scale, softcap, config, split
    if index is None:
        found = _on_cpu((q, k, v, out), mask, options, sink_logits, return_lse=return_lse)
    else:
        at, plan, stream = _planned((q, k, v, out), mask, options, index, sink_logits)
        # The tensors are named in this frame, so they outlive the launch.
        found = _gpu.on_device(
            index, _launched, plan, (*at[:3], q.dtype, sink_logits), out, return_lse, stream
        )
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return found


def _launched(plan: Any, given: tuple[Any, ...], out: Any, return_lse: bool, stream: Any) -> Any:
    """`out` or a new output, and lse where it is wanted, of a launch on `stream`, whose device is current.

    given: addresses of q, k and v, their dtype, and sink_logits or None.
    """
    q, k, v, dtype, sink_logits = given
    shape = plan.shape
    to = memory.new(shape, dtype) if out is None else out
    lse, at_lse = None, 0
    if return_lse:
        lse = memory.new(shape[:3], torch.float32)
        at_lse = lse.data_ptr()
    if sink_logits is None:
        plan.launch(q, k, v, to.data_ptr(), at_lse, stream)
    else:
        plan.launch(q, k, v, to.data_ptr(), at_lse, stream, sink_logits=sink_logits.data_ptr())
    return (to, lse) if return_lse else to


@cache
def untraced(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for a process that compiles: what torch.compile leaves to Python it must not try to trace again."""
    return torch.compiler.disable(call)  # type: ignore[no-any-return]


def prepare_eagerly(q: Any, k: Any, v: Any, mask: Any, given: dict[str, Any]) -> None:
    """What the first call with these real tensors does before its launch. given: the other options of attention."""
    out, sink_logits = given["out"], given["sink_logits"]
    index = tensors.cuda_index(q, k, v, out)
    if sink_logits is not None:
        tensors.check_sink(sink_logits, q)
    tensors.check_storage(q=q, k=k, v=v, out=out, sink_logits=sink_logits)
    if index is not None:
        options = given["scale"], given["softcap"], given["config"], given["split"]
        _planned((q, k, v, out), mask, options, index, sink_logits)
        return
    arrays = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = None if out is None else tensors.on_host("out", out)
    sinks = None if sink_logits is None else tensors.on_host("sink_logits", sink_logits)
    api.prepare(*arrays, mask, **given | {"out": target, "sink_logits": sinks})


def _planned(named: Named, mask: Any, options: Options, index: int, sink_logits: Any) -> tuple[Any, Any, Any]:
    """Addresses, the plan, found by what torch tells of the tensors or a new one, and torch's current stream.

    named: q, k, v and `out` or None, all of CUDA device `index`.
    """
    gpu = _gpu or _load_gpu()
    q, k, v, out = named
    at = q.data_ptr(), k.data_ptr(), v.data_ptr(), None if out is None else out.data_ptr()
    if 0 in at or q.is_neg() or k.is_neg() or v.is_neg() or (out is not None and out.is_neg()):
        tensors.check_storage(q=q, k=k, v=v, out=out)
    stream = gpu.external_stream(index, raw_stream(index))
    # A plan is determined by these and by mask and options, and by where the addresses lie, which find_plan looks
    # at; what else a tensor may be (a subclass, negated, without memory) has been refused or sent elsewhere.
    array_key = (
        (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype),
        index,
        None if out is None else (out.shape, out.stride(), out.dtype),
        None if sink_logits is None else (sink_logits.shape, sink_logits.stride(), sink_logits.dtype),
    )
    plan = gpu.find_plan(array_key, at, mask, options)
    if sink_logits is not None:
        sinks = _address_of(sink_logits)
        if plan is not None and sinks and not plan.fits_sink(sinks, at[3]):
            plan = None
    return at, plan or _new_plan(array_key, named, mask, options, stream, sink_logits), stream


def _address_of(sink_logits: Any) -> int:
    address: int = sink_logits.data_ptr()
    if not address or sink_logits.is_neg():
        tensors.check_storage(sink_logits=sink_logits)
    return address


def _new_plan(
    array_key: Any, named: Named, mask: Any, options: Options, stream: Any, sink_logits: Any
) -> Any:
    """The plan of a call that none is kept for, after all checks."""
    arrays = tuple(
        None if tensor is None else tensors.on_device(name, tensor)
        for name, tensor in zip(("q", "k", "v", "out"), named, strict=True)
    )
    sinks = None if sink_logits is None else tensors.on_device("sink_logits", sink_logits)
    return _gpu.make_plan(array_key, arrays, mask, options, sink_logits=sinks, stream=stream)


def _load_gpu() -> Any:
    global _gpu
    from omnicupy.gpu import attention, streams

    _gpu = SimpleNamespace(
        find_plan=attention.find_plan,
        make_plan=attention.make_plan,
        external_stream=streams.external_stream,
        on_device=streams.on_device,
    )
    return _gpu


def _on_cpu(named: Named, mask: Any, options: Options, sink_logits: Any, *, return_lse: bool) -> Any:
    """named: q, k, v and `out` or None."""
    q, k, v, out = named
    scale, softcap, config, split = options
    if config is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    inputs = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = tensors.new_out(q, v) if out is None else out
    sinks = None if sink_logits is None else tensors.on_host("sink_logits", sink_logits)
    to = tensors.on_host("out", target)
    rest = {"sink_logits": sinks, "softcap": softcap, "split": split}
    found = api.attention(*inputs, mask, scale=scale, return_lse=return_lse, out=to, **rest)
    return (target, torch.from_numpy(found[1])) if return_lse else target
