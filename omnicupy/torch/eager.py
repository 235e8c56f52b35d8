"""The call on real tensors: torch's stream, torch's allocator, no dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

from omnicupy import api
from omnicupy.torch import tensors

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
    changes = {"sink_logits": sink_logits, "softcap": softcap}
    if index is None:
        rest = {"scale": scale, "config": config, "split": split}
        found = _on_cpu(q, k, v, mask, return_lse=return_lse, out=out, **rest, **changes)
    else:
        gpu = _gpu or _load_gpu()
        addresses = (q.data_ptr(), k.data_ptr(), v.data_ptr(), None if out is None else out.data_ptr())
        if 0 in addresses or q.is_neg() or k.is_neg() or v.is_neg() or (out is not None and out.is_neg()):
            tensors.check_storage(q=q, k=k, v=v, out=out)
        sinks = 0 if sink_logits is None else _address_of(sink_logits)
        stream = gpu.external_stream(index, raw_stream(index))
        options = scale, config, split
        plan = _plan_of(
            (q, k, v, out), index, addresses, mask, options, stream=stream, **changes, sinks=sinks
        )
        # The tensors are named in this frame, so they outlive the launch.
        to = tensors.new_out(q, v) if out is None else out
        lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
        at_q, at_k, at_v, _ = addresses
        at_lse = 0 if lse is None else lse.data_ptr()
        launch = plan.launch if sink_logits is None else partial(plan.launch, sink_logits=sinks)
        gpu.on_device(index, launch, at_q, at_k, at_v, to.data_ptr(), at_lse, stream)
        found = (to, lse) if return_lse else to
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return found


@cache
def untraced(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for a process that compiles: what torch.compile leaves to Python it must not try to trace again."""
    return torch.compiler.disable(call)  # type: ignore[no-any-return]


def prepare_eagerly(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any,
    out: Any,
    config: Any,
    split: Any = None,
    sink_logits: Any = None,
    softcap: Any = None,
) -> None:
    """What the first call with these real tensors does before its launch."""
    index = tensors.cuda_index(q, k, v, out)
    if sink_logits is not None:
        tensors.check_sink(sink_logits, q)
    if index is not None:
        tensors.check_storage(q=q, k=k, v=v, out=out)
        addresses = (q.data_ptr(), k.data_ptr(), v.data_ptr(), None if out is None else out.data_ptr())
        stream = (_gpu or _load_gpu()).external_stream(index, raw_stream(index))
        rest: dict[str, Any] = {"sink_logits": sink_logits, "softcap": softcap, "stream": stream}
        rest["sinks"] = 0 if sink_logits is None else _address_of(sink_logits)
        _plan_of((q, k, v, out), index, addresses, mask, (scale, config, split), **rest)
        return
    arrays = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = None if out is None else tensors.on_host("out", out)
    sinks = None if sink_logits is None else tensors.on_host("sink_logits", sink_logits)
    options = {"scale": scale, "config": config, "split": split}
    api.prepare(*arrays, mask, out=target, sink_logits=sinks, softcap=softcap, **options)


def _address_of(sink_logits: Any) -> int:
    address: int = sink_logits.data_ptr()
    if not address or sink_logits.is_neg():
        tensors.check_storage(sink_logits=sink_logits)
    return address


def _plan_of(
    named: tuple[Any, Any, Any, Any],
    index: int,
    addresses: Any,
    mask: Any,
    options: tuple[Any, Any, Any],
    *,
    stream: Any,
    sink_logits: Any,
    softcap: Any,
    sinks: int,
) -> Any:
    """The plan for q, k, v and `out`, all of CUDA device `index`: found by what torch tells of them, or a new one.

    options: scale, config and split.  sinks: address of sink_logits.
    """
    (q, k, v, out), (scale, config, split) = named, options
    # A plan is determined by these and by mask and options, and by where the addresses lie, which find_plan looks
    # at; what else a tensor may be (a subclass, negated, without memory) has been refused or sent elsewhere.
    array_key = (
        (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype),
        index,
        None if out is None else (out.shape, out.stride(), out.dtype),
        None if sink_logits is None else (sink_logits.shape, sink_logits.stride(), sink_logits.dtype),
    )
    plan = _gpu.find_plan(array_key, addresses, mask, scale, config, split, softcap=softcap)
    if plan is not None and sinks and not plan.fits_sink(sinks, addresses[3]):
        plan = None
    if plan is None:
        arrays = tuple(
            None if tensor is None else tensors.on_device(name, tensor)
            for name, tensor in zip(("q", "k", "v", "out"), named, strict=True)
        )
        changes: dict[str, Any] = {"softcap": softcap, "sink_logits": None}
        if sink_logits is not None:
            changes["sink_logits"] = tensors.on_device("sink_logits", sink_logits)
        changes |= {"scale": scale, "config": config, "split": split}
        plan = _gpu.make_plan(array_key, arrays, mask, stream=stream, **changes)
    return plan


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


def _on_cpu(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    return_lse: bool,
    out: Any,
    config: Any,
    sink_logits: Any,
    **rest: Any,
) -> Any:
    """rest: scale, softcap and split."""
    if config is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    inputs = (tensors.on_host("q", q), tensors.on_host("k", k), tensors.on_host("v", v))
    target = tensors.new_out(q, v) if out is None else out
    rest["sink_logits"] = None if sink_logits is None else tensors.on_host("sink_logits", sink_logits)
    to = tensors.on_host("out", target)
    found = api.attention(*inputs, mask, return_lse=return_lse, out=to, **rest)
    return (target, torch.from_numpy(found[1])) if return_lse else target
