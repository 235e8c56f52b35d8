"""Caches in pages beside the same keys one behind the other: how engines lay pages out, what must not be read, and
calls of forward kernels on both, run on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cuda_on_cpu
import forward_on_cpu
import numpy as np
import planned
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.call import check_ragged
from omnicupy.call.problem import Problem
from omnicupy.gpu import cached_planning, pages
from omnicupy.gpu.planning import score_fields, struct_of
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.grid import Grid
from omnicupy.serving.caches import sizes_of

Array = NDArray[Any]
SPARE = 3  # pages of a pool that no table names
PAST = (2**31 - 1, -1, -(2**31))  # entries behind a sequence's pages

# Of (pages, page_size, heads, head_dim), an allocator and the width of values, the views of K and V. All but those of
# UNEQUAL hold values as wide as keys.
LAYOUTS: dict[str, Callable[[tuple[int, int, int, int], Any, int], tuple[Array, Array]]] = {
    "tokens-first": lambda s, new, width: (new(s), new((*s[:3], width))),
    "heads-first": lambda s, new, _: _both(new((2, s[0], s[2], s[1], s[3])).swapaxes(2, 3)),
    "vllm": lambda s, new, width: _halves(new((*s[:3], s[3] + width)), s[3]),
    "flashinfer": lambda s, new, _: _both(new((s[0], 2, *s[1:])).swapaxes(0, 1)),
    "flashinfer-heads-first": lambda s, new, _: _both(
        new((s[0], 2, s[2], s[1], s[3])).transpose(1, 0, 3, 2, 4)
    ),
    "transformers": lambda s, new, _: _both(new((s[0], 3, 2, *s[1:])).swapaxes(0, 2)[:, 1]),
    "padded": lambda s, new, _: (_behind_each_other(s, new), _behind_each_other(s, new)),
}
UNEQUAL = ("tokens-first", "vllm")


def _behind_each_other(shape: tuple[int, int, int, int], new: Any) -> Array:
    """Pages with a gap behind each, so that from page to page is no multiple of from key to key."""
    pages, *rest = shape
    columns = math.prod(rest)
    return new((pages, columns + 8))[:, :columns].reshape(shape)


def _both(array: Array) -> tuple[Array, Array]:
    return array[0], array[1]


def _halves(array: Array, head_dim: int) -> tuple[Array, Array]:
    return array[..., :head_dim], array[..., head_dim:]


def paged(
    kv: oc.CachedKV,
    page_size: int,
    *,
    layout: str = "tokens-first",
    seed: int = 0,
    shared: int = 0,
    poison: bool = True,
) -> oc.PagedKV:
    """The same keys in pages of any order, all else NaN or infinite, and entries past the lengths of no page.

    shared: so many first pages of all sequences are those of sequence 0, which has to be long enough.
    """
    rng = np.random.default_rng(seed)
    batch, heads, capacity, head_dim = kv.k.shape
    most = -(-capacity // page_size)
    count = batch * most + SPARE
    k_pages, v_pages = LAYOUTS[layout](
        (count, page_size, heads, head_dim), lambda shape: aligned(shape, kv.k.dtype), kv.v.shape[3]
    )
    table = aligned((batch, most), np.int32)
    table[...] = rng.permutation(count)[: batch * most].reshape(batch, most)
    table[:, :shared] = table[0, :shared]
    for pool in (k_pages, v_pages):
        pool[...] = np.nan if poison else 0
        pool[::2] = np.inf if poison else 0
    for b, keys in enumerate(np.clip(kv.lengths, 0, capacity).tolist()):
        for i in range(-(-keys // page_size)):
            first = i * page_size
            here = min(page_size, keys - first)
            for pool, array in ((k_pages, kv.k), (v_pages, kv.v)):
                pool[table[b, i], :here] = array[b, :, first : first + here].transpose(1, 0, 2)
        used = -(-keys // page_size)
        table[b, used:] = [PAST[i % len(PAST)] for i in range(most - used)]
    lengths = aligned(batch, np.int32)
    lengths[...] = kv.lengths
    return oc.PagedKV(k_pages, v_pages, table, lengths)


def named_pages(kv: oc.PagedKV) -> list[Array]:
    """The pages that a call may read: those that the table names inside of lengths."""
    size, count = kv.k_pages.shape[1], len(kv.k_pages)
    found = {
        int(page)
        for b, keys in enumerate(kv.lengths)
        for page in kv.page_table[b, : -(-max(int(keys), 0) // size)]
        if 0 <= page < count
    }
    return [pool[page] for page in sorted(found) for pool in (kv.k_pages, kv.v_pages)]


def _problem(spec: AttnSpec, q: Array, kv: Any, v: Array, options: dict[str, Any]) -> Problem:
    heads, capacity = sizes_of(kv)
    rows = options.get("rows")
    batch = len(q) if rows is None else len(rows) - 1
    sizes = (batch, q.shape[1], heads, options.get("max_rows") or q.shape[2], capacity, q.shape[3])
    return Problem(*sizes, spec.dtype, value_dim=v.shape[3], softcap=spec.softcap)


@dataclass
class Run:
    """What a kernel gave, of rows of all sequences as of one batch element. parts: of block rows that were cut."""

    out: Array
    lse: Array
    parts: int


def run(
    spec: AttnSpec,
    rule: oc.CachedRule,
    q: Array,
    kv: Any,
    library: Callable[[AttnSpec], Any],
    planner: Any,
    *,
    sm_count: int = 8,
    late: bool = False,
    **options: Any,
) -> Run:
    """A kernel's call on a CachedKV or PagedKV of NumPy arrays, given its struct as a plan gives it.

    options: softcap, sink_logits, split, rows and max_rows, as in attention.
    """
    in_pages, rows = isinstance(kv, oc.PagedKV), options.get("rows")
    k, v = (one.transpose(0, 2, 1, 3) for one in (kv.k_pages, kv.v_pages)) if in_pages else (kv.k, kv.v)
    q, total = (q, None) if rows is None else (check_ragged.as_tensor(q), len(q))
    problem = _problem(spec, q, kv, v, options)
    compiled = pages.spec_of(spec, kv, ragged=rows is not None)
    of_device: dict[str, Any] = {"sm_count": sm_count, "l2_bytes": 50 << 20}
    grid = Grid.of(compiled, problem, problem.batch, **of_device, split=options.get("split"))
    lists = cached_planning.lists_of(grid, rule, total)
    found = planned.run(planner, lists, kv.lengths, rows)
    out = aligned((len(q), q.shape[2], problem.q_heads, problem.value_dim), q.dtype).transpose(0, 2, 1, 3)
    need, partial_bytes = cached_planning._need_of(grid, lists)
    held: dict[str, Array] = {"q": q, "k": k, "v": v, "out": out, "lse": aligned(q.shape[:3], np.float32)}
    held["partials"] = aligned(max(1, partial_bytes // 4), np.float32)
    for name in ("out", "lse", "partials"):
        held[name].fill(np.nan)
    held["counter"], held["arrivals"] = aligned(4, np.int32), aligned(max(1, need.arrivals), np.uint32)
    for name in ("counter", "arrivals"):
        held[name].fill(0)
    held |= _more_arrays(kv, options)
    fields = cached_planning._fields_of(grid, lists) | pages.fields_of(kv) | pages.scale_fields(kv)
    scores = score_fields(problem.head_dim**-0.5, options.get("softcap"))
    template = struct_of(grid, scores, fields, (q, k, v, out))
    params = np.frombuffer(template, PARAMS[compiled.params]).copy()[0:1].reshape(())
    places = {name: array.ctypes.data for name, array in held.items()}
    places |= {name: found.buffer.ctypes.data + at for name, at in lists.offsets.items()}
    for name, at in places.items():
        if name in (params.dtype.names or ()):
            params[name] = at
    reads: Sequence[Array] = [q, *(named_pages(kv) if in_pages else (k, v))]
    if spec.kernel == "sm90":
        call: Any = SimpleNamespace(arrays=held, problem=problem)
        forward_on_cpu.fill_maps(params, call, compiled)
        if isinstance(compiled, Fp8Spec):
            reads = _scales_and_keys(kv, reads[1:])
        else:  # key by key they are copied as those of sm80 are
            reads, late = reads[1:], "page=1" in str(compiled)
    parts = lists.most_parts if spec.kernel == "sm90" else lists.rows
    blocks = grid.thread_blocks(parts)[:2]
    if total is not None and spec.kernel == "naive":
        blocks = (total * problem.q_heads, 1)
    cuda_on_cpu.run(library(compiled), compiled, params, blocks, reads, late=late)
    assert not held["counter"][:2].any()
    assert not held["arrivals"].any()
    return Run(out, held["lse"], int((found.splits[:, 0] >= 0).sum()))


def _more_arrays(kv: Any, options: dict[str, Any]) -> dict[str, Array]:
    """What some calls have beside q, keys and values."""
    named = {name: getattr(kv, name, None) for name in ("page_table", "k_scale", "v_scale")}
    named["sink_logits"] = options.get("sink_logits")
    return {name: array for name, array in named.items() if isinstance(array, np.ndarray)}


def _scales_and_keys(kv: Any, keys: Sequence[Array]) -> list[Array]:
    """What a kernel copies or loads of a cache of e4m3: of one in pages also the table."""
    others = (getattr(kv, name, None) for name in ("k_scale", "v_scale", "page_table"))
    return [*keys, *(array for array in others if isinstance(array, np.ndarray))]


def same_bits(a: Run, b: Run) -> bool:
    """Equal to the bit."""
    return bool(
        (a.out.view(np.uint16) == b.out.view(np.uint16)).all()
        and (a.lse.view(np.uint32) == b.lse.view(np.uint32)).all()
    )
