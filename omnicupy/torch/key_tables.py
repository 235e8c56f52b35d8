"""Calls of one row a sequence whose keys are named by a table on the device: a step of decoding with padding.

Each key is a page of one token, and each key head of a sequence is a sequence of its own here, so that neither strides
nor lengths of a growing cache are part of a plan: one plan serves the steps and layers of a whole generation. Sinks, a
logit a head, keep heads together: then strides between heads count, those of a growing cache in every step. The host
reads nothing and makes no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from omnicupy.call.arrays import DeviceArray
from omnicupy.errors import UnsupportedError
from omnicupy.serving.caches import PagedKV
from omnicupy.serving.rule import cached
from omnicupy.torch import eager, memory, pools, state, tensors
from omnicupy.torch.key_layout import ELEMENTS, Layout, layout_of

_ALIGN = 16  # bytes: what kernels read in one go
_RULE = cached()
_MISSING: Any = object()
_gpu: Any = None  # what a launch needs of omnicupy.gpu, imported at the first call


class SeenKeys:
    """Which keys one row of each sequence sees, and what calls made of it: tables, lists of blocks, for all layers.

    seen: boolean (1 or batch, keys), on a device; it may be changed later. keys: of a call, of which `seen` may leave
    out the last ones, which are hidden.
    """

    def __init__(self, seen: Any, keys: int) -> None:
        counts = seen.cumsum(1)
        # Which of the seen keys a key is, from 1 on; 0 where it is hidden.
        self._hold(keys, counts[:, -1:], counts * seen)

    def _hold(self, keys: int, lengths: Any, order: Any) -> None:
        self.keys, self._lengths, self._order = keys, lengths, order
        self._index = order.get_device()
        self._calls: dict[Any, _Call | None] = {}
        self._elsewhere: dict[Any, SeenKeys] = {}

    @property
    def device(self) -> Any:
        """Where these are."""
        return self._order.device

    def on(self, device: Any) -> SeenKeys:
        """The same on another device: one copy, and what is made of it, for all layers of its current stream."""
        where = torch.device(device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        if where == self.device:
            return self
        key = where, eager.raw_stream(where.index)
        made = self._elsewhere.get(key)
        if made is None:
            made = self._elsewhere[key] = object.__new__(SeenKeys)
            made._hold(self.keys, self._lengths.to(where), self._order.to(where))
        return made

    def on_host(self) -> Any:
        """The boolean array (1 or batch, keys); waits for the device."""
        seen = self._order.cpu() > 0
        return torch.nn.functional.pad(seen, (0, self.keys - seen.shape[1])).numpy()

    def fit(self, layout: Layout) -> bool:
        """Whether they are those of a call."""
        return self.keys == layout.keys and len(self._order) in (1, layout.batch)

    def table(self, layout: Layout) -> tuple[Any, Any]:
        """(table, lengths) of a PagedKV, int32: the pages of the seen keys in order, and how many these are.

        Entries past them are -1, which names no page.
        """
        shape = *layout.sequences, layout.capacity + 1
        table = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        some = (*shape[:2], self._order.shape[1])
        # Hidden keys all go to entry 0, which is no part of the table.
        table.scatter_(2, self._order[:, None].expand(some), layout.places(some[2], self.device).expand(some))
        lengths = torch.empty(shape[:2], dtype=torch.int32, device=self.device).copy_(self._lengths)
        return table.view(-1, shape[2])[:, 1:], lengths.view(-1)

    def attention(self, q: Any, k: Any, v: Any, sinks: Any, scores: tuple[Any, Any]) -> Any:
        """softmax over the seen keys, (batch, 1, heads, columns of v) C-contiguous; None where calls on masks serve it.

        q: (batch, heads, 1, head_dim); k, v: (batch, kv_heads, keys, columns), for which `serves` is true, on whatever
        device.  sinks: sink_logits of attention, or None.  scores: scale and softcap.
        """
        index = q.get_device()
        if index != self._index:
            return self.on(q.device).attention(q, k, v, sinks, scores)
        # Heads of one element are neighbours in a fused projection, those of the next element are none.
        if len(q) > 1 and q.stride(0) != q.shape[1] * q.stride(1):
            q = q.contiguous()
        handle = eager.raw_stream(index)
        scale, softcap = scores
        key = (
            *(q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype),
            *(index, handle, scale, type(scale), softcap, type(softcap), sinks is None),
        )
        call = self._calls.get(key, _MISSING)
        if call is _MISSING:
            call = self._calls[key] = _new_call(self, (q, k, v, sinks), scores, handle)
        if call is None or q.is_neg() or k.is_neg() or v.is_neg():
            return None
        at = q.data_ptr(), k.data_ptr(), v.data_ptr()
        to_sinks = 0
        if sinks is not None and (sinks.is_neg() or not (to_sinks := sinks.data_ptr())):
            return None
        if 0 in at or not call.plan.kernel.fits_addresses(*at, None):
            return None
        # q and sinks are named in this frame, so they outlive the launch.
        return _gpu.on_device(index, call.launch, at, to_sinks)


def serves(*given: Any) -> bool:
    """Whether `SeenKeys.attention` may be asked about q, k, v and sinks or None: plain tensors of one CUDA device, the
    first three of 16 bits, that nothing wraps, traces or captures, and of which nobody asks for gradients.
    """
    if (
        not state.are_plain(*given)
        or state.modes()
        or state.jit_traces()
        or state.transform() is not None
        or state.has_tangents()
        or state.tracer() is not None
    ):
        return False
    q, k, v, sinks = given
    same = q.dtype is k.dtype is v.dtype and (q.dtype is torch.bfloat16 or q.dtype is torch.float16)
    index = q.get_device()
    if sinks is not None and not (
        sinks.dtype is torch.float32 and sinks.is_contiguous() and sinks.get_device() == index
    ):
        return False
    if not (same and q.is_cuda and k.get_device() == index == v.get_device()):
        return False
    if tensors.need_gradients(*given):
        return False
    return not torch.cuda.is_current_stream_capturing()


@dataclass
class _Call:
    """What layers with equal arrays share in a step. table, lengths: kept while launches may read them.  made: the
    step's lists, which `plan` wrote.  out: shape of the output.
    """

    plan: Any
    made: Any
    table: Any
    lengths: Any
    stream: Any
    out: tuple[int, ...]
    dtype: Any

    def launch(self, at: tuple[int, int, int], sinks: int) -> Any:
        """The output for q, k, v and sinks, 0 for none, at these addresses; their device is current."""
        out = memory.new(self.out, self.dtype)
        self.plan.launch(
            (*at, out.data_ptr(), 0),
            self.lengths.data_ptr(),
            self.stream,
            self.made,
            page_table=self.table.data_ptr(),
            sink_logits=sinks,
        )
        return out


def _new_call(
    keys: SeenKeys, given: tuple[Any, Any, Any, Any], scores: tuple[Any, Any], handle: int
) -> _Call | None:
    """given: q, k, v and sinks or None. None for what a call on masks serves, better or at all."""
    q, k, v, sinks = given
    layout = layout_of(k, v, apart=sinks is None)
    if layout is None or not keys.fit(layout) or not _fits(q, layout):
        return None
    if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % _ALIGN:
        return None
    gpu = _gpu or _load_gpu()
    index = q.get_device()
    stream = gpu.external_stream(index, handle)
    table, lengths = keys.table(layout)
    arrays = _arrays(q, (k, v), layout, (table, lengths))
    try:
        plan = _plan_of(arrays, sinks, scores, stream)
    except UnsupportedError:  # maybe of pages alone
        return None
    # Other kernels copy keys one by one for each head, which costs more than a mask saves.
    if plan.kernel.spec.kernel != "sm90":
        return None
    made = gpu.on_device(index, plan.make_lists, lengths.data_ptr(), stream)
    return _Call(plan, made, table, lengths, stream, (layout.batch, 1, q.shape[1], v.shape[3]), q.dtype)


def _fits(q: Any, layout: Layout) -> bool:
    """Whether q has one row for each sequence, and heads that kernels read."""
    return bool(
        q.dim() == 4
        and q.shape[::2] == (layout.batch, 1)
        and q.shape[1] % layout.heads == 0
        and q.stride(3) == 1
        and q.stride(1) % ELEMENTS == 0
    )


def _arrays(
    q: Any, pair: tuple[Any, Any], layout: Layout, numbers: tuple[Any, Any]
) -> tuple[DeviceArray, PagedKV]:
    """q and the caches as kernels have them. The pools have pages that are not there, and that no table names."""
    at = tensors.on_device("q", q)
    size, step = at.dtype.itemsize, at.strides[1]
    batch, apart = layout.sequences
    heads, group = layout.heads // apart, q.shape[1] // apart
    shape = batch * apart, group, 1, q.shape[3]
    queries = DeviceArray(at.dtype, at.ptr, at.device_id, shape, (group * step, step, group * step, size))

    def pool(array: Any, page: int) -> DeviceArray:
        steps = size * page, size * page, size * page * (1 if heads == 1 else layout.steps[1]), size
        shape = layout.pages, 1, heads, array.shape[3]
        return DeviceArray(at.dtype, array.data_ptr(), at.device_id, shape, steps)

    (k, v), (table, lengths) = pair, numbers
    caches = pool(k, layout.k_page), pool(v, layout.v_page)
    return queries, PagedKV(
        *caches, pools.on_device("page_table", table), pools.on_device("lengths", lengths)
    )


def _plan_of(arrays: tuple[DeviceArray, PagedKV], sinks: Any, scores: tuple[Any, Any], stream: Any) -> Any:
    """The plan that serves such calls: one that was made, or a new one."""
    q, kv = arrays
    given = [q, kv.k_pages, kv.v_pages, kv.page_table, kv.lengths]
    logits = None if sinks is None else tensors.on_device("sink_logits", sinks)
    given += [] if logits is None else [logits]
    key = ("keys by table", q.device_id, *((one.shape, one.strides, one.dtype) for one in given))
    options = (*scores, None, None)
    at = q.ptr, kv.k_pages.ptr, kv.v_pages.ptr, None, kv.lengths.ptr, kv.page_table.ptr
    to_sinks = None if logits is None else logits.ptr
    found = _gpu.find_plan(key, at, _RULE, options, to_sinks, (0, 0))
    return found or _gpu.make_plan(key, (q, kv, None, None, logits), _RULE, options, stream=stream)


def _load_gpu() -> Any:
    global _gpu
    from omnicupy.gpu import cached, streams

    _gpu = SimpleNamespace(
        find_plan=cached.find_plan,
        make_plan=cached.make_plan,
        external_stream=streams.external_stream,
        on_device=streams.on_device,
    )
    return _gpu
