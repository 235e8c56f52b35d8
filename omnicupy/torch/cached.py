"""attention(), plan() and prepare() on a CachedKV or PagedKV of tensors: eager alone, without gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from omnicupy import api
from omnicupy.call import check_cached
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.serving.caches import CACHES, AnyKV, CachedKV, PagedKV, pools_of, with_lengths
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep
from omnicupy.torch import eager, state, tensors

_gpu: Any = None  # what a launch needs of omnicupy.gpu, imported at the first CUDA tensor
EAGER = (
    "a CachedKV is served eagerly alone, of plain tensors; call attention outside of torch.compile, torch.func and "
    "dispatch modes (torch.compiler.disable)"
)


def attention(q: Any, kv: Any, v: Any, mask: Any, *, return_lse: bool, **options: Any) -> Any:
    """`omnicupy.attention` with a CachedKV of torch tensors. options: the others of attention."""
    options = check_cached.own_options("attention", options)
    q = _checked(q, kv, options["out"])
    step = mask if isinstance(mask, CachedStep) else None
    rule = mask
    if step is not None:
        check_cached.fits_step(q, kv, step)
        rule, options["config"] = step.rule, options["config"] or step.config
    index = _index(q, kv, options["out"])
    if index is None:
        return _on_cpu(q, kv, v, mask, return_lse, options)
    gpu = _gpu or _load_gpu()
    stream = gpu.external_stream(index, eager.raw_stream(index))
    plan = _plan_of(q, kv, v, rule, index=index, stream=stream, options=options)
    made = None if step is None else gpu.lists_of(step, plan)
    out = options["out"]
    to = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
    k, values, table = pools_of(kv)
    addresses = (
        q.data_ptr(),
        k.data_ptr(),
        values.data_ptr(),
        to.data_ptr(),
        0 if lse is None else lse.data_ptr(),
    )
    of_table = None if table is None else table.data_ptr()
    gpu.on_device(index, plan.launch, addresses, kv.lengths.data_ptr(), stream, made, of_table)
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return (to, lse) if return_lse else to


def plan(q: Any, kv: AnyKV, mask: CachedRule, *, config: AttnSpec | None = None) -> CachedStep:
    """`omnicupy.plan` on torch tensors, on torch's current stream: pass what it returns as `mask` to each layer.

    Raises what `attention` raises.
    """
    q = _checked(q, kv, None)
    index = _index(q, kv, None)
    shapes = check_cached.step_shapes(q, kv)
    if index is None:
        arrays = _host(q, kv)
        made: CachedStep = api.plan(*arrays, mask, config=config)
        return CachedStep(mask, kv.lengths, shapes, made.lists)
    gpu = _gpu or _load_gpu()
    stream = gpu.external_stream(index, eager.raw_stream(index))
    found = _plan_of(
        q, kv, None, mask, index=index, stream=stream, options={"scale": None, "out": None, "config": config}
    )
    lists = gpu.on_device(index, found.make_lists, kv.lengths.data_ptr(), stream)
    return CachedStep(mask, kv.lengths, shapes, lists, config)


def prepare(q: Any, kv: Any, v: Any, mask: Any, *, gradients: bool, max_length: Any, **options: Any) -> None:
    """`omnicupy.prepare` with a CachedKV of torch tensors. options: the others of attention."""
    options = check_cached.own_options("prepare", options)
    q = _checked(q, kv, options["out"])
    if gradients:
        raise UnsupportedError("prepare: a CachedKV has no gradients; drop gradients=True")
    index = _index(q, kv, options["out"])
    if index is None:
        out = options.pop("out")
        arrays = _host(q, kv)
        target = None if out is None else tensors.on_host("out", out)
        api.prepare(*arrays, v, mask, out=target, max_length=max_length, **options)
        return
    if max_length is not None:
        check_cached.call(*_arrays(q, kv, None)[:2], v, mask, max_length=max_length)
    stream = (_gpu or _load_gpu()).external_stream(index, eager.raw_stream(index))
    _plan_of(q, kv, v, mask, index=index, stream=stream, options=options)


def _checked(q: Any, kv: Any, out: Any) -> Any:
    """q as autocast has it. Raises for what is no tensor, and where autograd or a compiler has to see the call."""
    if not isinstance(kv, CACHES):
        check_cached.refuse_rule_without_cache(kv)
    k, v, table = pools_of(kv)
    tensors.check(q, k, v, out)
    numbers = {"lengths": kv.lengths} | ({} if table is None else {"page_table": table})
    for name, array in numbers.items():
        if not isinstance(array, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor like q, got {type(array).__name__}")
    plain = all(type(one) in state.PLAIN for one in (q, k, v, *numbers.values(), out) if one is not None)
    watched = not plain or state.transform() is not None or state.modes() or state.jit_traces()
    if watched:
        raise UnsupportedError(EAGER)
    if tensors.need_gradients(q, k, v) or state.has_tangents():
        raise UnsupportedError(
            "a CachedKV has no gradients; call under torch.no_grad(), or pass a Mask for one length"
        )
    if state.any_autocast():  # the caches stay as they are: a copy of them would cost more than the call
        q = tensors.autocast(q, q, q)[0]
    tensors.check_storage(q=q, k=k, v=v, out=out)
    return q


def _index(q: Any, kv: AnyKV, out: Any) -> int | None:
    """The CUDA device of all, None for the CPU."""
    k, v, table = pools_of(kv)
    for name, array in (("lengths", kv.lengths), ("page_table", table)):
        if array is None:
            continue
        if array.device != q.device:
            raise ValueError(
                f"{name} must be on the device of q ({q.device}), got {array.device}; move it there"
            )
        if array.dtype != torch.int32:
            raise TypeError(f"{name} must be int32, got {array.dtype}; cast it")
    return tensors.cuda_index(q, k, v, out)


def _mapped(kv: AnyKV, of_pool: Any, of_numbers: Any) -> AnyKV:
    """The same caches of other arrays. of_pool: of a name and a tensor.  of_numbers: of a tensor of int32."""
    lengths = of_numbers(kv.lengths)
    if isinstance(kv, PagedKV):
        k, v = of_pool("k_pages", kv.k_pages), of_pool("v_pages", kv.v_pages)
        return PagedKV(k, v, of_numbers(kv.page_table), lengths)
    return CachedKV(of_pool("k", kv.k), of_pool("v", kv.v), lengths)


def _host(q: Any, kv: AnyKV) -> tuple[Any, AnyKV]:
    return tensors.on_host("q", q), _mapped(kv, tensors.on_host, lambda array: array.detach().numpy())


def _on_cpu(q: Any, kv: AnyKV, v: Any, mask: Any, return_lse: bool, options: dict[str, Any]) -> Any:
    if options["config"] is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    out = options["out"]
    target = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    array, caches = _host(q, kv)
    if isinstance(mask, CachedStep):
        caches, mask = with_lengths(caches, mask.lists), mask.rule
    found = api.attention(
        array,
        caches,
        v,
        mask,
        scale=options["scale"],
        return_lse=return_lse,
        out=tensors.on_host("out", target),
    )
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return (target, torch.from_numpy(found[1])) if return_lse else target


def _arrays(q: Any, kv: AnyKV, out: Any) -> tuple[Any, AnyKV, Any]:
    """The memory of CUDA tensors."""
    caches = _mapped(kv, tensors.on_device, tensors.int32_on_device)
    return tensors.on_device("q", q), caches, None if out is None else tensors.on_device("out", out)


def _plan_of(
    q: Any, kv: AnyKV, v: Any, rule: Any, *, index: int, stream: Any, options: dict[str, Any]
) -> Any:
    """The plan for tensors of CUDA device `index`: found by what torch tells of them, or a new one."""
    (k, values, table), lengths, out = pools_of(kv), kv.lengths, options["out"]
    key = (
        (
            q.shape,
            q.stride(),
            k.shape,
            k.stride(),
            values.shape,
            values.stride(),
            q.dtype,
            k.dtype,
            values.dtype,
        ),
        (lengths.shape, lengths.stride()),
        index,
        None if out is None else (out.shape, out.stride(), out.dtype),
        v is None,
        None if table is None else (table.shape, table.stride()),
    )
    of_out = None if out is None else out.data_ptr()
    of_table = None if table is None else table.data_ptr()
    addresses = (q.data_ptr(), k.data_ptr(), values.data_ptr(), of_out, lengths.data_ptr(), of_table)
    scale, config = options["scale"], options["config"]
    found = _gpu.find_plan(key, addresses, rule, scale, config)
    if found is None:
        array, caches, target = _arrays(q, kv, out)
        found = _gpu.make_plan(
            key, (array, caches, v, target), rule, scale=scale, config=config, stream=stream
        )
    return found


def _load_gpu() -> Any:
    global _gpu
    from omnicupy.gpu import cached, streams

    _gpu = SimpleNamespace(
        find_plan=cached.find_plan,
        make_plan=cached.make_plan,
        lists_of=cached.lists_of,
        external_stream=streams.external_stream,
        on_device=streams.on_device,
    )
    return _gpu
