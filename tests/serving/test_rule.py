"""cached(): the masks it means for given lengths, what it keeps, and what it refuses."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import cached_cases
import numpy as np
import pytest
from cached_cases import TAILS, WINDOWS

import omnicupy as oc
from omnicupy.serving import rule as rules


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("window", "sink"), WINDOWS)
@pytest.mark.parametrize("q_len", [1, 3, 9])
def test_masks_of_lengths(q_len: int, window: int | None, sink: int, tail: str) -> None:
    rule = oc.cached(window=window, sink=sink, tail=TAILS[tail](q_len))
    for keys in (0, 1, 2, 5, 9, 10, 64, 65, 131):
        wanted = cached_cases.dense(rule, keys, q_len, 140)
        assert (rule.mask(keys, q_len, 140).to_dense() == wanted).all(), keys
        if keys:
            assert (rule.mask(keys, q_len).to_dense() == wanted[:, :keys]).all(), keys
            sink_keys, first = rule.seen_keys(keys, q_len)
            seen = np.r_[0:sink_keys, first:keys]
            assert (rule.seen_mask(keys, q_len, 0).to_dense() == wanted[:, seen]).all(), keys
            wanted[:, seen] = False
            assert not wanted.any(), keys


def test_without_a_tail_it_is_an_ordinary_sliding_window() -> None:
    rule = oc.cached(window=5, sink=2)
    assert rule.mask(40, 7) == (oc.sliding_window(7, 40, left=4) | oc.sink(7, 2, 40)) & oc.causal(7, 40)
    assert oc.cached().mask(40, 7) == oc.causal(7, 40)


@pytest.mark.parametrize("wide", [20, 2**31, 2**62, sys.maxsize - 5, sys.maxsize, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("tail", [None, oc.causal(4), oc.from_tiles([[0], [0, 1]], 4, 4, br=2, bc=2)])
def test_a_window_beyond_any_key_is_none(wide: int, tail: oc.Mask | None) -> None:
    """sys.maxsize stands for no window in many a configuration; sums with it leave int64."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 1, 4, 8)), rng.standard_normal((1, 1, 32, 8))
    kv, none = oc.CachedKV(k, k, np.array([20], np.int32)), oc.cached(tail=tail)
    for rule in (oc.cached(window=wide, tail=tail), oc.cached(window=1, sink=wide, tail=tail)):
        assert rule.mask(20, 4, 32) == none.mask(20, 4, 32)
        assert oc.attention(q, kv, mask=rule).tobytes() == oc.attention(q, kv, mask=none).tobytes()


def test_rules_are_immutable() -> None:
    rule = oc.cached(window=3)
    for change in (lambda: setattr(rule, "window", 4), lambda: delattr(rule, "window")):
        with pytest.raises(AttributeError, match=r"window cannot be .* rules are immutable"):
            change()
    assert rule.window == 3


def test_a_tail_of_tiles() -> None:
    tail = oc.from_tiles([[0], [0, 1]], 16, 16, br=8, bc=8)
    rule = oc.cached(window=9, tail=tail)
    assert (rule.mask(50, 16).to_dense() == cached_cases.dense(rule, 50, 16, 50)).all()


def test_one_mask_serves_every_length_behind_a_window() -> None:
    rule = oc.cached(window=100, sink=4, tail=oc.full(3))
    assert rule.seen_mask(1000, 3, 0) is rule.seen_mask(90_000, 3, 0)
    assert rule.seen_mask(1000, 3, 0).shape == (3, 4 + 100 + 2)
    assert len({id(oc.cached(window=100).seen_mask(keys, 1, 0)) for keys in range(500, 600)}) == 1


def test_a_rule_is_a_value() -> None:
    rule = oc.cached(window=4, sink=1, tail=oc.causal(3))
    assert rule == oc.cached(4, 1, oc.causal(3)) == pickle.loads(pickle.dumps(rule))
    assert hash(rule) == hash(oc.cached(4, 1, oc.causal(3)))
    assert rule != oc.cached(4, 1, oc.full(3))
    assert rule != 4
    assert oc.cached(window=4) is oc.cached(window=4)
    assert repr(oc.cached(window=4, sink=1)) == "cached(window=4, sink=1, tail=None)"
    shown = repr(oc.causal(3))
    assert repr(oc.cached(tail=oc.causal(3))) == f"cached(window=None, sink=0, tail={shown})"
    assert repr(oc.cached(tail=[oc.causal(3)] * 2)) == f"cached(window=None, sink=0, tail=[{shown}, {shown}])"
    with pytest.raises(AttributeError, match="rules are immutable"):
        rule.window = 5


BAD = [
    (
        lambda: oc.cached(window=0),
        ValueError,
        "cached: window must be at least 1, got 0; pass a positive number",
    ),
    (lambda: oc.cached(window=2.0), TypeError, "cached: window must be an integer, got float 2.0"),
    (lambda: oc.cached(sink=-1), ValueError, "cached: sink must be at least 0, got -1"),
    (
        lambda: oc.cached(tail=3),
        TypeError,
        "cached: tail must be a Mask, a list of one Mask per sequence, or None",
    ),
    (
        lambda: oc.cached(tail=[]),
        ValueError,
        "cached: tail must hold one Mask per sequence, got an empty list",
    ),
    (lambda: oc.cached(tail=[oc.full(2), 1]), TypeError, r"cached: tail\[1\] must be a Mask, got int"),
    (lambda: oc.cached(tail=oc.full(2, 3)), ValueError, r"cached: tail must be square, .* got \(2, 3\)"),
    (
        lambda: oc.cached(tail=[oc.full(2), oc.full(3)]),
        ValueError,
        r"cached: tail\[1\] must be square, of one size",
    ),
    (
        lambda: oc.cached().mask(5, 2, 4),
        ValueError,
        r"cached\(\).mask: keys must be at most k_len \(4\), got 5",
    ),
    (lambda: oc.cached().mask(-1, 2), ValueError, r"cached\(\).mask: keys must be at least 0, got -1"),
    (
        lambda: oc.cached().mask(2**40, 2),
        ValueError,
        r"cached\(\).mask: keys must be from 1 to \d+ tokens, got",
    ),
    (
        lambda: oc.cached(tail=oc.full(3)).mask(5, 2),
        ValueError,
        r"tail must have the shape .* \(2, 2\), got \(3, 3\)",
    ),
    (
        lambda: oc.cached(tail=[oc.full(2)] * 2).mask(5, 2, sequence=2),
        ValueError,
        "sequence must be below 2, the masks of tail, got 2",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_what_it_refuses(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


def test_threads_may_ask_for_many_lengths_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept has a bound, and each thread drops the oldest ones while others add theirs."""
    monkeypatch.setattr(rules, "MAX_KEPT", 3)
    monkeypatch.setattr(rules, "_mask_at", lambda *given: given[3])  # the work aside
    rule = oc.cached()

    def ask(first: int) -> None:
        for keys in range(first, first + 20_000):
            assert rule.seen_mask(keys % 997 + 3, 1, 0) == keys % 997 + 3

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(0, 800, 200)))
    finally:
        sys.setswitchinterval(before)
    assert len(rule._kept) <= rules.MAX_KEPT + 4
