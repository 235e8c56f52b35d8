"""Rows of whole arrays, of whichever library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import integer


def shape_of(x: Any) -> tuple[int, ...] | None:
    """The shape of an array or tensor, None of what is none."""
    try:
        shape = getattr(x, "shape", None)
    except RuntimeError:  # torch's nested tensors have none
        return None
    return tuple(shape) if isinstance(shape, tuple) else None


def is_list(given: Any) -> bool:
    """Whether it holds an array for each rank: a list, or one array with an axis of ranks."""
    if isinstance(given, Sequence):
        return not isinstance(given, (str, bytes))
    return bool(shape_of(given) and hasattr(given, "__len__"))


def check_tokens(where: str, name: str, x: Any, axis: Any, expected: tuple[int, str]) -> int:
    """`axis` as an int. Raises TypeError for what is no array or axis, ValueError where the axis has not as many tokens
    as expected.

    expected: how many, and of what.
    """
    shape, (tokens, what) = shape_of(x), expected
    if shape is None:
        raise TypeError(
            f"{where}: {name} must be an array or a tensor that has a shape, got {type(x).__name__}; convert it"
        )
    axis = integer(where, "axis", axis)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{where}: axis must be an axis of {name}, of shape {shape}, got {axis}")
    if shape[axis] != tokens:
        raise ValueError(
            f"{where}: {name} must have the plan's {tokens} {what} along axis {axis}, got shape {shape}; make the plan "
            "for these tokens, or name their axis"
        )
    return int(axis)


def check_alike(where: str, parts: Sequence[Any], axis: int) -> None:
    """Raises TypeError or ValueError where parts that are to be joined along an axis differ in dtype or other axes."""
    first, *others = parts
    for i, part in enumerate(others, 1):
        if part.dtype != first.dtype:
            raise TypeError(
                f"{where}: parts[{i}] must have the dtype of parts[0] ({first.dtype}), got {part.dtype}; cast it"
            )
        wanted, found = list(first.shape), list(part.shape)
        if len(wanted) == len(found):
            wanted[axis] = found[axis]
        if wanted != found:
            raise ValueError(
                f"{where}: parts[{i}] must have the shape of parts[0] {tuple(first.shape)}, but for axis {axis}, got "
                f"{tuple(found)}"
            )


def check_fill(where: str, x: Any, fill: Any) -> None:
    """Raises TypeError for what is no number, ValueError for one that the dtype of x does not hold."""
    if not isinstance(fill, (Real, np.bool_)):
        raise TypeError(f"{where}: fill must be a number, got {type(fill).__name__} {fill!r}")
    torch = _torch_of(x)
    try:
        with np.errstate(all="ignore"):
            held = (
                torch.full((), fill, dtype=x.dtype, device="cpu").item()
                if torch
                else np.full((), fill, x.dtype)[()]
            )
        rounds = x.dtype.is_floating_point or x.dtype.is_complex if torch else x.dtype.kind not in "iub"
        right = rounds or held == fill
    except (OverflowError, ValueError, TypeError, RuntimeError):
        right = False
    if not right:
        raise ValueError(f"{where}: fill must be a number that {x.dtype} holds, got {fill!r}; cast x first")


def shifted(x: Any, step: int, axis: int, fill: Any, documents: NDArray[np.int64]) -> Any:
    """x whose token i holds what token i + step held, `fill` where that is in another document. documents: bounds."""
    size = int(documents[-1])
    place = np.arange(size) + step
    document = np.searchsorted(documents, np.arange(size), "right")
    inside = (place >= 0) & (place < size)
    inside[inside] &= document[place[inside]] == document[inside]
    return filled(take(x, np.where(inside, place, 0), axis), ~inside, fill, axis)


def take(x: Any, places: NDArray[np.int64], axis: int) -> Any:
    """x at these places of an axis, a copy."""
    torch = _torch_of(x)
    if torch is not None:
        return x.index_select(axis % x.ndim, torch.from_numpy(places).to(x.device))
    return x.take(_like(x, places), axis=axis)


def joined(parts: Sequence[Any], axis: int) -> Any:
    """The parts side by side."""
    torch = _torch_of(parts[0])
    if torch is not None:
        return torch.cat(list(parts), axis)
    return _module(parts[0]).concatenate(list(parts), axis=axis)


def filled(x: Any, where: NDArray[np.bool_], value: Any, axis: int) -> Any:
    """x, which is changed, with `value` at places of an axis."""
    index = (slice(None),) * (axis % x.ndim) + (np.flatnonzero(where),)
    torch = _torch_of(x)
    if torch is not None:
        return x.index_fill_(axis % x.ndim, torch.from_numpy(index[-1]).to(x.device), value)
    x[(*index[:-1], _like(x, index[-1]))] = value
    return x


def _torch_of(x: Any) -> Any:
    """torch where x is a tensor; it is imported already then."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else None


def _module(x: Any) -> Any:
    return sys.modules["cupy"] if type(x).__module__.partition(".")[0] == "cupy" else np


def _like(x: Any, places: NDArray[np.int64]) -> Any:
    return places if isinstance(x, np.ndarray) else _module(x).asarray(places)
