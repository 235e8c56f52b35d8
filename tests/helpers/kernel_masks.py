"""Small masks for calls of the backward kernels on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import omnicupy as oc

Q_LEN, K_LEN = 150, 203


def _scattered(seed: int) -> oc.Mask:
    """Bits; rows 40 to 99 see nothing, and nothing sees keys 70 to 139."""
    visible = np.random.default_rng(seed).random((Q_LEN, K_LEN)) < 0.3
    visible[40:100] = False
    visible[:, 70:140] = False
    return oc.from_dense(visible)


def _documents() -> oc.Mask:
    """Runs of rows, and keys from 180 on that nothing sees."""
    visible = np.zeros((Q_LEN, K_LEN), bool)
    visible[:64, :100] = True
    visible[70:, 90:180] = True
    return oc.from_dense(visible)


def _without_a_tile(first: int, stop: int) -> oc.Mask:
    """Causal, but rows `first` to `stop`, whole tiles of 64, see nothing."""
    visible = np.tri(Q_LEN, K_LEN, K_LEN - Q_LEN, dtype=bool)
    visible[first:stop] = False
    return oc.from_dense(visible)


MASKS: dict[str, Callable[[], list[oc.Mask]]] = {
    "causal": lambda: [oc.causal(Q_LEN, K_LEN)],
    "one-a-batch-element": lambda: [_scattered(1), _documents()],
    "full": lambda: [oc.full(Q_LEN, K_LEN)],
}
# No sum of such a tile's dQ has an addition: one inside, and the last one, which has fewer rows than a tile.
DEAD_TILES: dict[str, Callable[[], list[oc.Mask]]] = {
    "dead-tiles": lambda: [_without_a_tile(64, 128), _without_a_tile(128, Q_LEN)],
}
