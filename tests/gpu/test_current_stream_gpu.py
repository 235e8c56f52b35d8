"""What CuPy holds to be the current stream is the caller's: a call leaves it as it was.

test_current_stream.py says the same of a fake device, whose streams follow what was read of CuPy's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc

cp: Any = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

BF16 = np.dtype(ml_dtypes.bfloat16)
ROWS, KEYS = 128, 32_768  # few rows against many keys, so that rows are split


@pytest.fixture
def stream() -> Iterator[Any]:
    """A new stream, which has no memory yet, in use."""
    made = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    made.use()
    yield made
    made.synchronize()
    cp.cuda.Stream.null.use()


def _zeros(*shape: int) -> Any:
    return cp.zeros(shape, np.uint16).view(BF16)


def _tokens(length: int = ROWS, keys: int = KEYS) -> tuple[Any, Any, Any]:
    return _zeros(1, 4, length, 64), _zeros(1, 2, keys, 64), _zeros(1, 2, keys, 64)


def _cache() -> tuple[Any, oc.CachedKV]:
    q, k = _zeros(1, 8, 1, 64), _zeros(1, 2, 256, 64)
    return q, oc.CachedKV(k, k.copy(), cp.full(1, 256, np.int32))


def _prefill() -> None:
    oc.attention(*_tokens(), oc.full(ROWS, KEYS))


def _backward() -> None:
    q, k, v = _tokens(300, 300)
    mask = oc.causal(300)
    out, lse = oc.attention(q, k, v, mask, return_lse=True)
    oc.attention_backward(out, q, k, v, out, lse, mask)


def _decode() -> None:
    q, kv = _cache()
    oc.attention(q, kv, mask=oc.cached(window=100, tail=oc.full(1)))


def _plan() -> None:
    q, kv = _cache()
    oc.attention(q, kv, mask=oc.plan(q, kv, oc.cached()))


def _append() -> None:
    _, kv = _cache()
    oc.append(kv, _zeros(1, 2, 1, 64), _zeros(1, 2, 1, 64))


def _prepare() -> None:
    oc.prepare(*_tokens(200, 200), oc.causal(200), gradients=True)
    q, kv = _cache()
    oc.prepare(q, kv, mask=oc.cached(), max_length=256)


CALLS = [_prefill, _backward, _decode, _plan, _append, _prepare]


@pytest.mark.parametrize("call", CALLS)
def test_a_stream_that_is_in_use_stays_current(stream: Any, call: Any) -> None:
    for _ in range(2):
        call()
        assert cp.cuda.get_current_stream() is stream


@pytest.mark.parametrize("call", CALLS)
def test_so_does_that_of_a_with_statement_and_one_used_inside(stream: Any, call: Any) -> None:
    inner = cp.cuda.Stream(non_blocking=True)
    with cp.cuda.Stream(non_blocking=True) as outer:
        call()
        assert cp.cuda.get_current_stream() is outer
        inner.use()
        call()
        assert cp.cuda.get_current_stream() is inner
        outer.synchronize()
        inner.synchronize()


@pytest.mark.parametrize("name", ["null", "ptds"])
def test_so_do_the_streams_that_every_process_has(name: str) -> None:
    used = getattr(cp.cuda.Stream, name)
    used.use()
    try:
        for call in CALLS:
            call()
            assert cp.cuda.get_current_stream() is used
    finally:
        cp.cuda.Device().synchronize()
        cp.cuda.Stream.null.use()


def test_so_does_one_that_is_captured(stream: Any) -> None:
    q, k, v = _tokens()
    mask, out = oc.full(ROWS, KEYS), cp.empty_like(q)
    of_cache = _cache()
    kept: list[Any] = []

    def work() -> None:
        oc.attention(q, k, v, mask, out=out)
        assert cp.cuda.get_current_stream() is stream
        step = oc.plan(*of_cache, oc.cached())
        assert cp.cuda.get_current_stream() is stream
        kept.append(oc.attention(*of_cache, mask=step))
        assert cp.cuda.get_current_stream() is stream

    work()
    stream.synchronize()
    stream.begin_capture()
    try:
        work()
    finally:
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()
    assert cp.cuda.get_current_stream() is stream
