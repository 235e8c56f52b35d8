"""A guard against kernels that hang: it names the one that runs, and ends the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

EXIT_STATUS = 3


def _end(message: str) -> None:
    """A hung kernel cannot be stopped from inside the process, and its driver calls never return."""
    sys.stdout.flush()
    sys.stderr.write(f"\n{message}\n")
    sys.stderr.flush()
    os._exit(EXIT_STATUS)


class Watchdog:
    """While entered, calls `end` with what runs when one step takes longer than `limit_s` seconds."""

    def __init__(self, limit_s: float, end: Callable[[str], None] = _end) -> None:
        self._limit = limit_s
        self._end = end
        self._label = ""
        self._steps = 0
        self._waits = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def step(self, label: str) -> None:
        """The next step begins."""
        self._label = label
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the body the step waits for others, which takes as long as it takes."""
        self._waits = True
        try:
            yield
        finally:
            self._steps += 1  # the time before does not count either
            self._waits = False

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = -1
        while not self._done.wait(self._limit):
            if seen == self._steps and not self._waits:
                self._end(
                    f"FAIL  {self._label}: still running after {self._limit:.0f} s; the process ends here"
                )
                return
            seen = self._steps
