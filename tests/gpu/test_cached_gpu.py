"""Calls on caches on a device: graphs replayed for other lengths, steps in a row, streams side by side."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import cached_cases
import numpy as np
import pytest
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.reference.attention import attention64

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

CAPACITY = 100_100
NAN = 0x7E00  # of float16
# What sequences may be long at a replay of a graph that was captured at 5 keys each.
LENGTHS = (
    *([6, 5, 7, 9], [64] * 4, [65, 64, 63, 1], [4096] * 4, [100_000, 3, 4096, 65], [3] * 4),
    *([3, 4000, 0, 0], [0] * 4, [100_000] * 4, [-1, CAPACITY + 1, 64, 5]),
)
RULES = {
    "all": (1, oc.cached()),
    "window": (1, oc.cached(window=1000, sink=4)),
    "tree": (7, oc.cached(tail=cached_cases.TAILS["random"](7))),
    "chunk": (130, oc.cached(window=3000)),
}


@pytest.fixture(autouse=True)
def _all_done() -> Iterator[None]:
    yield
    cp.cuda.Device().synchronize()


def _inputs(
    lengths: list[int], q_len: int, capacity: int = CAPACITY, heads: int = 8
) -> tuple[Any, oc.CachedKV]:
    cp.random.seed(q_len)
    batch = len(lengths)
    q = (
        cp.random.standard_normal((batch, q_len, heads, 128), np.float32)
        .astype(np.float16)
        .transpose(0, 2, 1, 3)
    )
    k, v = (cp.random.standard_normal((batch, 2, capacity, 128), np.float32).astype(np.float16) for _ in "kv")
    kv = oc.CachedKV(k, v, cp.asarray(np.array(lengths, np.int32)))
    cp.cuda.Device().synchronize()  # streams of the tests do not wait for the one that made them
    return q, kv


def _same(a: Any, b: Any) -> bool:
    return bool((a.view(np.uint16) == b.view(np.uint16)).all())


def _set(kv: oc.CachedKV, lengths: list[int]) -> None:
    kv.lengths[...] = cp.asarray(np.array(lengths, np.int32))
    cp.cuda.Device().synchronize()


@pytest.mark.parametrize("with_step", [False, True], ids=["alone", "step"])
@pytest.mark.parametrize("what", RULES)
def test_a_graph_serves_all_later_lengths(what: str, with_step: bool) -> None:
    q_len, rule = RULES[what]
    q, kv = _inputs([5] * 4, q_len)
    out = cp.empty(q.shape, np.float16)
    stream = cp.cuda.Stream(non_blocking=True)
    oc.prepare(q, kv, mask=rule, out=out, max_length=CAPACITY)
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            mask = oc.plan(q, kv, rule) if with_step else rule
            oc.attention(q, kv, mask=mask, out=out)
        finally:
            graph = stream.end_capture()
    del mask
    gc.collect()  # a graph keeps the lists of its step
    for lengths in LENGTHS:
        out.view(np.uint16).fill(NAN)
        _set(kv, lengths)
        litter = cp.full(1 << 22, 0x7FFFFFFF, np.int32)
        cp.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        eager = oc.attention(q, kv, mask=rule)
        cp.cuda.Device().synchronize()
        assert _same(out, eager), lengths
        del litter


def test_layers_of_a_step_in_a_row() -> None:
    """Each layer reads what the one before wrote, and the next step's lists come while layers of the last one run."""
    q, kv = _inputs([3000, 100, 0, 4000], 1, 5000)
    layers = [oc.CachedKV(_inputs([1] * 4, 1, 5000)[1].k, kv.v, kv.lengths) for _ in range(6)]
    for lengths in ([3000, 100, 0, 4000], [3001, 101, 1, 4001], [5, 5000, 64, 65]):
        _set(kv, lengths)
        step = oc.plan(q, kv, oc.cached())
        found = [q]
        for layer in layers:
            found.append(oc.attention(found[-1], layer, mask=step))
        cp.cuda.Device().synchronize()
        for x, layer, y in zip(found, layers, found[1:], strict=False):
            alone = oc.attention(x, layer, mask=oc.cached())
            cp.cuda.Device().synchronize()
            assert _same(alone, y)


def test_streams_side_by_side() -> None:
    q, kv = _inputs([3000, 100, 0, 4000], 1, 5000)
    caches = [oc.CachedKV(kv.k, kv.v, cp.asarray(np.array(some, np.int32))) for some in LENGTHS[:3]]
    streams = [cp.cuda.Stream(non_blocking=True) for _ in caches]
    cp.cuda.Device().synchronize()
    found = []
    for _ in range(40):
        for stream, cache in zip(streams, caches, strict=True):
            with stream:
                found.append((cache, oc.attention(q, cache, mask=oc.cached())))
    cp.cuda.Device().synchronize()
    for cache, out in found[-6:]:
        wanted = oc.attention(q, cache, mask=oc.cached())
        cp.cuda.Device().synchronize()
        assert _same(out, wanted)


def _reference(q: Any, kv: oc.CachedKV, rule: oc.CachedRule, lengths: NDArray[np.int32]) -> tuple[Any, Any]:
    q_len, capacity = q.shape[2], kv.k.shape[2]
    masks = [rule.mask(int(keys), q_len, capacity, sequence=b) for b, keys in enumerate(lengths)]
    return attention64(q, kv.k, kv.v, masks)


def test_a_ragged_batch_of_37_with_unused_slots_full_of_nan() -> None:
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(1, 9000, 33), [0, 1, 9000, 64]]).astype(np.int32)
    for rule in (oc.cached(), oc.cached(window=700, sink=4)):
        q, kv = _inputs(lengths.tolist(), 2, 9000)
        clean = oc.attention(q, kv, mask=rule)
        wanted, _ = _reference(q, kv, rule, lengths)
        for b, keys in enumerate(lengths.tolist()):
            for array in (kv.k, kv.v):
                array[b, :, keys:].view(np.uint16)[...] = NAN
        out, lse = oc.attention(q, kv, mask=rule, return_lse=True)
        assert _same(clean, out)
        assert float(abs(out.astype(np.float64) - wanted).max()) < 5e-3
        assert bool(cp.isneginf(lse[33]).all())
        assert bool(cp.isfinite(lse[34:, :, 1]).all())
