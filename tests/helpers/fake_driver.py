"""Stands in for cuda.bindings.driver: numbers of streams, captures, what graphs call back when they end, and
launches.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

PER_THREAD = 2
RELAXED = 2


class Graph:
    """A captured graph, and all that was made of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.user_objects: list[tuple[int, int]] = []  # the function and its argument

    def end(self) -> None:
        """What CUDA does when the last of them is gone, on a thread of its own."""

        def call() -> None:
            for function, argument in self.user_objects:
                ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(argument)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()


class Driver:
    """captured: handle of a stream -> the graph that it is captured into.  mode: of the calling thread."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=RELAXED)
    CUuserObject_flags = SimpleNamespace(CU_USER_OBJECT_NO_DESTRUCTOR_SYNC=1)
    CUhostFn = staticmethod(int)

    def __init__(self) -> None:
        self.captured: dict[int, Graph] = {}
        self.mode = 0
        self.retain_fails = False
        self._numbers: dict[tuple[int, int], int] = {}
        self._next_number, self._next_capture = itertools.count(10), itertools.count(1)
        self._objects: dict[int, tuple[int, int]] = {}

    def begin(self, *streams: Any) -> Graph:
        """Capture streams into one graph."""
        graph = Graph(next(self._next_capture))
        self.captured |= {stream.ptr: graph for stream in streams}
        return graph

    def end(self, graph: Graph) -> None:
        """End a capture. The graph lives on."""
        self.captured = {handle: of for handle, of in self.captured.items() if of is not graph}

    def destroy(self, handle: int) -> None:
        """Destroy a stream: the next one of this handle is another one."""
        self._numbers.pop((handle, 0), None)

    def cuStreamGetId(self, handle: int) -> tuple[int, int]:  # noqa: N802
        assert handle > 1
        if handle in self.captured:  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            return 900, 0
        key = (handle, threading.get_ident() if handle == PER_THREAD else 0)
        return 0, self._numbers.setdefault(key, next(self._next_number))

    def cuStreamGetCaptureInfo(self, handle: int) -> tuple[Any, ...]:  # noqa: N802
        graph = self.captured[handle]
        return 0, 1, graph.number, graph, [], 0

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> tuple[int, int]:  # noqa: N802
        before, self.mode = self.mode, mode
        return 0, before

    def cuUserObjectCreate(self, argument: int, function: int, count: int, flags: int) -> tuple[int, int]:  # noqa: N802
        assert (count, flags) == (1, 1)
        made = len(self._objects)
        self._objects[made] = (function, argument)
        return 0, made

    def cuGraphRetainUserObject(self, graph: Graph, made: int, count: int, flags: int) -> tuple[int]:  # noqa: N802
        assert (count, flags) == (1, 1)
        if self.retain_fails:
            return (801,)
        graph.user_objects.append(self._objects[made])
        return (0,)

    def cuUserObjectRelease(self, made: int, count: int) -> tuple[int]:  # noqa: N802
        assert count == 1
        del self._objects[made]
        return (0,)


class Function:
    """What launches a kernel, as launcher.Launcher does. call: notes a launch."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, grid: Any, block: Any, args: Any, smem: int, stream: Any) -> None:
        self._call(grid, block, args, smem, stream)

    def bind(self, grid: Any, block: Any, argument: bytearray, smem: int, stream: Any) -> Callable[[], None]:
        return partial(self, grid, block, (argument,), smem, stream)
