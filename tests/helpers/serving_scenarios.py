"""What has to hold of attention over caches, on the CPU engine and on a GPU alike; unused memory is NaN and infinite.

Each scenario takes an Engine and raises AssertionError where it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import paged_calls
from cached_cases import TAILS, dense

import omnicupy as oc
from omnicupy.choose import table
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.reference.attention import attention64

DTYPE = np.dtype(np.float16)
SPLIT = 384
EDGES = (0, 1, 63, 64, 65, 127, 129, 300)
LAST = 100_000
GROUPS, ROWS = (1, 3, 4, 5, 7, 8, 71), (*range(1, 10), 63, 64, 65)
# Lengths of four sequences at replays of what was captured at 5 keys each.
REPLAYS = (
    *([6, 5, 7, 9], [64] * 4, [65, 64, 63, 1], [4096] * 4, [LAST, 3, 4096, 65], [3] * 4),
    *([3, 4000, 0, 0], [0] * 4, [LAST] * 4, [5] * 4),
)
SINKS = (-np.inf, 0.0, 30.0, 1e4)


@dataclass(frozen=True)
class Engine:
    """xp: its array module.  capture: what makes the calls of a function again, where they are captured."""

    xp: Any
    head_dim: int
    capture: Callable[[Callable[[], None]], Callable[[], None]]

    def array(self, array: Any) -> Any:
        return self.xp.asarray(array)

    def nan(self, shape: tuple[int, ...]) -> Any:
        return self.xp.full(shape, np.nan, DTYPE)


def cpu() -> Engine:
    return Engine(np, 16, lambda call: call)


def gpu() -> Engine:
    import cupy

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        call()  # compiles and loads what it runs
        cupy.cuda.Device().synchronize()
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            try:
                call()
            finally:
                graph = stream.end_capture()

        def replay() -> None:
            cupy.cuda.Device().synchronize()  # arrays are written on another stream
            graph.launch(stream)
            stream.synchronize()

        return replay

    return Engine(cupy, 128, capture)


def bits(array: Any) -> Any:
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def same(found: Any, wanted: Any) -> bool:
    """Equal to the bit: out, lse."""
    return all(bool((bits(a) == bits(b)).all()) for a, b in zip(found, wanted, strict=True))


def queries(e: Engine, batch: int, heads: int, rows: int, factor: float = 1.0) -> Any:
    drawn = np.random.default_rng(rows).standard_normal((batch, heads, rows, e.head_dim), np.float32)
    return e.array((factor * drawn).astype(DTYPE))


def caches(
    e: Engine, lengths: Sequence[int], heads: int, capacity: int, unused: float = np.nan
) -> oc.CachedKV:
    """On the host. unused: what lies past each length."""
    rng, held = np.random.default_rng(3), np.array(lengths, np.int32)
    shape = (len(held), heads, capacity, e.head_dim)
    k, v = (np.full(shape, unused, DTYPE) for _ in "kv")
    for array in (k, v):
        for b, keys in enumerate(lengths):
            array[b, :, :keys] = rng.standard_normal((heads, keys, e.head_dim), np.float32)
            if np.isnan(unused):
                array[b, :, keys::2] = -np.inf
    return oc.CachedKV(k, v, held)


def moved(e: Engine, kv: Any, layout: str = "tokens-first") -> Any:
    """Caches of the host as the engine's arrays; pages in a layout, with NaN in what it holds beside them."""
    if isinstance(kv, oc.CachedKV):
        return oc.CachedKV(*(e.array(one) for one in (kv.k, kv.v, kv.lengths)))
    k, v = paged_calls.LAYOUTS[layout](kv.k_pages.shape, lambda shape, *_: e.nan(shape), e.head_dim)
    k[...], v[...] = e.array(np.ascontiguousarray(kv.k_pages)), e.array(np.ascontiguousarray(kv.v_pages))
    return oc.PagedKV(k, v, e.array(kv.page_table), e.array(kv.lengths))


def agrees(e: Engine, found: Any, q: Any, kv: oc.CachedKV, rule: oc.CachedRule, **scores: Any) -> None:
    """Against float64; kv: on the host."""
    rows, capacity = q.shape[2], kv.k.shape[2]
    masks = [oc.from_dense(dense(rule, int(n), rows, capacity, b)) for b, n in enumerate(kv.lengths)]
    clean = (e.array(np.nan_to_num(one, nan=0, posinf=0, neginf=0)) for one in (kv.k, kv.v))
    out, lse = attention64(q, *clean, masks, **scores)
    assert bool((abs(found[0].astype(np.float64) - out) < 6e-3).all())
    unseen = e.xp.isneginf(lse)
    assert bool((e.xp.isneginf(found[1]) == unseen).all())
    assert bool((abs(e.xp.where(unseen, 0, found[1]) - e.xp.where(unseen, 0, lse)) < 6e-3).all())
    assert not bool((found[0] * unseen[..., None]).any())


