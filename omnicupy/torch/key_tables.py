"""Calls of one row a sequence whose keys are named by a table on the device: a step of decoding with padding.

Each key head of each sequence is a sequence of its own here, and each key a page of one token, so that neither strides
nor lengths of a growing cache are part of a plan: one plan serves the steps and layers of a whole generation. The host
reads nothing and makes no mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from omnicupy.call.arrays import DeviceArray
from omnicupy.serving.caches import PagedKV
from omnicupy.serving.rule import cached
from omnicupy.torch import eager, memory, pools, state, tensors

CAPACITY = (
    256  # keys that a table has room for are a multiple of it, so that few lengths need a plan of their own
)
POOL = 1 << 20  # and so are the pages of a pool, of which a table names those that are there
MOST_PAGES = (1 << 31) - POOL
_ELEMENTS, _ALIGN = 8, 16  # elements of 16 bits, and bytes: what kernels read in one go
_RULE = cached()
_gpu: Any = None  # what a launch needs of omnicupy.gpu, imported at the first call


@dataclass(frozen=True)
class Layout:
    """Where the keys of a call lie. batch, heads, keys: of k.  steps: from one to the next of each of these, in pages.
    k_page, v_page: elements from page to page.
    """

    batch: int
    heads: int
    keys: int
    steps: tuple[int, int, int]
    k_page: int
    v_page: int

    @property
    def sequences(self) -> int:
        """Key heads of all sequences."""
        return self.batch * self.heads

    @property
    def capacity(self) -> int:
        """Keys that a table has room for."""
        return -(-self.keys // CAPACITY) * CAPACITY

    @property
    def pages(self) -> int:
        """More than any page that a table names."""
        last = sum(
            (n - 1) * step for n, step in zip((self.batch, self.heads, self.keys), self.steps, strict=True)
        )
        return (last // POOL + 1) * POOL

    def places(self, keys: int, device: Any) -> Any:
        """The pages of the first `keys` keys, int32, (batch, heads, keys) or what broadcasts to it."""
        dense = self.heads * self.keys, self.keys, 1
        lengths = self.batch, self.heads, self.keys
        if self.steps == tuple(step if n > 1 else 0 for n, step in zip(lengths, dense, strict=True)):
            every = torch.arange(self.sequences * self.keys, dtype=torch.int32, device=device)
            return every.view(self.batch, self.heads, self.keys)[..., :keys]
        axes = (self.batch, 1, 1), (self.heads, 1), (keys,)
        of_batch, of_heads, of_keys = (
            torch.arange(shape[0], dtype=torch.int32, device=device).view(shape) * step
            for shape, step in zip(axes, self.steps, strict=True)
        )
        return of_batch + of_heads + of_keys


def layout_of(k: Any, v: Any) -> Layout | None:
    """The layout of k and v (batch, heads, keys, columns); None where no pages of one token name all keys."""
    if k.dim() != 4 or k.shape[:3] != v.shape[:3] or 0 in k.shape or 0 in v.shape:
        return None
    (of_k, k_page), (of_v, v_page) = _in_pages(k), _in_pages(v)
    if (
        of_k != of_v
        or k.stride(3) != 1
        or v.stride(3) != 1
        or k_page % _ELEMENTS
        or v_page % _ELEMENTS
        or not k_page
    ):
        return None
    found = Layout(*k.shape[:3], of_k, k_page, v_page)
    return found if found.pages <= MOST_PAGES else None


def _in_pages(array: Any) -> tuple[tuple[int, int, int], int]:
    """Steps of the first three axes in pages, and the elements from page to page."""
    strides = [0 if n == 1 else step for n, step in zip(array.shape[:3], array.stride()[:3], strict=True)]
    page = math.gcd(*strides) or array.shape[3]
    a, b, c = (step // page for step in strides)
    return (a, b, c), page


class Keys:
    """Which keys one row of each sequence sees, and what calls made of it: tables, lists of blocks, for all layers.

    seen: boolean (1 or batch, keys), on a device; it may be changed later. keys: of a call, of which `seen` may leave
    out the last ones, which are hidden.
    """

    def __init__(self, seen: Any, keys: int) -> None:
        counts = seen.cumsum(1)
        self.keys = keys
        self._lengths = counts[:, -1:]
        self._order = counts * seen  # the how manieth key it is, from 1; 0 where it is hidden
        self._calls: dict[Any, _Call | None] = {}

    @property
    def device(self) -> Any:
        """Where these are."""
        return self._order.device

    def to(self, device: Any) -> Keys:
        """The same on another device."""
        made = object.__new__(Keys)
        made.keys, made._calls = self.keys, {}
        made._lengths, made._order = (one.to(device) for one in (self._lengths, self._order))
        return made

    def on_host(self) -> Any:
        """The boolean array (1 or batch, keys); waits for the device."""
        seen = self._order.cpu() > 0
        return torch.nn.functional.pad(seen, (0, self.keys - seen.shape[1])).numpy()

    def table(self, layout: Layout) -> tuple[Any, Any]:
        """(table, lengths) of a PagedKV, int32: the pages of the seen keys in order, and how many these are.

        Entries past them are -1, which names no page.
        """
        shape = layout.batch, layout.heads, layout.capacity + 1
        table = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        some = (*shape[:2], self._order.shape[1])
        # Hidden keys all go to entry 0, which is no part of the table.
        table.scatter_(2, self._order[:, None].expand(some), layout.places(some[2], self.device).expand(some))
        lengths = torch.empty(shape[:2], dtype=torch.int32, device=self.device).copy_(self._lengths)
        return table.view(layout.sequences, shape[2])[:, 1:], lengths.view(-1)

    def attention(self, q: Any, k: Any, v: Any, scale: Any, softcap: Any) -> Any:
        """softmax over the seen keys, (batch, 1, heads, columns of v) C-contiguous; None where calls on masks serve it.

        q: (batch, heads, 1, head_dim); k, v: (batch, kv_heads, keys, columns), all on the device of these keys.
        """
        index = q.get_device()
        handle = eager.raw_stream(index)
        key = (
            *(q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype),
            *(index, handle, scale, type(scale), softcap, type(softcap)),
        )
        call = self._calls.get(key, self)
        if call is self:
            call = self._calls[key] = _new_call(self, (q, k, v), (scale, softcap), handle)
        if call is None or q.is_neg() or k.is_neg() or v.is_neg():
            return None
        at = q.data_ptr(), k.data_ptr(), v.data_ptr()
        if 0 in at or not call.plan.kernel.fits_addresses(*at, None):
            return None
        return _gpu.on_device(index, call.launch, at)


def serves(*given: Any) -> bool:
    """Whether `Keys.attention` may be asked about these tensors: plain CUDA tensors of 16 bits, that nothing wraps,
    traces or captures, and of which nobody asks for gradients.
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
    q, k, v = given
    same = q.dtype is k.dtype is v.dtype and (q.dtype is torch.bfloat16 or q.dtype is torch.float16)
    if not (same and q.is_cuda and k.is_cuda and v.is_cuda) or tensors.need_gradients(q, k, v):
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
    others: dict[str, int]

    def launch(self, at: tuple[int, int, int]) -> Any:
        """The output for q, k and v at these addresses; their device is current."""
        out = memory.new(self.out, self.dtype)
        self.plan.launch(
            (*at, out.data_ptr(), 0), self.lengths.data_ptr(), self.stream, self.made, **self.others
        )
        return out


