"""One BLAS thread per Python thread, for as long as Python threads do the work.

Threads of ours that each call a threaded BLAS fight over its one pool: measured on 2 cores, attention on two
such threads takes about twice the time of two threads whose products are single-threaded. NumPy has no switch
for it, so OpenBLAS, which its wheels carry, is asked directly.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# How builds of OpenBLAS name the pair of functions: NumPy's wheels, then distributions.
NAMES = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


class BlasThreads:
    """The thread count of the BLAS that NumPy uses; `known` is False where it cannot be controlled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._count = 1
        self._pair = _functions()

    @property
    def known(self) -> bool:
        """True when the count can be read and set."""
        return self._pair is not None

    @contextmanager
    def single(self) -> Iterator[int]:
        """Let BLAS use one thread inside the block; gives the number of threads it may use outside.

        Calls may nest and run at the same time in several threads: the last one out restores the count.
        Gives 1, and changes nothing, where the count cannot be controlled.
        """
        if self._pair is None:
            yield 1
            return
        get, put = self._pair
        with self._lock:
            if self._holders == 0:
                self._count = int(get())
                put(1)
            self._holders += 1
        try:
            yield self._count
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    put(self._count)


def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    # Symbols are looked up in the extension module and in the libraries it is linked with.
    try:
        module = __import__(
            "numpy._core._multiarray_umath" if np.__version__ >= "2" else "numpy.core._multiarray_umath",
            fromlist=["x"],
        )
        library = ctypes.CDLL(module.__file__)
    except (ImportError, OSError, AttributeError):
        return None
    for name in NAMES:
        try:
            return library[name.format("get")], library[name.format("set")]
        except AttributeError:
            continue
    return None


BLAS = BlasThreads()
