"""Numbers among the arguments of plans and calls; each message names the function and the argument."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from omnicupy.call.problem import as_float
from omnicupy.masks.arguments import at_least_one

MOST = 2**31 - 1


def number(where: str, name: str, value: Any) -> float:
    """`value` as a float, infinity for integers beyond it. Raises TypeError for what is no real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(
            f"{where}: {name} must be a number, got {type(value).__name__} {value!r}; pass a float"
        )
    return as_float(value)


def numbers(where: str, name: str, values: Any) -> tuple[float, ...]:
    """`values`, a sequence or array of real numbers, as floats. Raises TypeError for anything else."""
    given = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TypeError(f"{where}: {name} must be a list of numbers, got {type(values).__name__} {values!r}")
    return tuple(number(where, f"{name}[{i}]", one) for i, one in enumerate(given))


def size(where: str, name: str, value: Any) -> int:
    """`value` as an integer from 1 to MOST."""
    found = at_least_one(where, name, value)
    if found > MOST:
        raise ValueError(f"{where}: {name} must be at most {MOST}, got {found}; pass a smaller number")
    return found
