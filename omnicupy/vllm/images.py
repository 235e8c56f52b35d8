"""Which rows of a request see more than its causal rule shows: those of images, as rules of `cached`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from omnicupy.errors import UnsupportedError
from omnicupy.masks.constructors import intervals
from omnicupy.masks.mask import Mask
from omnicupy.serving.rule import CachedRule, cached

Spans: TypeAlias = tuple[tuple[int, int], ...]  # rows [first, stop) of a request


def spans_of(ranges: Sequence[tuple[int, int]], begin: int, rows: int, window: int | None) -> Spans:
    """The images in `rows` rows, as rows, where these see more of an image than the causal rule shows.

    ranges: first and last position of each image in the whole prompt, both included.  begin: the position of row 0.
    window: that of the layer where an image is seen beyond it; None without one, and where it cuts images as well.
    An image may begin ahead of these rows, as keys of the history; what comes behind them has no keys yet.
    Raises UnsupportedError where a row sees keys of its image in the history that lie behind the window.
    """
    found = []
    for start, last in ranges:
        first, stop = start - begin, min(last - begin + 1, rows)
        if start >= last or stop <= 0 or first >= rows:
            continue
        beyond = window is not None and stop - first > window
        if beyond and first < 0:
            raise UnsupportedError(
                f"mm_req_doc_ranges: the image at positions {start} to {last} is longer than the window of {window} "
                f"keys and begins ahead of this step's rows, at {begin}; compute an image in one step "
                "(disable_chunked_mm_input, no prefix cache), or clamp it to the window"
            )
        if beyond or stop - max(first, 0) > 1:
            found.append((max(first, 0), stop))
    return tuple(sorted(found))


@lru_cache(
    maxsize=64
)  # the arguments determine the rule: layers and steps with the same images share their plans
def rule_of(rows: int, requests: tuple[Spans, ...], window: int | None, clamped: bool) -> CachedRule:
    """The rule of requests of `rows` rows each, with images in them.

    window: that of the layer, for keys outside of images and, where clamped, inside as well.
    """
    tails = [_own_keys(rows, spans, window, clamped) for spans in requests]
    return cached(window=window, tail=tails if len(set(requests)) > 1 else tails[0])


@lru_cache(maxsize=256)
def _own_keys(rows: int, spans: Spans, window: int | None, clamped: bool) -> Mask:
    """Which of its last `rows` keys each row sees: its image and, within the window, all up to itself."""
    start = np.arange(rows)
    stop = np.minimum(start + (window or rows), rows)
    for first, last in spans:
        np.minimum(start[first:last], first, out=start[first:last])
        if not clamped:
            np.maximum(stop[first:last], last, out=stop[first:last])
    return intervals(start, stop, rows)
