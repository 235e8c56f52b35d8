"""Values that belong to no argument, and whether a call that gets one refuses it in the library's own words."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import omnicupy as oc

REFUSALS = (TypeError, ValueError, oc.UnsupportedError)
PACKAGE = str(Path(oc.__file__).parent)


class Shaped:
    """No array, but it has a shape."""

    shape = (1, 2, 3)


def odd() -> Iterator[Any]:
    """Numbers, texts, containers, modules, classes, and arrays of other dtypes, axes and byte orders."""
    zeros = np.zeros
    yield from (
        None,
        0,
        1,
        -1,
        2.5,
        True,
        "x",
        b"x",
        [],
        [1],
        [1.0],
        (),
        {},
        {1},
        1j,
        Fraction(1, 3),
        10**400,
        ...,
    )
    yield from (
        float("nan"),
        float("inf"),
        np.float32(1),
        np.int8(1),
        np.bool_(True),
        np,
        len,
        object,
        Shaped(),
    )
    for dtype in (bool, "i4", "f4", "f8", "U1", object):
        yield np.array(1, dtype)
    yield from (
        zeros(0),
        zeros(0, "i4"),
        zeros(3),
        zeros(3, "i4"),
        zeros(3, "f4"),
        zeros((2, 2), "i4"),
        zeros(3, "u1"),
    )
    yield from (
        zeros((1, 0, 0, 0), "f4"),
        zeros((2, 3, 4), "f4"),
        zeros((1,) * 5, "f4"),
        zeros((1, 1, 4, 8), "f2"),
    )
    yield from (zeros(2, ">i4"), zeros(2, ">f4"), zeros(2, "i4,f4"), zeros(3, "M8[s]"), zeros(3, complex))
    yield from (np.ma.zeros((1, 1, 4, 8)), np.array([1, 3], "i8"), np.array([2**31 - 1, -(2**31)], "i4"))
    for dtype in ("f4", "u1", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        yield zeros((2, 2, 8, 8), dtype)
    yield from (oc.causal(2), [oc.causal(2)], oc.cached(), oc.CachedKV, oc.CachedKV(None, None, None))


def raw_error(call: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """None where the call passes, or raises by a statement of the library; else what came from inside, and where."""
    try:
        call(**given)
    except Exception as error:
        at = error.__traceback__
        assert at is not None
        while at.tb_next is not None:
            at = at.tb_next
        file = at.tb_frame.f_code.co_filename
        line = linecache.getline(file, at.tb_lineno).strip()
        if isinstance(error, REFUSALS) and file.startswith(PACKAGE) and line.startswith("raise "):
            return None
        return f"{type(error).__name__}: {error} at {Path(file).name}:{at.tb_lineno}: {line}"
    return None


def in_lists() -> Iterator[Any]:
    """Odd values, also as an item of a list, and of a pair or of four numbers in a list."""
    for value in odd():
        yield from (value, [value], [(value, 1)], [(1, value)], [(0, 1, value, 1)])


def raw_errors(
    call: Callable[..., Any], good: dict[str, Any], values: Callable[[], Iterator[Any]] = odd
) -> list[str]:
    """What comes from inside of a call, for each argument in turn with each odd value."""
    found = []
    for name in good:
        for value in values():
            error = raw_error(call, good | {name: value})
            if error is not None:
                found.append(f"{name}={value!r:.60}: {error}")
    return found
