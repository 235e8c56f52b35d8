"""When a captured graph has ended: it, every graph made of it, and the last of their launches."""

from __future__ import annotations

import ctypes
from functools import cache as cache_forever
from typing import Any

from omnicupy.gpu import bindings

MOVE = 1  # CU_GRAPH_USER_OBJECT_MOVE: the graph gets our reference

# Held ones, of graphs that have ended. They are not freed: the call that released one may not be over yet.
_spare_locks: list[int] = []


class GraphEnd:
    """Tells whether a graph has ended.

    CUDA calls a function when it drops the last reference to a "user object" of a graph (CUDA C++ Programming Guide,
    "CUDA User Objects"): on a thread of its own, where no CUDA call is allowed, and where a wait for the interpreter
    could stop a thread that holds it and waits for CUDA. So the function is one in C of the interpreter itself, which
    waits for nobody: it releases a lock that is held here until then.
    """

    def __init__(self, graph: Any) -> None:
        """graph: a CUgraph, which may be under capture. Raises cupy.cuda.driver.CUDADriverError."""
        driver, locks = bindings.driver(), _locks()
        self._lock = _spare_locks.pop() if _spare_locks else _held_lock()
        self._over = False
        release = driver.CUhostFn(ctypes.cast(locks.PyThread_release_lock, ctypes.c_void_p).value)
        flags = driver.CUuserObject_flags.CU_USER_OBJECT_NO_DESTRUCTOR_SYNC
        status, reference = driver.cuUserObjectCreate(self._lock, release, 1, int(flags))
        bindings.check(status)
        (status,) = driver.cuGraphRetainUserObject(graph, reference, 1, MOVE)
        if status:
            driver.cuUserObjectRelease(reference, 1)
        bindings.check(status)

    def has_come(self) -> bool:
        """True once the graph has ended. One thread at a time."""
        if not self._over and _locks().PyThread_acquire_lock(self._lock, 0):
            self._over = True
            _spare_locks.append(self._lock)
        return self._over


def _held_lock() -> int:
    made = _locks().PyThread_allocate_lock()
    if not made:
        raise MemoryError("no lock for a captured graph")
    _locks().PyThread_acquire_lock(made, 0)
    return int(made)


@cache_forever
def _locks() -> Any:
    """The interpreter's C functions for locks (pythread.h): a lock may be released by another thread."""
    found = ctypes.pythonapi
    found.PyThread_allocate_lock.restype = ctypes.c_void_p
    found.PyThread_acquire_lock.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return found
