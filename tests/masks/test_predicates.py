"""from_predicate: rules and mask_mods, two threads, other array modules, bounded memory, and what is refused."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.masks import bits

DOCUMENT = np.repeat([[0, 1, 2], [2, 0, 1]], 30, axis=1)


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int = 3) -> None:
    """Makes 90 keys a row come `rows` rows at a time."""
    monkeypatch.setattr(bits, "CHUNK_PAIRS", 90 * rows)
    monkeypatch.setattr(bits, "CHUNK_PAIRS_GPU", 90 * rows)


RULES: dict[str, Callable[..., Any]] = {
    "documents": lambda q, k: (DOCUMENT[0][q] == DOCUMENT[0][k]) & (k <= q),
    "stripes": lambda q, k: (q + k) % 7 < 3,
    "keys alone": lambda q, k: k % 3 == 0,
    "rows alone": lambda q, k: q > 40,
    "all": lambda q, k: True,
    "none": lambda q, k: np.bool_(False),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_rows_in_strips_are_the_rule(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    rule = RULES[name]
    for q_len, k_len in ((90, 90), (64, 90), (90, 64), (1, 90), (90, 1), (83, 77)):
        mask = oc.from_predicate(rule, q_len, k_len, threads=threads)
        q, k = np.arange(q_len)[:, None], np.arange(k_len)[None]
        dense = np.broadcast_to(rule(q, k), (q_len, k_len))
        assert np.array_equal(mask.to_dense(), dense)
        assert mask == oc.from_dense(np.array(dense))


def test_numpy_s_error_state_reaches_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        oc.from_predicate(lambda q, k: (1.0 / (q - 70)) < k, 90)


def test_a_rule_that_fails_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)

    def rule(q: Any, k: Any) -> Any:
        if q[0, 0] > 50:
            raise KeyError("no such row")
        return q >= k

    with pytest.raises(KeyError, match="no such row"):
        oc.from_predicate(rule, 90)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    seen: list[tuple[int, int]] = []
    for threads in (1, 2):
        seen.clear()
        oc.from_predicate(lambda q, k: q >= k, 90, threads=threads, progress=lambda *done: seen.append(done))
        assert seen == [(q, 90) for q in range(3, 91, 3)]
        seen.clear()
        oc.from_predicate(RULES["stripes"], 90, threads=threads, progress=lambda *done: seen.append(done))
        assert seen[-30:] == [(q, 90) for q in range(3, 91, 3)], "the pass that makes bits"


def test_memory_does_not_follow_the_pairs() -> None:
    document = np.repeat(np.arange(24), 500)
    tracemalloc.start()
    try:
        mask = oc.from_predicate(lambda q, k: (document[q] == document[k]) & (k <= q), 12000)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20  # 137 MiB of booleans
    finally:
        tracemalloc.stop()
    assert mask == oc.documents([500] * 24)


def stand_in() -> Any:
    """A module like cupy, whose arrays are a class of their own that NumPy functions do not take."""

    class DeviceArray(np.ndarray):
        def __array_function__(self, *_: Any) -> Any:
            raise TypeError("implicit conversion to a NumPy array")

    def own(array: Any) -> Any:
        return np.asarray(array).view(DeviceArray)

    def asnumpy(array: Any) -> Any:
        assert type(array) is DeviceArray
        return array.view(np.ndarray)

    xp = types.ModuleType("cupy")
    made: dict[str, Any] = {
        name: lambda *given, name=name, **options: own(
            getattr(np, name)(
                *(one.view(np.ndarray) if isinstance(one, np.ndarray) else one for one in given), **options
            )
        )
        for name in ("arange", "asarray", "broadcast_to", "empty", "zeros", "packbits", "flatnonzero")
    }
    for name, value in (made | {"asnumpy": asnumpy, "uint8": np.uint8, "uint64": np.uint64}).items():
        setattr(xp, name, value)
    return xp


@pytest.mark.parametrize("name", ["documents", "stripes", "keys alone", "all"])
def test_rules_of_another_array_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, 7)
    xp = stand_in()
    kinds = set()

    def rule(q: Any, k: Any) -> Any:
        kinds.update({type(q), type(k)})
        return xp.asarray(RULES[name](q.view(np.ndarray), k.view(np.ndarray)))

    assert oc.from_predicate(rule, 90, 83, xp=xp) == oc.from_predicate(RULES[name], 90, 83)
    assert [kind.__name__ for kind in kinds] == ["DeviceArray"]


@pytest.mark.gpu
def test_a_rule_of_cupy_arrays() -> None:
    import cupy

    document = np.repeat(np.arange(48), 2000)
    on_device = cupy.asarray(document)
    mask = oc.from_predicate(lambda q, k: (on_device[q] == on_device[k]) & (k <= q), 96000, xp=cupy)
    assert mask == oc.documents([2000] * 48)
    assert oc.from_predicate(RULES["stripes"], 999, xp=cupy) == oc.from_predicate(RULES["stripes"], 999)


def test_a_mask_mod_as_it_is() -> None:
    def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx

    assert oc.from_predicate(causal, 40) == oc.causal(40)
    masks = oc.from_predicate(causal, 40, batch=3)
    assert isinstance(masks, list)
    assert masks == [oc.causal(40)] * 3
    assert len({id(mask) for mask in masks}) == 1

    def both(b: Any, h: Any, q: Any, k: Any, width: int = 4) -> Any:  # passing b and h on reads neither
        return causal(b, h, q, k) & (q - k < width)

    assert oc.from_predicate(both, 40) == oc.sliding_window(40, left=3)


def test_a_mask_mod_of_the_batch_element() -> None:
    lengths = np.array([90, 40, 90])
    masks = oc.from_predicate(lambda b, h, q, k: (q >= k) & (k < lengths[b]), 90, batch=3)
    assert masks == oc.presets.padding(oc.causal(90), [90] * 3, [90, 40, 90])
    assert masks[0] is masks[2]
    packed = oc.from_predicate(lambda b, h, q, k: DOCUMENT[b, q] == DOCUMENT[b, k], 90, batch=2)
    assert packed == [oc.documents([30] * 3, causal=False)] * 2


HEADS = np.array([1, 2])
READS_HEAD: dict[str, Callable[..., Any]] = {
    "index": lambda b, h, q, k: q - k < HEADS[h],
    "compare": lambda b, h, q, k: (h < 1) & (q >= k),
    "compared with": lambda b, h, q, k: (q >= k) & (k == h),
    "compute": lambda b, h, q, k: q - k < 8 * h,
    "truth": lambda b, h, q, k: q >= k if h else q <= k,
    "where": lambda b, h, q, k: np.where(h, q >= k, q <= k),
    "array": lambda b, h, q, k: np.asarray(h) < q,
    "function": lambda b, h, q, k: np.maximum(h, q) > k,
    "take": lambda b, h, q, k: np.take(HEADS, h) > q - k,
    "key of a dict": lambda b, h, q, k: {0: q >= k}[h],
    "attribute": lambda b, h, q, k: q - k < h.item(),
    "returned": lambda b, h, q, k: h,
}


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("way", READS_HEAD)
def test_a_mask_mod_that_reads_its_head_is_refused(way: str, batch: int | None) -> None:
    with pytest.raises(TypeError) as caught:
        oc.from_predicate(READS_HEAD[way], 9, batch=batch)
    assert str(caught.value) == (
        "from_predicate: fn reads its head (h), but a mask is shared by all heads of a call; make one mask for "
        "each kind of head and call attention for each"
    )


@pytest.mark.parametrize("way", READS_HEAD)
def test_a_mask_mod_that_reads_its_batch_element_needs_to_know_how_many(way: str) -> None:
    with pytest.raises(TypeError) as caught:
        oc.from_predicate(lambda b, h, q, k: READS_HEAD[way](h, b, q, k), 9)
    assert str(caught.value) == (
        "from_predicate: fn reads its batch element (b), and a mask is one for all; pass batch, the number of "
        "elements, for a list of masks"
    )


ROWS: Any = np.ones(8, bool)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: oc.from_predicate(lambda q, k: q[:, 0] < 2, 3), ValueError, "from_predicate: fn must return an array of two axes that broadcasts to (3, 3), or one boolean, got shape (3,); combine q (rows, 1) and k (1, keys) as they come"),
    (lambda: oc.from_predicate(lambda q, k: ROWS[:, None], 3), ValueError, "from_predicate: fn must return an array of two axes that broadcasts to (3, 3), or one boolean, got shape (8, 1); combine q (rows, 1) and k (1, keys) as they come"),
    (lambda: oc.from_predicate(lambda q, k: (q >= k)[None], 3), ValueError, "from_predicate: fn must return an array of two axes that broadcasts to (3, 3), or one boolean, got shape (1, 3, 3); combine q (rows, 1) and k (1, keys) as they come"),
    (lambda: oc.from_predicate(lambda q, k: np.ma.masked_array(q >= k, q == k), 3), TypeError, "from_predicate: the result of fn must be a plain NumPy array, got numpy.ma.MaskedArray, whose own rules would be ignored; pass numpy.asarray of it where its plain elements are meant"),
    (lambda: oc.from_predicate(lambda q, k: types.SimpleNamespace(__cuda_array_interface__={}), 3), TypeError, "from_predicate: fn must return NumPy arrays, got SimpleNamespace on a GPU; pass xp=cupy for rules of CuPy arrays"),
    (lambda: oc.from_predicate(lambda q, k: None, 3), TypeError, "from_predicate: fn must return booleans, got object; compare inside it"),
    (lambda: oc.from_predicate(lambda q: q > 1, 3), TypeError, "from_predicate: fn must be a function of (q, k) or a mask_mod of (b, h, q, k), got one of 1 arguments; write a function of one of these forms"),
    (lambda: oc.from_predicate(lambda b, q, k: q > k, 3), TypeError, "from_predicate: fn must be a function of (q, k) or a mask_mod of (b, h, q, k), got one of 3 arguments; write a function of one of these forms"),
    (lambda: oc.from_predicate(np.greater_equal, 3, batch=2), ValueError, "from_predicate: batch goes with a mask_mod of (b, h, q, k), got batch=2 with a function of (q, k); drop it"),
    (lambda: oc.from_predicate(np.greater_equal, 3, threads=3), ValueError, "from_predicate: threads must be 1 or 2, got 3; pass one of these"),
    (lambda: oc.from_predicate(np.greater_equal, 3, progress=True), TypeError, "from_predicate: progress must be a function of (rows done, rows in all) or None, got bool; pass a function"),
    (lambda: oc.from_predicate(np.greater_equal, 3, xp="cupy"), TypeError, "from_predicate: xp must be numpy or cupy, got 'cupy'; pass the module"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert (caught.type, str(caught.value)) == (kind, message)


def test_functions_of_numpy_are_rules() -> None:
    assert oc.from_predicate(np.greater_equal, 30) == oc.causal(30)
