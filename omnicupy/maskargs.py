"""Argument checks that the mask constructors share; each message names the constructor and the argument."""

from __future__ import annotations

import operator

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
