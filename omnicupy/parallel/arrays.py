"""Rows of whole arrays, of whichever library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_tokens(where: str, name: str, x: Any, axis: int, expected: tuple[int, str]) -> None:
    """Raises TypeError for what is no array, ValueError where `axis` has not as many tokens as expected.

    expected: how many, and of what.
    """
    if not hasattr(x, "shape"):
        raise TypeError(f"{where}: {name} must be an array or a tensor, got {type(x).__name__}; convert it")
    shape, (tokens, what) = tuple(x.shape), expected
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{where}: axis must be an axis of {name}, of shape {shape}, got {axis}")
    if shape[axis] != tokens:
        raise ValueError(
            f"{where}: {name} must have the plan's {tokens} {what} along axis {axis}, got shape {shape}; make the plan "
            "for these tokens, or name their axis"
        )


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
