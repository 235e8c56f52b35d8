"""Arguments that the presets share: lengths, spans and modes as lists or NumPy arrays, checked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import MAX_LENGTH, integer, plain
from omnicupy.masks.rectangles import holds

Whole = NDArray[np.int64]
Lengths = Sequence[int] | NDArray[np.integer]
Spans = Sequence[tuple[int, int]] | NDArray[np.integer]


def numbers(where: str, name: str, values: object, least: int, hint: str) -> Whole:
    """`values`, a list or array of integers from `least` to MAX_LENGTH, as int64 (n,).

    Raises TypeError for other types, ValueError for other values and for none at all.
    """
    given = plain(where, name, values)
    if isinstance(given, np.ndarray):
        if given.ndim != 1:
            raise ValueError(f"{where}: {name} must have one axis, got shape {given.shape}; reshape it")
        if given.size and least <= given.min() and given.max() <= MAX_LENGTH:
            return given.astype(np.int64)
        items: Sequence[object] = given.tolist()
    else:
        items = given
    if not len(items):
        raise ValueError(f"{where}: {name} must hold at least one number, got none; {hint}")
    for i, item in enumerate(items):
        if type(item) is not int or not least <= item <= MAX_LENGTH:
            number = integer(where, f"{name}[{i}]", item)
            if not least <= number <= MAX_LENGTH:
                raise ValueError(
                    f"{where}: {name}[{i}] must be from {least} to {MAX_LENGTH}, got {number}; {hint}"
                )
    return np.array(items, np.int64)


def pairs(where: str, name: str, values: object, parts: str) -> list[tuple[int, int]]:
    """`values`, a list of pairs or an array (n, 2), as pairs of ints; `parts` names the two. May be empty.

    Raises TypeError for anything else.
    """
    given = plain(where, name, values)
    found = []
    for i, pair in enumerate(given.tolist() if isinstance(given, np.ndarray) else given):
        if not holds(pair, 2):
            raise TypeError(f"{where}: {name}[{i}] must be a pair ({parts}), got {pair!r}; give two integers")
        first, second = (integer(where, f"{name}[{i}]", part) for part in pair)
        found.append((first, second))
    return found


def spans(where: str, name: str, values: object, length: int, first: int = 0) -> list[tuple[int, int]]:
    """Spans (offset, length) as [start, stop) in ascending order, disjoint, within [first, `length`).

    Those of length 0 are left out. Raises TypeError for other types, ValueError for spans outside or overlapping.
    """
    given = pairs(where, name, values, "offset, length")
    for i, (offset, size) in enumerate(given):
        if size < 0 or offset < first or offset + size > length:
            raise ValueError(
                f"{where}: {name}[{i}] must hold some of the tokens [{first}, {length}) and no other, "
                f"got offset {offset} and length {size}; give (offset, length) in tokens"
            )
    order = sorted((i for i in range(len(given)) if given[i][1]), key=lambda i: given[i])
    for i, j in pairwise(order):
        if given[i][0] + given[i][1] > given[j][0]:
            raise ValueError(
                f"{where}: {name} must not overlap, but {name}[{i}]={given[i]} and {name}[{j}]={given[j]} "
                "(offset, length) do; merge or shorten them"
            )
    return [(given[i][0], given[i][0] + given[i][1]) for i in order]


def choice(where: str, name: str, value: object, allowed: tuple[str, ...]) -> str:
    """`value`, one of the strings `allowed`. Raises ValueError for anything else."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{where}: {name} must be one of {', '.join(allowed)}, got {value!r}; name one of these"
        )
    return str(value)


def tokens(where: str, what: str, total: int) -> int:
    """`total`, a number of tokens that `what` amounts to. Raises ValueError above MAX_LENGTH."""
    if total > MAX_LENGTH:
        raise ValueError(
            f"{where}: {what} must make at most {MAX_LENGTH} tokens, got {total}; split the sequence"
        )
    return total
