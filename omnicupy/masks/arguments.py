"""Argument checks that the mask constructors share; each message names the constructor and the argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 2**30  # rows or keys of a mask: twice as many still fit the int32 arrays


def integer(where: str, name: str, value: object) -> int:
    """`value` as an int. Raises TypeError for anything that is not an integer, booleans included."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(
        f"{where}: {name} must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
    )


def length(where: str, name: str, value: object) -> int:
    """`value` as a number of tokens from 1 to MAX_LENGTH."""
    size = integer(where, name, value)
    if not 1 <= size <= MAX_LENGTH:
        raise ValueError(
            f"{where}: {name} must be from 1 to {MAX_LENGTH} tokens, got {size}; pass a length in that range"
        )
    return size


def shape(where: str, q_len: object, k_len: object) -> tuple[int, int]:
    """(q_len, k_len) as integers; k_len None means as many keys as rows."""
    rows = length(where, "q_len", q_len)
    return rows, rows if k_len is None else length(where, "k_len", k_len)


def count(
    where: str, name: str, value: object, most: int | None = None, hint: str = "pass a number in that range"
) -> int:
    """`value` as an integer of at least 0 and, where given, at most `most`."""
    number = integer(where, name, value)
    if number < 0 or (most is not None and number > most):
        wanted = "at least 0" if most is None else f"from 0 to {most}"
        raise ValueError(f"{where}: {name} must be {wanted}, got {number}; {hint}")
    return number


def flag(where: str, name: str, value: object) -> bool:
    """`value` as a bool. Raises TypeError for anything but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{where}: {name} must be True or False, got {type(value).__name__} {value!r}; pass a bool"
        )
    return bool(value)


def at_least_one(where: str, name: str, value: object) -> int:
    """`value` as an integer of at least 1. Raises TypeError or ValueError for anything else."""
    number = integer(where, name, value)
    if number < 1:
        raise ValueError(f"{where}: {name} must be at least 1, got {number}; pass a positive number")
    return number


def plain(where: str, name: str, values: object) -> Sequence[object] | NDArray[np.integer]:
    """A list as it is, an array if it holds integers. Raises TypeError for anything else."""
    if isinstance(values, np.ndarray) and values.ndim:
        if values.size and values.dtype.kind not in "iu":
            raise TypeError(f"{where}: {name} must hold integers, got an array of {values.dtype}; convert it")
        return values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return values
    raise TypeError(
        f"{where}: {name} must be a list or an array, got {type(values).__name__} {values!r}; make it a list"
    )
