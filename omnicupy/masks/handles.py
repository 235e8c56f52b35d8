"""Masks by number, for programs that hand on numbers alone."""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Any

# Compilers of graphs take 0 and 1 for constants. Each process begins elsewhere, so that a program that was stored with
# a handle finds no mask of another process by it.
_handles = itertools.count(2 + (int.from_bytes(os.urandom(4), "little") << 28))
_by_handle: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def handle_for(mask: Any) -> int:
    """A number for this object, which is not kept alive by it; no number is used twice."""
    handle = next(_handles)
    _by_handle[handle] = mask
    return handle


def of_handle(handle: int) -> Any:
    """The mask whose `handle` this is. Raises ValueError when it is gone."""
    found = _by_handle.get(handle)
    if found is None:
        raise ValueError(
            f"mask: no mask with handle {handle} is left; keep a mask while code that was compiled with it runs, its "
            "backward pass included"
        )
    return found
