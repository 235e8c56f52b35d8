"""The mask constructors. Rows are queries, columns are keys; lengths and positions are in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits, predicates
from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks.arguments import MAX_LENGTH, at_least_one, count, host_array, length, plain_array, shape
from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.masks.mask import Mask
from omnicupy.masks.rectangles import checked as checked_rectangles
from omnicupy.masks.strips import Progress


def full(q_len: int, k_len: int | None = None) -> Mask:
    """Every row sees every key; k_len None means q_len.

    Raises TypeError or ValueError for lengths below 1.
    """
    rows, keys = shape("full", q_len, k_len)
    return _uniform(np.zeros(keys, np.int32), np.full(keys, rows, np.int32), rows)


def causal(q_len: int, k_len: int | None = None) -> Mask:
    """Row q sees keys k <= q + k_len - q_len: aligned at the bottom right corner; k_len None means q_len.

    With fewer keys than rows the first q_len - k_len rows see nothing. Raises TypeError or ValueError for
    lengths below 1.
    """
    rows, keys = shape("causal", q_len, k_len)
    start = np.maximum(np.arange(keys, dtype=np.int32) - np.int32(keys - rows), 0)
    return _uniform(start, np.full(keys, rows, np.int32), rows, keys - rows, growing=rows == keys)


def sliding_window(q_len: int, k_len: int | None = None, *, left: int, right: int = 0) -> Mask:
    """Row q, at position p = q + k_len - q_len of the keys, sees keys p - left to p + right, both included.

    Aligned at the bottom right corner as `causal`; k_len None means q_len. left, right: tokens; 0 and 0 leave
    the diagonal. Raises TypeError or ValueError for lengths below 1 and negative windows.
    """
    rows, keys = shape("sliding_window", q_len, k_len)
    hint = "give the number of tokens on that side"
    reach = rows + keys  # further than any pair
    left = min(count("sliding_window", "left", left, hint=hint), reach)
    right = min(count("sliding_window", "right", right, hint=hint), reach)
    first, last = max(0, keys - rows - left), min(keys, keys + right)  # keys that some row sees
    row = np.arange(first, last, dtype=np.int64) - (keys - rows)  # of the same position
    bounds = np.zeros(
        (2, 1, keys), np.int32
    )  # in one piece: the system clears what is touched of it, a few keys
    bounds[:, 0, first:last] = np.clip((row - right, row + left + 1), 0, rows)
    # no interval is empty between these bounds, so none has to be looked for
    live = (first, last) if first < last else (0, 0)
    return Mask((rows, keys), intervals=(bounds[0], bounds[1]), diagonal=keys - rows, live=live)


def sink(n: int, k: int, k_len: int | None = None) -> Mask:
    """n rows that all see the first k keys and nothing else; k_len None means n. Made to be combined:
    `causal(n) & (sliding_window(n, left=w) | sink(n, 4))`.

    k: from 0 to the number of keys. Raises TypeError or ValueError for other values.
    """
    rows, keys = length("sink", "n", n), length("sink", "k_len", n if k_len is None else k_len)
    first = count("sink", "k", k, keys, "the length comes first: sink(n, k)")
    stop = np.zeros(keys, np.int32)
    stop[:first] = rows
    return _uniform(np.zeros(keys, np.int32), stop, rows)


def prefix(n: int, p: int) -> Mask:
    """n tokens of which the first p see each other, the rest is causal (prefix-LM). The length comes first.

    p: from 0 (causal) to n (full). Raises TypeError or ValueError for other values.
    """
    rows = length("prefix", "n", n)
    first = count("prefix", "p", p, rows, "the length comes first: prefix(n, p)")
    start = np.arange(rows, dtype=np.int32)
    start[:first] = 0
    return _uniform(start, np.full(rows, rows, np.int32), rows)


def ranges(
    rectangles: Sequence[tuple[int, int, int, int]] | NDArray[np.integer],
    q_len: int,
    k_len: int | None = None,
) -> Mask:
    """The union of rectangles (q_start, q_stop, k_start, k_stop): these rows see these keys.

    k_len None means q_len. rectangles: a list, or an integer array (n, 4).

    Rectangles may overlap; those without rows or keys add nothing, and an empty list allows nothing. Raises
    TypeError or ValueError for a rectangle that is reversed or outside (q_len, k_len).
    """
    rows, keys = shape("ranges", q_len, k_len)
    bounds = checked_rectangles("ranges", "rectangles", rectangles, rows, keys)
    return Mask((rows, keys), intervals=masks_intervals.rectangles(bounds, rows, keys))


def intervals(start: NDArray[Any], stop: NDArray[Any], q_len: int) -> Mask:
    """Key k is visible to rows [start[i, k], stop[i, k]) for any i: how most masks are stored.

    start, stop: integer arrays (n, k_len), or (k_len,) for n = 1; copied. start == stop is empty; intervals
    of one key may come in any order and may touch. Raises TypeError for other dtypes, ValueError for reversed
    or overlapping intervals and bounds outside [0, q_len].
    """
    rows = length("intervals", "q_len", q_len)
    lo, hi = _bounds("start", start), _bounds("stop", stop)
    if lo.shape != hi.shape:
        raise ValueError(
            f"intervals: start and stop must have one shape, got {lo.shape} and {hi.shape}; "
            "pass both (n, k_len)"
        )
    for name, array in (("start", lo), ("stop", hi)):
        if array.min() < 0 or array.max() > rows:
            slot, key = np.argwhere((array < 0) | (array > rows))[0]
            raise ValueError(
                f"intervals: {name} must be from 0 to q_len={rows}, got {array[slot, key]} for interval "
                f"{slot} of key {key}; clip it"
            )
    if (lo > hi).any():
        slot, key = np.argwhere(lo > hi)[0]
        raise ValueError(
            f"intervals: start must not exceed stop, got [{lo[slot, key]}, {hi[slot, key]}) for interval "
            f"{slot} of key {key}; swap them"
        )
    start32, stop32 = lo.astype(np.int32), hi.astype(np.int32)
    if (double := masks_intervals.first_overlapping_key(start32, stop32)) is not None:
        raise ValueError(
            f"intervals: the intervals of one key must not overlap, those of key {double} do: start "
            f"{start32[:, double].tolist()}, stop {stop32[:, double].tolist()}; merge them"
        )
    return Mask((rows, lo.shape[1]), intervals=masks_intervals.canonical(start32, stop32))


def from_dense(dense: BoolArray | Any) -> Mask:
    """The mask of a boolean array (q_len, k_len), True where the row sees the key; copied.

    dense: NumPy's, or an array or tensor of another library in the memory of the CPU. Kept as intervals where no key
    needs more than 4, else as bits (an eighth of the array). Raises TypeError for anything else, ValueError for other
    ranks and empty axes.
    """
    if hasattr(dense, "__dlpack_device__") and not isinstance(dense, np.ndarray):
        dense = host_array("from_dense", "dense", dense)
    if not isinstance(dense, np.ndarray):
        raise TypeError(f"from_dense: dense must be a NumPy array, got {type(dense).__name__}; convert it")
    plain_array("from_dense: dense", dense)
    if dense.dtype != np.bool_:
        how = "pass dense != 0"
        if dense.dtype.kind not in "iu":  # of an additive mask that would show what it hides
            how = "pass dense == 0 of a mask that is added to scores, dense != 0 where 0 hides a key"
        raise TypeError(f"from_dense: dense must be boolean, got {dense.dtype}; {how}")
    if dense.ndim != 2 or 0 in dense.shape:
        raise ValueError(
            f"from_dense: dense must have shape (q_len, k_len), neither 0, got {dense.shape}; "
            "index or reshape it"
        )
    rows, keys = shape("from_dense", *dense.shape)
    return _from_rows(lambda q0, q1: dense[q0:q1], rows, keys)


@overload
def from_predicate(
    fn: Callable[..., Any],
    q_len: int,
    k_len: int | None = None,
    *,
    batch: None = None,
    threads: int = 2,
    progress: Progress | None = None,
    xp: Any = np,
) -> Mask: ...
@overload
def from_predicate(
    fn: Callable[..., Any],
    q_len: int,
    k_len: int | None = None,
    *,
    batch: int,
    threads: int = 2,
    progress: Progress | None = None,
    xp: Any = np,
) -> list[Mask]: ...
def from_predicate(
    fn: Callable[..., Any],
    q_len: int,
    k_len: int | None = None,
    *,
    batch: int | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    xp: Any = np,
) -> Mask | list[Mask]:
    """The mask of a vectorised rule fn(q, k), or of FlexAttention's mask_mod(b, h, q, k); k_len None means q_len.

    fn gets rows q (r, 1) and keys k (1, k_len), int64 arrays, and returns booleans of two axes that broadcast to
    (r, k_len), or one boolean. It is called for some rows at a time, in two threads (threads=1: in one), and
    must give the same answer each time; some rows are asked for twice, all of them where a key needs more than
    4 intervals. Memory stays bounded: some MiB, and an eighth of a byte a pair where the mask is kept as bits.

    A mask_mod is told by its four arguments. One that reads b needs batch, the number of batch elements; the
    result is then a list of so many masks, equal ones the same object. One that reads h is refused: masks are
    shared by heads.

    progress: called as progress(rows done, rows in all), from 0 again where the mask turns out to need bits.
    xp: numpy, or cupy for a rule that works on CuPy arrays: it then gets and returns those, on one thread.

    Raises TypeError when fn is not callable, has another number of arguments, reads h, or b without batch, or
    gives another dtype, ValueError when the result has other axes or lengths.
    """
    rows, keys = shape("from_predicate", q_len, k_len)
    if not callable(fn):
        raise TypeError(
            f"from_predicate: fn must be a function of (q, k), got {type(fn).__name__}; pass a function"
        )
    way = predicates.way_of(threads, progress, xp)

    def mask_of(rule: predicates.Rule) -> Mask:
        return _from_rows(predicates.rows_of(rule, keys, xp), rows, keys, way)

    if not predicates.takes_batch(fn):
        if batch is not None:
            raise ValueError(
                f"from_predicate: batch goes with a mask_mod of (b, h, q, k), got batch={batch!r} with a "
                "function of (q, k); drop it"
            )
        return mask_of(fn)
    elements = 1 if batch is None else at_least_one("from_predicate", "batch", batch)
    if elements > MAX_LENGTH:
        raise ValueError(f"from_predicate: batch must be at most {MAX_LENGTH}, got {elements}")
    return predicates.of_batch(fn, mask_of, elements, as_list=batch is not None)


def _uniform(
    start: IntArray, stop: IntArray, q_len: int, diagonal: int = 0, *, growing: bool = False
) -> Mask:
    """One interval per key; the arrays (k_len,) are taken over."""
    pairs = masks_intervals.tidy(start[None], stop[None])
    return Mask((q_len, len(start)), intervals=pairs, diagonal=diagonal, growing=growing)


def _from_rows(rows: bits.Rows, q_len: int, k_len: int, way: bits.Way = bits.ONE) -> Mask:
    """The mask whose rows `rows` gives, as intervals where they are short."""
    short = bits.short_intervals(rows, q_len, k_len, way)
    if short is not None:
        return Mask((q_len, k_len), intervals=short)
    return Mask((q_len, k_len), bits=bits.from_rows(rows, q_len, k_len, way))


def _bounds(name: str, values: object) -> NDArray[Any]:
    """An argument of `intervals` as an integer array (n, k_len)."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"intervals: {name} must be a NumPy array of integers, got {kind}; convert it")
    plain_array(f"intervals: {name}", values)
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(
            f"intervals: {name} must have shape (n, k_len) or (k_len,), neither 0, got {values.shape}; "
            "reshape it"
        )
    return np.atleast_2d(values)
