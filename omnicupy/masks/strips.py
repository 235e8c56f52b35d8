"""Rows of a mask worked through in strips, in one thread or two, with the results in their order.

`omnicupy.masks.bits` gives it tasks that run the caller's code on some rows, so it copies the caller's context
(NumPy's error state is part of it) to each thread and raises what a task raised.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

Progress: TypeAlias = Callable[[int, int], object]  # rows done, rows in all

STRIPS = 64  # at least so many where there are as many chunks: what progress shows, and threads share

_T = TypeVar("_T")


def run(
    task: Callable[[int, int], _T],
    q_len: int,
    step: int,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[_T]:
    """task(q0, q1) of strips that cover the rows [0, q_len), each but the last a multiple of `step` rows.

    progress: called in the caller's thread after each strip. A caller that stops iterating lets no further strip
    begin.
    """
    rows = max(step, -(-q_len // STRIPS) // step * step)
    bounds = [(q0, min(q0 + rows, q_len)) for q0 in range(0, q_len, rows)]
    if threads == 1 or len(bounds) == 1:
        for q0, q1 in bounds:
            yield task(q0, q1)
            if progress is not None:
                progress(q1, q_len)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = [pool.submit(contextvars.copy_context().run, task, q0, q1) for q0, q1 in bounds]
        for (_, q1), one in zip(bounds, waiting, strict=True):
            yield one.result()
            if progress is not None:
                progress(q1, q_len)
    finally:
        pool.shutdown(cancel_futures=True)
