"""Turns of several processes on one GPU: they prepare beside each other, and what one times has the GPU to itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

# One file of two is opened from this number on. A process that ends gives its files back in ascending order or, as a
# newer Linux does, in descending order: one of the two comes behind those of the GPU's driver.
_LATE_FILE = 512
# What others ran may have brought the chip to its power limit, and it keeps a low clock for a while.
REST_S = 0.5


def settle() -> None:
    """Wait until the current device has done what this process gave it."""
    import cupy

    cupy.cuda.Device().synchronize()


class Turns:
    """The turns of the processes that share `folder`; None: of a process that shares the GPU with no other.

    around_waits: entered while this process waits for others.  Raises ValueError where the system has no locks of
    files.
    """

    def __init__(self, folder: Path | None = None, settle: Callable[[], Any] = settle) -> None:
        self._folder, self._settle, self._is_beside = folder, settle, False
        self.around_waits: Callable[[], AbstractContextManager[Any]] = nullcontext
        if folder is None:
            return
        if fcntl is None:
            raise ValueError("--jobs: expected a POSIX system, which has locks of files; leave it out")
        self._gate, *self._locks = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("gate", "lock", "late-lock")
        )
        try:
            late = fcntl.fcntl(self._locks[1], fcntl.F_DUPFD_CLOEXEC, _LATE_FILE)
        except OSError:  # a process may not open so many
            return
        os.close(self._locks[1])
        self._locks[1] = late

    @property
    def is_shared(self) -> bool:
        """Are there other processes?"""
        return self._folder is not None

    def beside(self) -> AbstractContextManager[None]:
        """For the body others may be beside this process, and none alone."""
        return self._held(shared=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the body no other process is on the GPU, which has rested where there are others."""
        with self._held(shared=False):
            if self.is_shared:
                time.sleep(REST_S)
            yield

    @contextmanager
    def _held(self, *, shared: bool) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        self._take(shared=shared)
        try:
            yield
        finally:
            self._give_back()

    def give_way(self) -> None:
        """Between steps of what is beside others: one that waits to be alone goes first."""
        if self._is_beside:
            try:
                self._give_back()
            finally:
                self._take(shared=True)

    def end(self) -> None:
        """Of a process that ends next: while the driver takes its memory back nobody is alone."""
        if self._folder is not None:
            self._take(shared=True)

    def claim(self, name: str) -> bool:
        """Is the job `name` this process's? It is if no other one has asked before."""
        if self._folder is None:
            return True
        try:
            os.close(os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _take(self, *, shared: bool) -> None:
        """Who waits for the lock holds the gate, so that others queue behind it whatever they want."""
        with self.around_waits():
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            try:
                for lock in self._locks:
                    fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            finally:
                fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._is_beside = shared

    def _give_back(self) -> None:
        self._is_beside = False
        try:
            self._settle()
        finally:
            for lock in self._locks:
                fcntl.flock(lock, fcntl.LOCK_UN)


NOBODY_ELSE = Turns()
