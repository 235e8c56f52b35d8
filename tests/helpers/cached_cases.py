"""Rules of cached(), lengths worth a look, and the dense mask that each must mean, written from its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import omnicupy as oc

TAILS: dict[str, Callable[[int], Any]] = {
    "causal": lambda n: None,
    "full": oc.full,
    "causal-given": oc.causal,
    "prefix": lambda n: oc.prefix(n, max(1, n // 2)),
    "unseen": lambda n: oc.ranges([(0, n, 0, 1)], n),  # the first key alone is seen
    "random": lambda n: oc.from_dense(np.random.default_rng(n).random((n, n)) < 0.4),
}
WINDOWS = ((None, 0), (1, 0), (3, 0), (64, 4), (7, 9), (200, 0), (65, 130), (None, 5))


def dense(rule: oc.CachedRule, keys: int, q_len: int, k_len: int, sequence: int = 0) -> NDArray[np.bool_]:
    """(q_len, k_len) booleans: which of k_len keys, of which the first `keys` exist, each row sees."""
    tail = rule.tail_of(sequence)
    position = keys - q_len + np.arange(q_len)[:, None]
    key = np.arange(k_len)
    near = np.full((q_len, k_len), True) if rule.window is None else key > position - rule.window
    near = near | (key < rule.sink)
    if tail is None:
        seen = near & (key <= position)
    else:
        seen = near & (key < keys - q_len)
        own = tail.to_dense()
        for column in range(max(0, keys - q_len), keys):
            seen[:, column] = own[:, column - (keys - q_len)]
    found: NDArray[np.bool_] = seen & (position >= 0) & (key < keys)
    return found


def random_rule(rng: np.random.Generator, q_len: int, batch: int) -> oc.CachedRule:
    window, sink = WINDOWS[rng.integers(len(WINDOWS))]
    kinds: Sequence[str] = list(TAILS)
    tail = TAILS[kinds[rng.integers(len(kinds))]](q_len)
    if tail is not None and rng.random() < 0.3:
        tail = [tail if rng.random() < 0.5 else oc.causal(q_len) for _ in range(batch)]
    return oc.cached(window=window, sink=sink, tail=tail)
