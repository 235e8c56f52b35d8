"""Argument checks that the mask constructors share; each message names the constructor and the argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 2**30  # rows or keys of a mask: twice as many still fit the int32 arrays
PLAIN_ARRAYS = (np.ndarray, np.memmap)  # classes without rules of their own
ON_HOST = 1  # a DLPack device: the memory of the CPU


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


def tokens(where: str, name: str, value: object) -> int:
    """`value` as a number of tokens from 0 to MAX_LENGTH: that of a part which may be missing."""
    return count(where, name, value, MAX_LENGTH, "pass a length in that range")


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


def plain_array(name: str, array: NDArray[Any]) -> None:
    """Raises TypeError for an array of a derived class, such as a masked array or a matrix.

    Such a class has rules of its own (hidden elements, other products, units), which would be dropped unsaid.
    """
    if type(array) not in PLAIN_ARRAYS:
        kind = type(array)
        raise TypeError(
            f"{name} must be a plain NumPy array, got {kind.__module__}.{kind.__qualname__}, whose own rules "
            "would be ignored; pass numpy.asarray of it where its plain elements are meant"
        )


def host_array(where: str, name: str, values: Any) -> NDArray[Any]:
    """A tensor or array of another library as a NumPy array, without a copy. Raises TypeError for one on a GPU."""
    if values.__dlpack_device__()[0] != ON_HOST:
        raise TypeError(
            f"{where}: {name} must be in the memory of the CPU, got {type(values).__name__} on another device; "
            "move it there first, which waits for the device"
        )
    return np.asarray(values) if hasattr(values, "__array__") else np.from_dlpack(values)


def plain(where: str, name: str, values: object) -> Sequence[object] | NDArray[np.integer]:
    """A list as it is; an array, or a tensor of another library on the CPU, as an array if it holds integers.

    Raises TypeError for anything else.
    """
    if hasattr(values, "__dlpack_device__") and not isinstance(values, np.ndarray):
        values = host_array(where, name, values)
    if isinstance(values, np.ndarray) and values.ndim:
        plain_array(f"{where}: {name}", values)
        if values.size and values.dtype.kind not in "iu":
            raise TypeError(f"{where}: {name} must hold integers, got an array of {values.dtype}; convert it")
        return values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return values
    raise TypeError(
        f"{where}: {name} must be a list or an array, got {type(values).__name__} {values!r}; make it a list"
    )


def tile(name: str, value: int, multiple: int, unit: str) -> int:
    """`value` as a number of rows or keys of a tile, a positive multiple of `multiple`; as `blocks` words it."""
    try:
        size = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = 0
    if size < multiple or size % multiple or size > np.iinfo(np.int32).max // 2:
        wanted = f"a positive multiple of {multiple}" if multiple > 1 else "a positive whole number"
        raise ValueError(f"blocks: {name} ({unit}) must be {wanted}, got {value!r}; round it up")
    return size
