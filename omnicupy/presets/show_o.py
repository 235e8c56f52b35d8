"""The masks of Show-o (the first version), one for each of its tasks."""

from __future__ import annotations

import numpy as np

from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.intervals import IntArray, Intervals
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments
from omnicupy.presets.arguments import Spans
from omnicupy.presets.spans import blocks, joined, listed, need_lists

# What each task takes besides the length.
TASKS = {"t2i": ("pad_end", "images"), "lm": (), "mmu": ("prefix", "images"), "lvg": ("pad_end", "images")}


def show_o(length: int, task: str, *, pad_end: int = 0, prefix: int = 0, images: Spans = ()) -> Mask:
    """Show-o, one row of a batch; a batch of several tasks is a list of these masks.

        "t2i":  (k <= q and k >= pad_end) or q == k or same_image(q, k)
        "lm":   k <= q
        "mmu":  k <= q or k < prefix or in_image(k)
        "lvg":  (k <= q and k >= pad_end and (not in_image(k) or in_image(q))) or same_image(q, k) or k == 0

    length: tokens. pad_end: the tokens before it are padding. images: [(offset, length), ...], start and end
    tokens of an image included, after the padding. prefix: `mmu` shows the tokens before it to all rows;
    `mmu` with CLIP features after a system prompt is images=[(30, 576)] without a prefix. "lvg" is the
    repository's second version, in which text is blind to images. One interval per key, for "lvg" one for each
    image; where that is more than 32 MiB, lists of the text and images that see each other, as of `from_tiles`.

    The FlexAttention code joins the diagonal of "t2i" by an exclusive or, which hides it; this is the `or`
    that the dense code and the comment beside it have.

    Source: showlab/Show-o, training/omni_attention.py and training/prompting_utils.py.
    Raises TypeError or ValueError for other types and tasks, spans outside or overlapping,
    and an argument that the task does not take.
    """
    total = checked_length("show_o", "length", length)
    takes = TASKS[arguments.choice("show_o", "task", task, tuple(TASKS))]
    padded = count("show_o", "pad_end", pad_end, total)
    shown = count("show_o", "prefix", prefix, total)
    spans = arguments.spans("show_o", "images", images, total, padded)
    for name, given in (("pad_end", padded), ("prefix", shown), ("images", spans)):
        if given and name not in takes:
            raise ValueError(
                f"show_o: task {task!r} takes {' and '.join(takes) or 'the length alone'}, got {name}={given!r}; "
                "drop it or name another task"
            )
    if task == "lvg":
        return _blind_text(total, padded, spans)
    start, stop = np.arange(total, dtype=np.int32), np.full(total, total, np.int32)
    stop[:padded] = start[:padded] + 1
    start[:shown] = 0
    for first, end in spans:
        start[first:end] = 0 if task == "mmu" else first
    return Mask((total, total), intervals=(start[None], stop[None]))


def _blind_text(total: int, padded: int, images: list[tuple[int, int]]) -> Mask:
    """The mask of "lvg": an image is seen by itself and by the images after it, an interval for each of these."""
    runs = joined(images)  # images that touch are one range of rows
    start, stop = np.arange(total, dtype=np.int32), np.full(total, total, np.int32)
    start[:padded] = stop[:padded] = 0
    for first, end in images:
        start[first:end] = first
    start[0], stop[0] = 0, total
    if need_lists(runs, total):
        return _lists(total, runs, Mask((total, total), intervals=(start[None], stop[None])))
    return Mask((total, total), intervals=_split(start, stop, runs))


def _split(start: IntArray, stop: IntArray, runs: list[tuple[int, int]]) -> Intervals:
    """One interval per key (k_len,), cut into those of the images where the key is one of an image."""
    starts, stops = (np.zeros((max(1, len(runs)), len(side)), np.int32) for side in (start, stop))
    starts[0], stops[0] = start, stop
    for i, (first, end) in enumerate(runs):
        keys = slice(max(first, 1), end)  # all rows see key 0
        stops[0, keys] = end
        later = np.array(runs[i + 1 :], np.int32).reshape(-1, 2, 1)
        starts[1 : 1 + len(later), keys], stops[1 : 1 + len(later), keys] = later[:, 0], later[:, 1]
    used = max(1, int((stops > 0).any(axis=1).sum()))
    return starts[:used], stops[:used]


def _lists(total: int, runs: list[tuple[int, int]], inner: Mask) -> Mask:
    """Blocks of images see the blocks before them and themselves, blocks of text those of text."""
    rows, images = blocks(runs, total)
    keys, hidden = blocks(runs, total, 1)  # all rows see key 0, which may be one of an image
    every = np.arange(len(keys) - 1, dtype=np.int32)
    shown = np.delete(every, hidden[keys[hidden] > 0])
    before = np.searchsorted(keys, rows[1:])  # blocks of keys up to the end of each block of rows
    seen = [(shown[:count],) for count in np.searchsorted(shown, before).tolist()]
    for row in images.tolist():
        seen[row] = (every[: before[row]],)
    return listed((rows, keys), seen, inner)
