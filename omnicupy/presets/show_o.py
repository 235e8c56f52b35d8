"""The masks of Show-o (the first version), one for each of its tasks."""

from __future__ import annotations

import numpy as np

from omnicupy.masks.arguments import count
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.intervals import Intervals
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments
from omnicupy.presets.arguments import Spans

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
    repository's second version, in which text is blind to images. One interval per key, for "lvg" up to one
    for each image.

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
        return Mask((total, total), intervals=_blind_text(total, padded, spans))
    start, stop = np.arange(total, dtype=np.int32), np.full(total, total, np.int32)
    stop[:padded] = start[:padded] + 1
    start[:shown] = 0
    for first, end in spans:
        start[first:end] = 0 if task == "mmu" else first
    return Mask((total, total), intervals=(start[None], stop[None]))


def _blind_text(total: int, padded: int, images: list[tuple[int, int]]) -> Intervals:
    """The intervals of "lvg": an image is seen by itself and by the images after it."""
    runs: list[list[int]] = []  # images that touch are one range of rows
    for first, end in images:
        if runs and runs[-1][1] == first:
            runs[-1][1] = end
        else:
            runs.append([first, end])
    start = np.zeros((max(1, len(runs)), total), np.int32)
    stop = np.zeros_like(start)
    start[0, padded:] = np.arange(padded, total, dtype=np.int32)
    stop[0, padded:] = total
    for i, (first, end) in enumerate(runs):
        later = np.array(runs[i:], np.int32)
        start[: len(later), first:end] = later[:, :1]
        stop[: len(later), first:end] = later[:, 1:]
    for first, end in images:
        start[0, first:end] = first
    start[:, 0] = stop[:, 0] = 0
    stop[0, 0] = total
    used = max(1, int((stop > 0).any(axis=1).sum()))
    return start[:used], stop[:used]
