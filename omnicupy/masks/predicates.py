"""Rules given as functions: fn(q, k), or FlexAttention's mask_mod(b, h, q, k), to rows of booleans."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np

from omnicupy.masks.arguments import integer, plain_array
from omnicupy.masks.bits import Rows, Way
from omnicupy.masks.strips import Progress

Rule = Callable[[Any, Any], Any]  # (q, k) -> booleans
MASK_MOD = 4  # arguments of a mask_mod

_M = TypeVar("_M")


class UnreadError(TypeError):
    """A rule has read an argument that was not given to it."""


def _refusing(name: str) -> Callable[..., NoReturn]:
    def method(self: Unread, *_: object, **__: object) -> NoReturn:
        raise UnreadError(self.why)

    method.__name__ = name
    return method


class Unread:
    """Stands for an index that must not matter: whatever is done with it, but passing it on, raises `why`."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and not name.startswith(("__array", "__cuda_array")):
            raise AttributeError(name)  # what Python and copying ask of any object
        raise UnreadError(self.why)


_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow matmul "
    "rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift lt le eq ne gt ge neg pos abs invert bool "
    "int float complex index len iter getitem contains hash round trunc floor ceil array"
)
for _name in _OPERATORS.split():
    setattr(Unread, f"__{_name}__", _refusing(_name))


def way_of(threads: int, progress: Progress | None, xp: Any) -> Way:
    """The checked arguments of `from_predicate` that say how rows are read."""
    workers = integer("from_predicate", "threads", threads)
    if workers not in (1, 2):
        raise ValueError(f"from_predicate: threads must be 1 or 2, got {threads}; pass one of these")
    if progress is not None and not callable(progress):
        raise TypeError(
            f"from_predicate: progress must be a function of (rows done, rows in all) or None, got "
            f"{type(progress).__name__}; pass a function"
        )
    if getattr(xp, "__name__", None) not in ("numpy", "cupy"):
        raise TypeError(f"from_predicate: xp must be numpy or cupy, got {xp!r}; pass the module")
    return Way(xp, workers if xp is np else 1, progress)


def takes_batch(fn: Callable[..., Any]) -> bool:
    """Whether fn is called as mask_mod(b, h, q, k): it must have four arguments; two are a rule (q, k).

    Arguments with defaults do not count. Raises TypeError for other numbers; what says nothing (a NumPy
    function) is taken for a rule.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) == MASK_MOD:
        return True
    if len(needed) <= 2 and (len(places) >= 2 or several):
        return False
    raise TypeError(
        "from_predicate: fn must be a function of (q, k) or a mask_mod of (b, h, q, k), got one of "
        f"{len(needed)} arguments; write a function of one of these forms"
    )


def of_batch(
    mask_mod: Callable[..., Any], mask_of: Callable[[Rule], _M], elements: int, *, as_list: bool
) -> _M | list[_M]:
    """The mask of a mask_mod that reads no batch element (a list of `elements` where as_list), else one for each.

    mask_of makes the mask of a rule. Raises TypeError where mask_mod reads b and no list is asked for.
    """
    head = Unread(
        "from_predicate: fn reads its head (h), but a mask is shared by all heads of a call; make one mask for "
        "each kind of head and call attention for each"
    )
    unread = Unread(
        "from_predicate: fn reads its batch element (b), and a mask is one for all; pass batch, the number of "
        "elements, for a list of masks"
    )
    try:
        one = mask_of(lambda q, k: mask_mod(unread, head, q, k))
    except UnreadError as error:
        if not as_list or str(error) != unread.why:
            raise TypeError(str(error)) from None
    else:
        return [one] * elements if as_list else one
    made: dict[_M, _M] = {}
    masks = [mask_of(partial(_called, mask_mod, np.int64(b), head)) for b in range(elements)]
    return [made.setdefault(mask, mask) for mask in masks]


def _called(mask_mod: Callable[..., Any], b: Any, head: Unread, q: Any, k: Any) -> Any:
    try:
        return mask_mod(b, head, q, k)
    except UnreadError as error:
        raise TypeError(str(error)) from None


def rows_of(rule: Rule, k_len: int, xp: Any) -> Rows:
    """The rows of a rule, checked where it is evaluated; xp is the module of its arrays."""
    key = xp.arange(k_len, dtype=np.int64)[None]

    def rows(q0: int, q1: int) -> Any:
        found = rule(xp.arange(q0, q1, dtype=np.int64)[:, None], key)
        if xp is np and isinstance(found, np.ndarray):
            plain_array("from_predicate: the result of fn", found)
        if xp is np and hasattr(found, "__cuda_array_interface__"):
            raise TypeError(
                f"from_predicate: fn must return NumPy arrays, got {type(found).__name__} on a GPU; pass xp=cupy for "
                "rules of CuPy arrays"
            )
        found = xp.asarray(found)
        if found.dtype != np.bool_:
            raise TypeError(f"from_predicate: fn must return booleans, got {found.dtype}; compare inside it")
        fits = [have in (1, want) for have, want in zip(found.shape, (q1 - q0, k_len), strict=False)]
        if len(found.shape) not in (0, 2) or not all(fits):
            raise ValueError(
                f"from_predicate: fn must return an array of two axes that broadcasts to ({q1 - q0}, {k_len}), "
                f"or one boolean, got shape {found.shape}; combine q (rows, 1) and k (1, keys) as they come"
            )
        return xp.broadcast_to(found, (q1 - q0, k_len))

    return rows