def _twice(e: Engine, q: Any, kv: Any, mask: Any, **options: Any) -> Any:
    """out and lse, the former into an array that was full of NaN; the same behind a step."""
    found = oc.attention(q, kv, mask=mask, return_lse=True, out=e.nan(q.shape), **options)
    how = {name: options[name] for name in ("softcap", "split", "config") if name in options}
    step = oc.plan(q, kv, mask, **how)
    assert same(oc.attention(q, kv, mask=step, return_lse=True, **options), found)
    return found


def _plain(e: Engine, q: Any, kv: Any, rule: oc.CachedRule) -> Any:
    """The kernel that serves a PagedKV, as it reads keys one behind the other; None on the CPU."""
    spec = oc.plan(q, kv, rule).kernel
    if isinstance(spec, FewRowsSpec):
        return spec.for_caches(e4m3=spec.e4m3, in_pages=False, ragged=False)
    return spec and oc.AttnSpec(**{field.name: getattr(spec, field.name) for field in fields(oc.AttnSpec)})


def _paged_is_contiguous(e: Engine, q: Any, kv: oc.CachedKV, size: int, rule: Any, **how: Any) -> None:
    """kv: on the host, of a capacity of whole pages. how: layout, shared."""
    layout = how.pop("layout", "tokens-first")
    in_pages = moved(e, paged_calls.paged(kv, size, **how), layout)
    found = _twice(e, q, in_pages, rule)
    wanted = _twice(e, q, moved(e, kv), rule, config=_plain(e, q, in_pages, rule))
    assert same(found, wanted), (size, layout)
    agrees(e, found, q, kv, rule)


def unused_slots(e: Engine, size: int | None) -> None:
    """1: what no sequence holds reaches nothing. size: of pages, None for a CachedKV."""
    for rows, rule in (
        (1, oc.cached()),
        (1, oc.cached(window=70, sink=5)),
        (5, oc.cached(tail=TAILS["random"](5))),
    ):
        q, found = queries(e, len(EDGES), 4, rows), []
        for unused in (np.nan, 0.0):
            kv = caches(e, EDGES, 2, 320, unused)
            held = kv if size is None else paged_calls.paged(kv, size, poison=bool(np.isnan(unused)))
            found.append(_twice(e, q, moved(e, held), rule))
        assert same(*found)
        agrees(e, found[0], q, caches(e, EDGES, 2, 320), rule)


