"""attention(), plan() and prepare() on a CachedKV or PagedKV of tensors: eager alone, without gradients."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from omnicupy import api
from omnicupy.call import check_cached
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.serving.caches import AnyKV, names_of, pools_of, scale_addresses, scales_key, with_lengths
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep
from omnicupy.torch import eager, next_layers, pools, state, tensors

_gpu: Any = None  # what a launch needs of omnicupy.gpu, imported at the first CUDA tensor
EAGER = (
    "a CachedKV is served eagerly alone, of plain tensors; call attention outside of torch.compile, torch.func and "
    "dispatch modes (torch.compiler.disable)"
)


def attention(q: Any, kv: Any, v: Any, mask: Any, *, return_lse: bool, **options: Any) -> Any:
    """`omnicupy.attention` with a CachedKV of torch tensors. options: the others of attention."""
    options = {"sink_logits": None, "softcap": None, "rows": None, "max_rows": None} | options
    q = _checked(q, kv, options["out"], options["sink_logits"], options["rows"])
    step = mask if isinstance(mask, CachedStep) else None
    rule, given = mask, options
    if step is not None:
        check_cached.fits_step(q, kv, step, options["rows"], options["max_rows"])
        rule, options = step.rule, check_cached.behind_step(step, options)
    rows = options["rows"]
    index = _index(q, kv, options["out"], rows)
    if index is None:
        return _on_cpu(q, kv, v, mask, return_lse, options)
    gpu = _gpu or _load_gpu()
    handle = eager.raw_stream(index)
    stream = gpu.external_stream(index, handle)
    plan = _plan_of(q, kv, v, rule, index=index, stream=stream, options=options)
    made = None if step is None else gpu.lists_of(step, plan)
    out = options["out"]
    k, values, table = pools_of(kv)
    to = tensors.new_out(q, values) if out is None else out
    lse = q.new_empty(plan.lse_shape, dtype=torch.float32) if return_lse else None
    addresses = (
        q.data_ptr(),
        k.data_ptr(),
        values.data_ptr(),
        to.data_ptr(),
        0 if lse is None else lse.data_ptr(),
    )
    others: dict[str, Any] = {"page_table": _address(table), "sink_logits": _address(options["sink_logits"])}
    others["scales"] = scale_addresses(kv, pools.address_of)
    launch = partial(plan.launch, row_starts=_address(rows), **others)
    gpu.on_device(index, launch, addresses, kv.lengths.data_ptr(), stream, made)
    if step is not None and step.layer is None:
        next_layers.keep(step, (q, kv), given, gpu, (index, stream, handle), (plan, made))
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return (to, lse) if return_lse else to


def plan(
    q: Any,
    kv: AnyKV,
    mask: CachedRule,
    *,
    softcap: float | None = None,
    config: AttnSpec | None = None,
    split: int | None = None,
    rows: Any = None,
    max_rows: int | None = None,
) -> CachedStep:
    """`omnicupy.plan` on torch tensors, on torch's current stream: pass what it returns as `mask` to each layer.

    All arguments mean what they mean there; arrays are tensors on one device.

    Raises what `attention` raises.
    """
    options: dict[str, Any] = {"scale": None, "sink_logits": None, "out": None}
    options |= {"softcap": softcap, "config": config, "split": split, "rows": rows, "max_rows": max_rows}
    return plan_for(q, kv, mask, options)


def plan_for(q: Any, kv: AnyKV, mask: CachedRule, options: dict[str, Any]) -> CachedStep:
    """`plan` for a layer whose options are known. options: those of attention but return_lse, all of them.

    On a device the layer's call then finds the plan that was made for its step, and makes none of its own.
    """
    rows, max_rows, split = (options[name] for name in ("rows", "max_rows", "split"))
    q = _checked(q, kv, options["out"], options["sink_logits"], rows)
    index = _index(q, kv, options["out"], rows)
    shapes = check_cached.step_shapes(q, kv, max_rows)
    if index is None:
        given: dict[str, Any] = {name: options[name] for name in ("softcap", "config", "split")}
        given |= {"rows": _numbers_on_host(rows), "max_rows": max_rows}
        made = api.plan(*_host(q, kv), mask, **given)
        how = {"split": split, "rows": rows, "softcap": options["softcap"]}
        return CachedStep(mask, kv.lengths, shapes, made.lists, **how)
    gpu = _gpu or _load_gpu()
    stream = gpu.external_stream(index, eager.raw_stream(index))
    found = _plan_of(q, kv, None, mask, index=index, stream=stream, options=options)
    lists = gpu.on_device(index, found.make_lists, kv.lengths.data_ptr(), stream, _address(rows))
    how = {name: options[name] for name in ("config", "split", "rows", "softcap")}
    return CachedStep(mask, kv.lengths, shapes, lists, **how)


def prepare(q: Any, kv: Any, v: Any, mask: Any, *, gradients: bool, max_length: Any, **options: Any) -> None:
    """`omnicupy.prepare` with a CachedKV of torch tensors. options: the others of attention."""
    q = _checked(q, kv, options["out"], options["sink_logits"], options["rows"])
    if gradients:
        raise UnsupportedError("prepare: a CachedKV has no gradients; drop gradients=True")
    index = _index(q, kv, options["out"], options["rows"])
    if index is None:
        arrays = _host(q, kv)
        held = {name: _on_host(name, options[name]) for name in ("out", "sink_logits")}
        held["rows"] = _numbers_on_host(options["rows"])
        api.prepare(*arrays, v, mask, max_length=max_length, **options | held)
        return
    if max_length is not None:
        array, caches, *_ = _arrays(q, kv, None, None)
        ragged = _ragged(options["rows"], options["max_rows"])
        check_cached.call(array, caches, v, mask, max_length=max_length, **ragged)
    stream = (_gpu or _load_gpu()).external_stream(index, eager.raw_stream(index))
    _plan_of(q, kv, v, mask, index=index, stream=stream, options=options)


def _checked(q: Any, kv: Any, out: Any, sink_logits: Any, rows: Any) -> Any:
    """q as autocast has it. Raises for what is no tensor, and where autograd or a compiler has to see the call."""
    check_cached.check_is_cache(kv)
    k, v, table = pools_of(kv)
    tensors.check(q, k, v, out, sink_logits)
    numbers = {"lengths": kv.lengths} | ({} if table is None else {"page_table": table})
    numbers |= {} if rows is None else {"rows": rows}
    for name, array in numbers.items():
        if not isinstance(array, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor like q, got {type(array).__name__}")
    numbers |= pools.scales_of(kv, q.device)
    plain = state.are_plain(q, k, v, *numbers.values(), out, sink_logits)
    if not plain or state.transform() is not None or state.modes() or state.jit_traces():
        raise UnsupportedError(EAGER)
    inputs = q, k, v, sink_logits, *numbers.values()
    if (torch.is_grad_enabled() and any(map(tensors.needs_gradient, inputs))) or state.has_tangents():
        raise UnsupportedError(
            "a CachedKV has no gradients; call under torch.no_grad(), or pass a Mask for one length"
        )
    if state.any_autocast():  # the caches stay as they are: a copy of them would cost more than the call
        q = tensors.autocast(q, q, q)[0]
    if not tensors.lie_in_memory(q, k, v, out, sink_logits, *numbers.values()):
        pools_by_name = dict(zip(names_of(kv), (k, v), strict=True))
        tensors.check_storage(q=q, **pools_by_name, out=out, sink_logits=sink_logits, **numbers)
    if sink_logits is not None:
        tensors.check_sink(sink_logits, q)
    return q


def _index(q: Any, kv: AnyKV, out: Any, rows: Any) -> int | None:
    """The CUDA device of all, None for the CPU."""
    k, v, table = pools_of(kv)
    for name, array in (("lengths", kv.lengths), ("page_table", table), ("rows", rows)):
        if array is None:
            continue
        if array.device != q.device:
            raise ValueError(
                f"{name} must be on the device of q ({q.device}), got {array.device}; move it there"
            )
        if array.dtype != torch.int32:
            raise TypeError(f"{name} must be int32, got {array.dtype}; cast it")
    return tensors.cuda_index(q, k, v, out)


def _host(q: Any, kv: AnyKV) -> tuple[Any, AnyKV]:
    return tensors.on_host("q", q), pools.mapped(kv, pools.on_host)


def _on_cpu(q: Any, kv: AnyKV, v: Any, mask: Any, return_lse: bool, options: dict[str, Any]) -> Any:
    if options["config"] is not None:
        raise ValueError("config must be None for CPU tensors: it chooses a GPU kernel; pass CUDA tensors")
    out = options["out"]
    target = tensors.new_out(q, pools_of(kv)[1]) if out is None else out
    array, caches = _host(q, kv)
    options = options | {"sink_logits": _on_host("sink_logits", options["sink_logits"])}
    options["rows"] = _numbers_on_host(options["rows"])
    if isinstance(mask, CachedStep):
        options["rows"] = mask.lists.rows
        caches, mask = with_lengths(caches, mask.lists.lengths), mask.rule
    found = api.attention(
        array,
        caches,
        v,
        mask,
        return_lse=return_lse,
        **options | {"out": tensors.on_host("out", target)},
    )
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return (target, torch.from_numpy(found[1])) if return_lse else target


def _on_host(name: str, tensor: Any) -> Any:
    return None if tensor is None else tensors.on_host(name, tensor)


def _numbers_on_host(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def _address(tensor: Any) -> int:
    """0 for None."""
    return 0 if tensor is None else int(tensor.data_ptr())


def _ragged(rows: Any, max_rows: Any) -> dict[str, Any]:
    """rows and max_rows of CUDA tensors, as checks and plans take them."""
    if rows is None and max_rows is None:
        return {}
    return {"rows": None if rows is None else pools.on_device("rows", rows), "max_rows": max_rows}


def _arrays(q: Any, kv: AnyKV, out: Any, sink_logits: Any) -> tuple[Any, AnyKV, Any, Any]:
    """The memory of CUDA tensors, out and sink_logits or None."""
    caches = pools.mapped(kv, pools.on_device)
    named = (("out", out), ("sink_logits", sink_logits))
    target, sinks = (None if one is None else tensors.on_device(name, one) for name, one in named)
    return tensors.on_device("q", q), caches, target, sinks


def _plan_of(
    q: Any, kv: AnyKV, v: Any, rule: Any, *, index: int, stream: Any, options: dict[str, Any]
) -> Any:
    """The plan for tensors of CUDA device `index`: found by what torch tells of them, or a new one."""
    (k, values, table), lengths = pools_of(kv), kv.lengths
    out, sinks, rows, most = (options[name] for name in ("out", "sink_logits", "rows", "max_rows"))
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
        None if sinks is None else (sinks.shape, sinks.stride(), sinks.dtype),
        scales_key(kv, pools.key_of),
        None if rows is None else (rows.shape, rows.stride(), most, type(most)),
    )
    of_out = None if out is None else out.data_ptr()
    of_table = None if table is None else table.data_ptr()
    numbers = lengths.data_ptr() | _address(rows)
    addresses = (q.data_ptr(), k.data_ptr(), values.data_ptr(), of_out, numbers, of_table)
    how = options["scale"], options["softcap"], options["config"], options["split"]
    ragged, found = _ragged(rows, most), None
    if (rows is None) == (most is None):  # one alone is refused
        of_sinks = None if sinks is None else sinks.data_ptr()
        found = _gpu.find_plan(key, addresses, rule, how, of_sinks, scale_addresses(kv, pools.address_of))
    if found is None:
        array, caches, target, logits = _arrays(q, kv, out, sinks)
        given = (array, caches, v, target, logits)
        found = _gpu.make_plan(key, given, rule, how, stream=stream, ragged=ragged)
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
