"""Bad calls of the mask constructors and methods: each a bad argument and the exact message it raises."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from omnicupy.masks import constructors, segment_masks


def error_of(call: Callable[[], object]) -> tuple[type[Exception], str]:
    """The error a call raises and its text."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    return caught.type, str(caught.value)


TOO_LONG = 2**30 + 1
BAD_CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: constructors.full(0), ValueError, "full: q_len must be from 1 to 1073741824 tokens, got 0; pass a length in that range"),
    (lambda: constructors.causal(3, -1), ValueError, "causal: k_len must be from 1 to 1073741824 tokens, got -1; pass a length in that range"),
    (lambda: constructors.causal(TOO_LONG), ValueError, f"causal: q_len must be from 1 to 1073741824 tokens, got {TOO_LONG}; pass a length in that range"),
    (lambda: constructors.full(2.0), TypeError, "full: q_len must be an integer, got float 2.0; pass a whole number"),
    (lambda: constructors.full(True), TypeError, "full: q_len must be an integer, got bool True; pass a whole number"),
    (lambda: constructors.sliding_window(4, left=-1), ValueError, "sliding_window: left must be at least 0, got -1; give the number of tokens on that side"),
    (lambda: constructors.sliding_window(4, left=1, right=-2), ValueError, "sliding_window: right must be at least 0, got -2; give the number of tokens on that side"),
    (lambda: constructors.sliding_window(4, left=None), TypeError, "sliding_window: left must be an integer, got NoneType None; pass a whole number"),
    (lambda: constructors.sink(4, 5), ValueError, "sink: k must be from 0 to 4, got 5; the length comes first: sink(n, k)"),
    (lambda: constructors.prefix(4, 9), ValueError, "prefix: p must be from 0 to 4, got 9; the length comes first: prefix(n, p)"),
    (lambda: segment_masks.segments([]), ValueError, "segments: documents must hold at least one token, got none; pass the segments of a sequence"),
    (lambda: segment_masks.segments([[("text", 0)], []]), ValueError, "segments: documents must hold at least one token, got none; pass the segments of a sequence"),
    (lambda: segment_masks.segments("text" for _ in range(2)), TypeError, 'segments: documents must be a list of (kind, length) or a list of such lists, got generator; write for example [("text", 120), ("image", 729)]'),
    (lambda: segment_masks.segments([("text", 1), ("image", -1)]), ValueError, "segments: document 0, segment 1: length must be at least 0 tokens, got -1; pass a length in tokens"),
    (lambda: segment_masks.segments([("text", 1), (["text"], 4)]), ValueError, "segments: document 0, segment 1: kind must be one of text, image, noise, got ['text']; name one of these"),
    (lambda: segment_masks.segments([("text", 1), (np.array(["text"]), 4)]), ValueError, "segments: document 0, segment 1: kind must be one of text, image, noise, got array(['text'], dtype='<U4'); name one of these"),
    (lambda: segment_masks.segments([("text", 1), ("video", 4)]), ValueError, "segments: document 0, segment 1: kind must be one of text, image, noise, got 'video'; name one of these"),
    (lambda: segment_masks.segments([[("text", 1)], [("text", 1.5)]]), TypeError, "segments: document 1, segment 0: length must be an integer, got float 1.5; pass a whole number"),
    (lambda: segment_masks.segments([[("text", 1)], [("text",)]]), TypeError, "segments: document 1, segment 0: expected (kind, length), got ('text',); write a pair"),
    (lambda: segment_masks.segments([3, 4]), TypeError, "segments: document 0: expected a list of (kind, length), got 3; write a list"),
    (lambda: segment_masks.segments([("text", TOO_LONG)]), ValueError, f"segments: document 0, segment 0: length must be at most 1073741824 tokens, got {TOO_LONG}; split it into several masks"),
    (lambda: segment_masks.segments([("text", 2**62)] * 4), ValueError, f"segments: document 0, segment 0: length must be at most 1073741824 tokens, got {2**62}; split it into several masks"),
    (lambda: segment_masks.segments([("text", 2**30)] * 4), ValueError, "segments: expected at most 1073741824 tokens, got 4294967296; split it into several masks"),
    (lambda: segment_masks.documents(5), TypeError, "documents: lengths must be a list or an array, got int 5; make it a list"),  # type: ignore[arg-type]
    (lambda: segment_masks.documents([3], causal="no"), TypeError, "documents: causal must be True or False, got str 'no'; pass a bool"),  # type: ignore[arg-type]
    (lambda: segment_masks.random(10, -1), ValueError, "random: seed must be at least 0, got -1; pass a number in that range"),
    (lambda: segment_masks.documents([]), ValueError, "documents: lengths must hold at least one token, got 0 documents without any; pass the length of each document"),
    (lambda: segment_masks.documents([0, 0]), ValueError, "documents: lengths must hold at least one token, got 2 documents without any; pass the length of each document"),
    (lambda: segment_masks.documents([3, -1]), ValueError, "documents: lengths[1] must be from 0 to 1073741824, got -1; pass a length in that range"),
    (lambda: segment_masks.random(0, 0), ValueError, "random: length must be from 1 to 1073741824 tokens, got 0; pass a length in that range"),
    (lambda: segment_masks.random(9, 0, text=(5, 2)), ValueError, "random: text must be (low, high) with 1 <= low <= high, got (5, 2); swap or raise them"),
    (lambda: segment_masks.random(9, 0, image=3), TypeError, "random: image must be (low, high), got 3; pass two integers"),
    (lambda: segment_masks.random(9, 0, noise=float("nan")), ValueError, "random: noise must be a probability from 0 to 1, got nan; pass a share of the images"),
    (lambda: segment_masks.random(9, 0, documents=10), ValueError, "random: documents must be from 1 to length=9, got 10; leave at least a token for each"),
    (lambda: constructors.ranges([(0, 1, 0)], 4), ValueError, "ranges: rectangles[0] must be (q_start, q_stop, k_start, k_stop), got (0, 1, 0); give four numbers"),
    (lambda: constructors.ranges([(0, 1, 0, 1), (3, 2, 0, 1)], 4), ValueError, "ranges: rectangles[1] must satisfy 0 <= q_start <= q_stop <= 4 and 0 <= k_start <= k_stop <= 4, got (3, 2, 0, 1); clip or drop it"),
    (lambda: constructors.ranges([(0, 1, 0, 9)], 4, 8), ValueError, "ranges: rectangles[0] must satisfy 0 <= q_start <= q_stop <= 4 and 0 <= k_start <= k_stop <= 8, got (0, 1, 0, 9); clip or drop it"),
    (lambda: constructors.ranges([7], 4), ValueError, "ranges: rectangles[0] must be (q_start, q_stop, k_start, k_stop), got 7; give four numbers"),
    (lambda: constructors.intervals(np.array([2]), np.array([1]), 4), ValueError, "intervals: start must not exceed stop, got [2, 1) for interval 0 of key 0; swap them"),
    (lambda: constructors.intervals(np.array([0]), np.array([5]), 4), ValueError, "intervals: stop must be from 0 to q_len=4, got 5 for interval 0 of key 0; clip it"),
    (lambda: constructors.intervals(np.array([0, -1]), np.array([1, 1]), 4), ValueError, "intervals: start must be from 0 to q_len=4, got -1 for interval 0 of key 1; clip it"),
    (lambda: constructors.intervals(np.array([[0, 0], [2, 1]]), np.array([[1, 2], [3, 4]]), 4), ValueError, "intervals: the intervals of one key must not overlap, those of key 1 do: start [0, 1], stop [2, 4]; merge them"),
    (lambda: constructors.intervals(np.array([0]), np.array([1, 2]), 4), ValueError, "intervals: start and stop must have one shape, got (1, 1) and (1, 2); pass both (n, k_len)"),
    (lambda: constructors.intervals(np.array([0.0]), np.array([1]), 4), TypeError, "intervals: start must be a NumPy array of integers, got float64; convert it"),
    (lambda: constructors.intervals(np.array([0]), [1], 4), TypeError, "intervals: stop must be a NumPy array of integers, got list; convert it"),
    (lambda: constructors.intervals(np.zeros((0, 3), int), np.zeros((0, 3), int), 4), ValueError, "intervals: start must have shape (n, k_len) or (k_len,), neither 0, got (0, 3); reshape it"),
    (lambda: constructors.from_dense([[True]]), TypeError, "from_dense: dense must be a NumPy array, got list; convert it"),
    (lambda: constructors.from_dense(np.ones((2, 2))), TypeError, "from_dense: dense must be boolean, got float64; pass dense == 0 of a mask that is added to scores, dense != 0 where 0 hides a key"),
    (lambda: constructors.from_dense(np.ones((1, 2, 2), bool)), ValueError, "from_dense: dense must have shape (q_len, k_len), neither 0, got (1, 2, 2); index or reshape it"),
    (lambda: constructors.from_predicate(3, 4), TypeError, "from_predicate: fn must be a function of (q, k), got int; pass a function"),
    (lambda: constructors.from_predicate(lambda q, k: q - k, 4), TypeError, "from_predicate: fn must return booleans, got int64; compare inside it"),
    (lambda: constructors.from_predicate(lambda q, k: np.ones(3, bool), 4), ValueError, "from_predicate: fn must return an array of two axes that broadcasts to (4, 4), or one boolean, got shape (3,); combine q (rows, 1) and k (1, keys) as they come"),
    (lambda: constructors.full(2, 3) & constructors.full(3, 2), ValueError, "mask & mask: both must have one shape (q_len, k_len), got (2, 3) and (3, 2); slice the larger one"),
    (lambda: constructors.full(2, 3) | constructors.full(2), ValueError, "mask | mask: both must have one shape (q_len, k_len), got (2, 3) and (2, 2); slice the larger one"),
    (lambda: constructors.full(2) & True, TypeError, "mask & mask: both must be masks, got bool; a boolean array becomes one with from_dense"),
    (lambda: bool(constructors.full(2)), ValueError, "the truth value of a mask is not defined; combine masks by &, | and ~, not and, or, not"),
    (lambda: constructors.full(4).rows(2, 2), ValueError, "rows: start and stop must satisfy 0 <= start < stop <= 4, got 2 and 2; name rows of the mask"),
    (lambda: constructors.full(4).rows(0, 5), ValueError, "rows: start and stop must satisfy 0 <= start < stop <= 4, got 0 and 5; name rows of the mask"),
    (lambda: constructors.full(4).rows(0, 1, 5), ValueError, "rows: keys must be from 1 to 4, got 5; build the mask with more keys"),
    (lambda: constructors.full(4)[1:2], TypeError, "mask[...]: expected two slices, as in mask[a:b, c:d], got slice(1, 2, None); write them out"),
    (lambda: constructors.full(4)[::2, :], ValueError, "mask[...]: slices must have step 1, got steps 2 and 1; drop the steps"),
    (lambda: constructors.full(4)[3:1, :], ValueError, "mask[...]: slices must hold at least one row and one key of (4, 4), got rows [3, 1) and keys [0, 4); widen them"),
    (lambda: constructors.full(4).blocks(1.5, 32), ValueError, "blocks: br (query rows) must be a positive whole number, got 1.5; round it up"),
    (lambda: constructors.full(4).blocks(8, 48), ValueError, "blocks: bc (keys) must be a positive multiple of 32, got 48; round it up"),
    (lambda: constructors.full(4).blocks(0, 32), ValueError, "blocks: br (query rows) must be a positive whole number, got 0; round it up"),
    (lambda: constructors.full(4).blocks(8, "32"), ValueError, "blocks: bc (keys) must be a positive multiple of 32, got '32'; round it up"),
    (lambda: constructors.full(4).dense(0, 5, 0, 1), ValueError, "dense: rows [0, 5) and keys [0, 1) must lie within the mask's 4 rows and 4 keys; clip them"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_CALLS)))
def test_bad_call(number: int) -> None:
    call, kind, message = BAD_CALLS[number]
    assert error_of(call) == (kind, message)


def test_segments_takes_documents_by_position_and_by_name() -> None:
    given = [[("text", 3)], [("image", 2), ("noise", 4)]]
    assert segment_masks.segments(documents=given) == segment_masks.segments(given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'layout'"):
        segment_masks.segments(layout=given)  # type: ignore[call-arg]
