"""Masks of few rows on many keys, by name: as calls of packed tiles have them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import omnicupy as oc


def tree(q_len: int, k_len: int, seed: int) -> oc.Mask:
    """All of a history, and some of the last tokens: held as bits."""
    tail = np.random.default_rng(seed).random((q_len, q_len)) < 0.5
    np.fill_diagonal(tail, True)
    return oc.from_dense(np.concatenate([np.ones((q_len, k_len - q_len), bool), tail], axis=1))


def _holes(q_len: int, k_len: int, seed: int) -> oc.Mask:
    """Rows that see nothing, and runs of keys that nothing sees."""
    seen = np.random.default_rng(seed).random((q_len, k_len)) < 0.6
    seen[:, 70:139] = False
    seen[q_len // 3 : q_len // 2 + 1] = False
    return oc.from_dense(seen)


def _lengths(q_len: int, k_len: int, seed: int) -> oc.Mask:
    """A cache of which the end is unused: intervals."""
    visible = k_len - 90 * seed
    return oc.full(q_len, k_len) & oc.ranges([(0, q_len, 0, visible)], q_len, k_len)


def _window(q_len: int, k_len: int, seed: int) -> oc.Mask:
    return oc.causal(q_len, k_len) & oc.sliding_window(k_len, k_len, left=100).rows(k_len - q_len, k_len)


MASKS: dict[str, Callable[[int, int, int], oc.Mask]] = {
    "full": lambda q_len, k_len, seed: oc.full(q_len, k_len),
    "causal": lambda q_len, k_len, seed: oc.causal(q_len, k_len),
    "window": _window,
    "tree": tree,
    "holes": _holes,
    "lengths": _lengths,
}
