"""Masks as lists of slices, and of tokens that share one label."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import columns, rectangles
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.arguments import plain, shape
from omnicupy.masks.intervals import IntArray, Intervals
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments
from omnicupy.presets.arguments import Spans
from omnicupy.presets.spans import blocks, joined, listed, need_lists

_FAR = 2**40  # further than any row
FULL, CAUSAL, INVERSE, BOTH = TYPES = (
    "full",
    "causal",
    "inverse_causal",
    "both",
)  # MagiAttention's 0, 1, 2, 3


def slices(
    given: Sequence[tuple[int, int, int, int, str | int]] | NDArray[np.integer],
    q_len: int,
    k_len: int | None = None,
) -> Mask:
    """MagiAttention's masks: the union of slices (q0, q1, k0, k1, type), wherever they lie; k_len None means q_len.

        q0 <= q < q1 and k0 <= k < k1 and
            "full" or 0:              every pair
            "causal" or 1:            k - k1 <= q - q1           aligned at the slice's bottom right corner
            "inverse_causal" or 2:    k - k0 >= q - q0           aligned at its top left corner
            "both" or 3:              both

    given: rows [q0, q1) and keys [k0, k1) in tokens. Slices may overlap; those without rows or keys add nothing.
    For q_ranges, k_ranges and attn_type_map: [(*q, *k, t) for q, k, t in zip(...)].

    Source: SandAI-org/MagiAttention, magi_attention/common/enum.py and mask.py.
    Raises TypeError or ValueError for other types, and slices that are reversed or outside.
    """
    rows, keys = shape("slices", q_len, k_len)
    bounds, types = [], []
    for i, one in enumerate(plain("slices", "given", given)):
        if not rectangles.holds(one, 5):
            raise ValueError(
                f"slices: given[{i}] must be (q0, q1, k0, k1, type), got {one!r}; give four numbers and a type"
            )
        bounds.append(tuple(one[:4]))
        types.append(_type(f"given[{i}]", one[4]))
    checked = rectangles.checked("slices", "given", bounds, rows, keys, keep_empty=True)
    kinds = np.array(types, np.int64)
    used = (checked[:, 0] < checked[:, 1]) & (checked[:, 2] < checked[:, 3])
    return Mask((rows, keys), intervals=_union(checked[used], kinds[used], keys))


def _type(name: str, value: object) -> int:
    """The place in TYPES of a type, given as its name or that place."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < len(TYPES):
        return int(value)
    if isinstance(value, str) and value in TYPES:
        return TYPES.index(value)
    raise ValueError(
        f"slices: {name} must have a type of {', '.join(TYPES)} (0 to 3), got {value!r}; name one of these"
    )


def _union(bounds: NDArray[np.int64], kinds: NDArray[np.int64], k_len: int) -> Intervals:
    """The intervals of slices, some thousand keys at a time: each slice that holds a key gives it one interval."""
    order = np.argsort(bounds[:, 2], kind="stable")
    (q0, q1, k0, k1), kinds = bounds[order].T, kinds[order]
    # A key k is seen from row k - below on, and before row k - above + 1.
    below = np.where(np.isin(kinds, (TYPES.index(CAUSAL), TYPES.index(BOTH))), k1 - q1, _FAR)
    above = np.where(np.isin(kinds, (TYPES.index(INVERSE), TYPES.index(BOTH))), k0 - q0, -_FAR)
    slots = _disjoint(k0.tolist(), k1.tolist())

    def work(keys: slice) -> Intervals:
        start, stop = (np.full((max(1, len(slots)), keys.stop - keys.start), columns.EMPTY) for _ in range(2))
        for slot, mine in enumerate(slots):
            some = mine[np.searchsorted(k1[mine], keys.start, "right") : np.searchsorted(k0[mine], keys.stop)]
            first = np.maximum(k0[some], keys.start)
            width = np.minimum(k1[some], keys.stop) - first
            of = np.repeat(some, width)
            key = np.arange(len(of)) + np.repeat(first - (np.cumsum(width) - width), width)
            lo, hi = np.maximum(q0[of], key - below[of]), np.minimum(q1[of], key - above[of] + 1)
            at = key - keys.start
            start[slot, at] = np.where(lo < hi, lo, columns.EMPTY)
            stop[slot, at] = np.where(lo < hi, hi, columns.EMPTY)
        return columns.covered(columns.in_order(start), columns.in_order(stop))

    return columns.canonical(work, max(1, len(slots)), k_len)


def _disjoint(first: list[int], stop: list[int]) -> list[NDArray[np.int64]]:
    """Places of ranges, which ascend by `first`, in as few groups as can be whose ranges do not overlap."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []  # where a group ends, and which it is
    for i, (begin, end) in enumerate(zip(first, stop, strict=True)):
        if free and free[0][0] <= begin:
            group = heapq.heapreplace(free, (end, free[0][1]))[1]
        else:
            group = len(groups)
            groups.append([])
            heapq.heappush(free, (end, group))
        groups[group].append(i)
    return [np.array(group, np.int64) for group in groups]


def one_label(length: int, spans: Spans) -> Mask:
    """Molmo2 and MonoFormer: causal, and the tokens of all spans (images, frames) see each other.

        k <= q or (in_span(q) and in_span(k))

    length: tokens. spans: [(offset, length), ...], disjoint, in any order; those of length 0 are skipped. One
    interval per key and span before it (spans that touch count as one); where that is more than 32 MiB, lists of the
    spans and of what lies between them, as of `from_tiles`.

    Source: huggingface/transformers, models/molmo2/modeling_molmo2.py.
    Raises TypeError or ValueError for other types and spans outside or overlapping.
    """
    total = checked_length("one_label", "length", length)
    runs = joined(arguments.spans("one_label", "spans", spans, total))
    if need_lists(runs, total):
        return _labelled(total, runs)
    lo, hi = (np.zeros((max(1, len(runs)), total), np.int32) for _ in range(2))
    lo[0], hi[0] = np.arange(total), total
    for i, (first, stop) in enumerate(runs):
        earlier = np.array(runs[:i], np.int32).reshape(-1, 2, 1)
        lo[:i, first:stop], hi[:i, first:stop] = earlier[:, 0], earlier[:, 1]
        lo[i, first:stop], hi[i, first:stop] = first, total
    return Mask((total, total), intervals=(lo, hi))


def _labelled(total: int, runs: list[tuple[int, int]]) -> Mask:
    """Blocks of spans see the blocks before them, themselves and the spans after them, other blocks none after them."""
    bounds, spans = blocks(runs, total)
    every, labelled = np.arange(len(bounds) - 1, dtype=np.int32), spans.astype(np.int32)
    seen: list[tuple[IntArray, ...]] = [(every[: row + 1],) for row in range(len(every))]
    for i, row in enumerate(labelled.tolist()):
        seen[row] = (every[: row + 1], labelled[i + 1 :])
    start, stop = np.arange(total, dtype=np.int32), np.full(total, total, np.int32)
    for first, end in runs:
        start[first:end] = 0
    return listed((bounds, bounds), seen, Mask((total, total), intervals=(start[None], stop[None])))