def layouts(e: Engine, layout: str, size: int) -> None:
    """2: pages in any order, a prefix that three sequences share, layouts of engines."""
    kv = caches(e, (300, 201, 63), 2, 320)
    for array in (kv.k, kv.v):
        array[1:, :, :48] = array[0, :, :48]
    _paged_is_contiguous(e, queries(e, 3, 4, 1), kv, size, oc.cached(), layout=layout, shared=48 // size)


def page_sizes(e: Engine, size: int) -> None:
    """3: lengths at the edges of pages and tiles."""
    lengths = [n for n in (*EDGES, size - 1, size, size + 1) if n <= 300]
    kv = caches(e, lengths, 2, -(-320 // size) * size)
    for rows, rule in ((1, oc.cached()), (3, oc.cached(window=70, sink=3))):
        _paged_is_contiguous(e, queries(e, len(lengths), 4, rows), kv, size, rule)


def ragged(e: Engine, size: int) -> None:
    """3: 37 sequences from 1 to 100,000 keys."""
    drawn = np.exp(np.random.default_rng(0).uniform(0, np.log(LAST), 34)).astype(int)
    lengths = [LAST, *drawn.tolist(), 0, 1]
    kv = caches(e, lengths, 1, -(-LAST // size) * size)
    _paged_is_contiguous(e, queries(e, 37, 2, 1), kv, size, oc.cached())


def _tree(rows: int) -> oc.Mask:
    parents = [-1, *np.random.default_rng(rows).integers(-1, np.arange(1, rows)).tolist()]
    return oc.presets.tree(0, parents)


def groups(e: Engine, group: int) -> None:
    """4: a group of query heads has the bits of as many heads of their own, whose keys are the same, under `split`."""
    config = None
    if e.xp is not np:
        row = next(row for row in table.TABLE if row.shape == "packed" and row.head_dims[1] == 128)
        config = row.spec("sm_90", "float16", 128)
    kv = caches(e, (3000, 70, 65), 1, 3000)
    wide = oc.CachedKV(*(np.repeat(one, group, axis=1) for one in (kv.k, kv.v)), kv.lengths)
    of_group, of_heads = moved(e, kv), moved(e, wide)
    for rows in ROWS:
        rule, q = oc.cached(window=2500, sink=4, tail=_tree(rows)), queries(e, 3, group, rows)
        found = _twice(e, q, of_group, rule, split=SPLIT, config=config)
        wanted = oc.attention(q, of_heads, mask=rule, return_lse=True, split=SPLIT, config=config)
        if e.xp is not np and config is not None and config.tokens(group) >= rows:
            assert same(found, wanted), rows
        for a, b in zip(
            found, wanted, strict=True
        ):  # the CPU's products, and tiles of part of the rows, add up otherwise
            assert bool((abs(a.astype(np.float32) - b.astype(np.float32)) < 2e-3).all()), rows


def replays(e: Engine, size: int | None, rows: int, window: int | None) -> None:
    """5: captured at 5 keys each, replayed for others; pages go to other sequences in between. The bits of a call."""
    rule = oc.cached(window=window, sink=4 if window else 0)
    whole = caches(e, [LAST] * 4, 1, LAST)
    kv = moved(e, whole if size is None else paged_calls.paged(whole, size))
    q = queries(e, 4, 2, rows)
    out, lengths = e.nan(q.shape), kv.lengths
    lengths[...] = 5

    def call() -> None:
        oc.attention(q, kv, mask=oc.plan(q, kv, rule), out=out)

    oc.prepare(q, kv, mask=rule, out=out, max_length=LAST)
    replay, config = e.capture(call), _plain(e, q, kv, rule)
    every = None if size is None else kv.page_table.copy()
    for i, some in enumerate(REPLAYS):
        lengths[...] = e.array(np.array(some, np.int32))
        if size is not None:
            kv.page_table[...] = -1
            for b, keys in enumerate(some):
                kv.page_table[b, : -(-keys // size)] = every[(b + i) % 4, : -(-keys // size)]
        out[...] = np.nan
        replay()
        wanted = oc.attention(q, _cut(e, whole, some, 0 if size is None else i), mask=rule, config=config)
        assert same([out], [wanted]), some
        assert bool(e.xp.isfinite(out).all()), some


def _cut(e: Engine, whole: oc.CachedKV, lengths: Sequence[int], turn: int) -> oc.CachedKV:
    """Caches of other memory, NaN past the lengths. turn: sequence b has the keys of sequence b + turn."""
    k, v = (e.xp.roll(e.array(one), -turn, axis=0) for one in (whole.k, whole.v))
    for b, keys in enumerate(lengths):
        k[b, :, keys:], v[b, :, keys:] = np.nan, np.nan
    return oc.CachedKV(k, v, e.array(np.array(lengths, np.int32)))


def splits(e: Engine) -> None:
    """6: parts of any size: the same bits each time and in other batches, lse as of one part; a row that sees a key of
    one part alone, one that sees none, and an empty sequence.
    """
    seen = np.ones((500, 500), bool)
    seen[5], seen[7] = np.arange(500) == 499, False
    for rows, tail in ((1, None), (500, oc.from_dense(seen))):
        rule, lengths = oc.cached(window=1 if rows > 1 else None, tail=tail), (2500, 0, 900, 383)
        host = caches(e, lengths, 1, 2500)
        kv, q = moved(e, host), queries(e, 4, 2, rows)
        agrees(e, oc.attention(q, kv, mask=rule, return_lse=True), q, host, rule)
        for split in (SPLIT, 2 * SPLIT, 7 * SPLIT):
            found = _twice(e, q, kv, rule, split=split)
            assert same(oc.attention(q, kv, mask=rule, return_lse=True, split=split), found)
            agrees(e, found, q, host, rule)
            for b in (0, 2):
                one = slice(b, b + 1)
                alone = oc.CachedKV(kv.k[one], kv.v[one], kv.lengths[one].copy())
                mine = oc.attention(q[one], alone, mask=rule, return_lse=True, split=split)
                assert same(mine, [part[one] for part in found]), (split, b)
