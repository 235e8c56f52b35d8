"""Runs of numbers, by the bounds between them or as ranges."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import stretches

Whole: TypeAlias = NDArray[np.int64]
Real: TypeAlias = NDArray[np.float64]


def spread(first: Whole, stop: Whole) -> Whole:
    """All numbers of the ranges [first, stop), one range after the other."""
    found: Whole = stretches.spread(first, stop - first)
    return found


def merged(a: Whole, b: Whole) -> Whole:
    """The numbers of two ascending arrays, ascending, each once."""
    return unique(np.concatenate([a, b]), "stable")  # linear for two that ascend


def unique(numbers: Whole, kind: Literal["quicksort", "stable"] = "quicksort") -> Whole:
    """Ascending, each once; in place of np.unique, which hashes. numbers: changed in place."""
    numbers.sort(kind=kind)
    return numbers[is_new(numbers)]


def sums_before(amounts: NDArray[Any]) -> NDArray[Any]:
    """The sum of the amounts before each, and of all."""
    found = np.zeros(len(amounts) + 1, amounts.dtype)
    amounts.cumsum(out=found[1:])
    return found


def offsets_within(group: Whole, lengths: Whole) -> Whole:
    """For each item the sum of the lengths of the earlier ones of its group."""
    order = group.argsort(kind="stable")
    group, sums = group[order], sums_before(lengths[order])[:-1]
    # Sums ascend: of the items up to each one the latest first one of a group has the greatest.
    base = np.maximum.accumulate(np.where(is_new(group), sums, 0))
    found = np.empty_like(sums)
    found[order] = sums - base
    return found


def is_new(numbers: Whole) -> NDArray[np.bool_]:
    """Whether each of these differs from the one before; the first one does."""
    new = np.empty(len(numbers), np.bool_)
    new[:1] = True
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    return new
