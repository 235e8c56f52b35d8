"""Masks of a million tokens: what building, combining, cutting and packing them takes, in time and memory."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from omnicupy import presets
from omnicupy.masks import constructors, segment_masks
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import block_lists
from omnicupy.schedule.parts import Workers
from omnicupy.tools.bench import host
from omnicupy.tools.bench.mask_build import timed
from omnicupy.tools.bench.records import Record

TOKENS = 1 << 20
BR, BC = 128, 128
TURNS = 3
WORKERS = Workers(heads=1, sm_count=132)
MIB = 1 << 20


def _segments() -> Mask:
    """Ten thousand segments of text, images and noise, in a hundred documents."""
    kinds = ("text", "image", "noise", "text", "image")
    return segment_masks.segments(
        [[(kinds[i % 5], TOKENS // 10_000) for i in range(100)] for _ in range(100)]
    )


def _rectangles() -> Mask:
    """64 rectangles of a million keys each."""
    rows = TOKENS // 64
    return constructors.ranges([(i * rows, (i + 1) * rows, 0, TOKENS) for i in range(64)], TOKENS, TOKENS)


def _images() -> Mask:
    """A thousand images that text does not see: lists of blocks in place of a thousand intervals a key."""
    each = TOKENS // 1000
    return presets.show_o(
        TOKENS, "lvg", images=[(i * each + each // 8, each - each // 8) for i in range(1000)]
    )


BUILT: dict[str, Callable[[], Mask]] = {
    "causal": lambda: constructors.causal(TOKENS),
    "window": lambda: constructors.sliding_window(TOKENS, left=1023),
    "documents": lambda: segment_masks.documents([1024] * (TOKENS // 1024)),
    "prefix": lambda: constructors.prefix(TOKENS, 4096),
    "segments": _segments,
    "rectangles": _rectangles,
    "images": _images,
}
CUT = ("causal", "window", "documents", "prefix")


def _combined() -> Iterator[tuple[str, Callable[[], Mask]]]:
    """The algebra on masks of one, two and more intervals a key."""
    causal, window, documents = (BUILT[name]() for name in ("causal", "window", "documents"))
    local = window | constructors.sink(TOKENS, 4)
    streams = constructors.ranges(
        [(0, TOKENS // 2, 0, TOKENS), (3 * TOKENS // 4, TOKENS, 0, TOKENS)], TOKENS, TOKENS
    )
    many = _striped(8)
    yield "causal and documents", lambda: causal & documents
    yield "causal or window", lambda: causal | window
    yield "not causal", lambda: ~causal
    yield "not documents", lambda: ~documents
    yield "two intervals and two", lambda: streams & ~documents
    yield "local and causal", lambda: local & causal
    yield "eight intervals or seven", lambda: many | _striped(7)
    yield "not eight intervals", lambda: ~many


def _striped(count: int) -> Mask:
    """Each key is seen in `count` runs of rows."""
    step = TOKENS // (2 * count + 1)
    start = np.repeat(np.arange(1, 2 * count + 1, 2)[:, None] * step, TOKENS, axis=1).astype(np.int32)
    return constructors.intervals(start, start + np.int32(step // 2), TOKENS)


def _form(mask: Mask) -> dict[str, int]:
    """The most intervals of a key, or the tiles of lists."""
    if mask.tiles is not None:
        return {"tiles": len(mask.tiles.keys)}
    return {"intervals": 0 if mask.intervals is None else len(mask.intervals[0])}


def scaling(record: Record, say: host.Say) -> None:
    """Milliseconds, and MiB of new memory at the most, on one core: medians after a first time."""
    for name, build in BUILT.items():
        _add(record, say, f"build {name}", build, _form)
    for name, combine in _combined():
        _add(record, say, name, combine, _form)
    for name in CUT:
        mask = BUILT[name]()

        def cut_and_pack(mask: Mask = mask) -> Any:
            mask._blocks.clear()  # else the second time finds the first one's
            return block_lists([mask.blocks(BR, BC)], WORKERS)

        _add(
            record,
            say,
            f"cut and pack {name}",
            cut_and_pack,
            lambda lists: {
                "entries": lists.shapes["entries"][0],
                "device_mib": round(lists.buffer.nbytes / MIB, 2),
            },
        )


def _add(
    record: Record, say: host.Say, name: str, run: Callable[[], Any], more: Callable[[Any], dict[str, Any]]
) -> None:
    run()
    took = []
    for _ in range(TURNS):
        found, ms = timed(run)
        took.append(ms)
    figures = {"ms": round(statistics.median(took), 2), "mib": round(_peak_mib(run), 1), **more(found)}
    host.add(record, say, f"{name}, {TOKENS:,} tokens", figures)


def _peak_mib(run: Callable[[], Any]) -> float:
    """New memory at the most while it runs, what it returns included."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
