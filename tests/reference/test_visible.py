"""Pairs written out once for several passes: the same as without, and no more masks kept than said."""

from __future__ import annotations

import numpy as np
import pytest

import omnicupy as oc
from omnicupy.reference import visible


def test_pairs_are_those_of_the_mask_kept_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [oc.random(70, seed) for seed in range(visible.KEPT + 3)]
    for turn in range(2):
        for mask in masks:
            dense = mask.to_dense()
            assert np.array_equal(visible.visible(mask, 3, 41, np), dense[3:41])
            assert np.array_equal(visible.counts(mask, np), dense.sum(axis=1))
        assert len(visible._kept) <= visible.KEPT
        if turn == 0:
            monkeypatch.setattr(visible, "MOST_PAIRS", 100)
            monkeypatch.setattr(visible, "STEP", 200)


def test_a_mask_is_written_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, calls = oc.causal(50), []
    dense = type(mask).dense

    def counted(self: object, *bounds: int) -> object:
        calls.append(bounds)
        return dense(self, *bounds)

    monkeypatch.setattr(type(mask), "dense", counted)
    for _ in range(3):
        visible.visible(mask, 0, 50, np)
        visible.counts(mask, np)
    assert calls == [(0, 50, 0, 50)]


def test_a_new_mask_at_an_old_address_is_another_one() -> None:
    """Masks come and go between cases: what is kept of one must not answer for the next."""
    for size in range(1, 40):
        assert visible.visible(oc.causal(size), 0, size, np).shape == (size, size)
        assert visible.visible(oc.full(size), 0, size, np).all()