def _new_call(keys: Keys, given: tuple[Any, Any, Any], scores: tuple[Any, Any], handle: int) -> _Call | None:
    """None for what a call on masks serves, better or at all."""
    q, k, v = given
    layout = layout_of(k, v)
    if (
        layout is None
        or q.dim() != 4
        or q.shape[::2] != (layout.batch, 1)
        or q.shape[1] % layout.heads
        or q.stride(3) != 1
        or (layout.batch > 1 and q.stride(0) != q.shape[1] * q.stride(1))
        or keys.keys != layout.keys
        or len(keys._order) not in (1, layout.batch)
        or q.stride(1) % _ELEMENTS
        or (q.data_ptr() | k.data_ptr() | v.data_ptr()) % _ALIGN
    ):
        return None
    gpu = _gpu or _load_gpu()
    index = q.get_device()
    stream = gpu.external_stream(index, handle)
    table, lengths = keys.table(layout)
    arrays = _arrays(q, (k, v), layout, (table, lengths))
    plan = _plan_of(arrays, scores, index, stream)
    # Other kernels copy keys one by one for each head, which costs more than a mask saves.
    if plan.kernel.spec.kernel != "sm90":
        return None
    made = gpu.on_device(index, plan.make_lists, lengths.data_ptr(), stream)
    out = layout.batch, 1, q.shape[1], v.shape[3]
    return _Call(plan, made, table, lengths, stream, out, q.dtype, {"page_table": table.data_ptr()})


def _arrays(
    q: Any, pair: tuple[Any, Any], layout: Layout, numbers: tuple[Any, Any]
) -> tuple[DeviceArray, PagedKV]:
    """q and the caches as kernels have them. The pools have pages that are not there, and that no table names."""
    queries = tensors.on_device("q", q)
    step, size = queries.strides[1], queries.dtype.itemsize
    group = q.shape[1] // layout.heads
    shape = layout.sequences, group, 1, q.shape[3]
    queries = DeviceArray(
        queries.dtype, q.data_ptr(), q.get_device(), shape, (group * step, step, group * step, size)
    )

    def pool(array: Any, page: int) -> DeviceArray:
        steps = size * page, size * page, size * page, size
        shape = layout.pages, 1, 1, array.shape[3]
        return DeviceArray(queries.dtype, array.data_ptr(), array.get_device(), shape, steps)

    k, v = pair
    table, lengths = numbers
    caches = pool(k, layout.k_page), pool(v, layout.v_page)
    return queries, PagedKV(
        *caches, pools.on_device("page_table", table), pools.on_device("lengths", lengths)
    )


def _plan_of(arrays: tuple[DeviceArray, PagedKV], scores: tuple[Any, Any], index: int, stream: Any) -> Any:
    q, kv = arrays
    given = q, kv.k_pages, kv.v_pages, kv.page_table, kv.lengths
    array_key = ("keys by table", index, *((one.shape, one.strides, one.dtype) for one in given))
    options = (*scores, None, None)
    at = tuple(one.data.ptr for one in given[:3])
    found = _gpu.find_plan(
        array_key, (*at, None, kv.lengths.data.ptr, kv.page_table.data.ptr), _RULE, options, None, (0, 0)
    )
    return found or _gpu.make_plan(array_key, (q, kv, None, None, None), _RULE, options, stream=stream)


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
