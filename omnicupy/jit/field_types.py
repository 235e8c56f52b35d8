"""Fields of specs become int and bool: what is only equal to one (2.0, 1 for True) would make another macro."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def make_numbers(spec: object, names: Sequence[str]) -> None:
    """Make fields of a frozen dataclass int. Raises TypeError for what is no whole number."""
    for name in names:
        object.__setattr__(spec, name, number(name, getattr(spec, name)))


def number(name: str, value: Any) -> int:
    """A field as an int. Raises TypeError for what is no whole number."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise TypeError(
            f"config: {name} must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
        )
    return found


def make_flags(spec: object, names: Sequence[str]) -> None:
    """Make fields of a frozen dataclass bool. Raises TypeError for what is neither Python's bool nor NumPy's."""
    for name in names:
        value = getattr(spec, name)
        if type(value).__name__ not in ("bool", "bool_"):  # of NumPy nothing else is known here
            raise TypeError(
                f"config: {name} must be True or False, got {type(value).__name__} {value!r}; pass a bool"
            )
        object.__setattr__(spec, name, bool(value))
