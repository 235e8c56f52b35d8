"""One BLAS thread per Python thread, for as long as Python threads do the work.

Threads of ours that each call a threaded BLAS fight over its one pool: measured on 2 cores, attention on two
such threads takes about twice the time of two threads whose products are single-threaded. NumPy has no switch
for it, so OpenBLAS, which its wheels carry, is asked directly.
"""

from __future__ import annotations

import ctypes
import os
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
        self._holders: dict[int, int] = {}  # thread -> how many blocks of single() it is in
        self._count = 1
        self._pair = _functions()
        if hasattr(
            os, "register_at_fork"
        ):  # nobody else holds the lock then, so that the child can release its copy
            os.register_at_fork(
                before=lambda: self._lock.acquire(),
                after_in_parent=lambda: self._lock.release(),
                after_in_child=self._forget_other_threads,
            )

    @property
    def known(self) -> bool:
        """True when the count can be read and set."""
        return self._pair is not None

    @contextmanager
    def single(self) -> Iterator[int]:
        """Let BLAS use one thread inside the block; gives the number of threads it may use outside.

        Calls may nest and run at the same time in several threads: the last one out restores the count. A child
        process has the count as it was outside, but for blocks that the thread is in that forked.
        Gives 1, and changes nothing, where the count cannot be controlled.
        """
        if self._pair is None:
            yield 1
            return
        get, put = self._pair
        me = threading.get_ident()
        with self._lock:
            if not self._holders:
                self._count = int(get())
                put(1)
            self._holders[me] = self._holders.get(me, 0) + 1
        try:
            yield self._count
        finally:
            with self._lock:
                self._holders[me] -= 1
                if not self._holders[me]:
                    del self._holders[me]
                if not self._holders:
                    put(self._count)

    def _forget_other_threads(self) -> None:
        """In a forked child, which has the thread that forked alone."""
        held, me = bool(self._holders), threading.get_ident()
        self._holders = {me: self._holders[me]} if me in self._holders else {}
        if self._pair is not None and held and not self._holders:
            self._pair[1](self._count)
        self._lock.release()


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
