"""Rules of rows with images against a mask of all pairs, and which requests one call serves. Neither torch nor vLLM."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.vllm.batch import Batch, Part
from omnicupy.vllm.images import rule_of, spans_of


def _all_pairs(mask: oc.Mask) -> NDArray[np.bool_]:
    return mask.dense(0, mask.shape[0], 0, mask.shape[1])


def _dense(
    begin: int, rows: int, images: list[tuple[int, int]], window: int | None, clamped: bool
) -> NDArray[np.bool_]:
    at, keys = np.arange(begin, begin + rows)[:, None], np.arange(begin + rows)[None]
    near = at - keys < (window or begin + rows + 1)
    mask = (keys <= at) & near
    for first, last in images:
        both = (at >= first) & (at <= last) & (keys >= first) & (keys <= last)
        mask |= both & near if clamped else both
    return mask


@st.composite
def _requests(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]], int | None, bool]:
    begin, rows = draw(st.integers(0, 30)), draw(st.integers(1, 40))
    window = draw(st.none() | st.integers(1, 50))
    images, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=5)):
        images.append((at + gap, at + gap + length - 1))
        at += gap + length
    return begin, rows, images, window, draw(st.booleans())


@given(_requests())
def test_a_rule_is_the_mask_of_all_pairs(
    request: tuple[int, int, list[tuple[int, int]], int | None, bool],
) -> None:
    begin, rows, images, window, clamped = request
    cut = any(a < begin <= b and min(b + 1, begin + rows) - a > (window or 99) for a, b in images)
    if cut and window and not clamped:
        with pytest.raises(oc.UnsupportedError, match="longer than the window"):
            spans_of(images, begin, rows, window)
        return
    spans = spans_of(images, begin, rows, None if clamped else window)
    rule = rule_of(rows, (spans,), window, clamped)
    found = _all_pairs(rule.mask(begin + rows, rows))
    assert (found == _dense(begin, rows, images, window, clamped)).all()
    if not spans:  # such rows are served as those of text
        assert (found == _all_pairs(oc.cached(window).mask(begin + rows, rows))).all()


@pytest.mark.parametrize(
    ("images", "begin", "rows", "window", "spans"),
    [
        ([], 0, 9, None, ()),
        ([(2, 5)], 0, 9, None, ((2, 6),)),
        ([(2, 5)], 6, 9, None, ()),  # all of it in the history
        ([(2, 5)], 3, 9, None, ((0, 3),)),  # begins there: a prefix that was kept
        ([(2, 5)], 0, 4, None, ((2, 4),)),  # the rest has no keys yet
        ([(2, 5)], 5, 9, None, ()),  # a single row, which sees all of it anyway
        ([(2, 5)], 5, 9, 4, ()),
        ([(4, 4)], 0, 9, None, ()),
        ([(6, 8), (1, 2)], 0, 9, None, ((1, 3), (6, 9))),
        ([(0, 8)], 0, 9, 3, ((0, 9),)),
    ],
)
def test_spans(
    images: list[tuple[int, int]],
    begin: int,
    rows: int,
    window: int | None,
    spans: tuple[tuple[int, int], ...],
) -> None:
    assert spans_of(images, begin, rows, window) == spans


def test_an_image_cut_by_a_chunk_and_longer_than_the_window_is_refused() -> None:
    with pytest.raises(oc.UnsupportedError, match=r"positions 2 to 9 .* window of 6 .* at 4; .*one step"):
        spans_of([(2, 9)], 4, 9, 6)
    assert spans_of([(2, 9)], 4, 9, 8) == ((0, 6),)


def _batch(counts: list[int], images: dict[int, list[tuple[int, int]]] | None, history: int = 0) -> Batch:
    starts = [0, *np.cumsum(counts).tolist()]
    keys = [count + history for count in counts]
    return Batch(starts[-1], None, None, None, starts, keys, images)


def _cuts(parts: tuple[Part, ...]) -> list[tuple[int, int, bool]]:
    return [(part.first, part.stop, part.images) for part in parts]


def test_requests_that_one_call_serves() -> None:
    image = [(3, 8)]
    batch = _batch([1, 1, 7, 12, 12, 12, 5, 0, 0], {3: image, 4: [(0, 5)], 6: [(90, 99)], 5: []})
    parts = batch.parts(None, False)
    assert _cuts(parts) == [(0, 2, False), (2, 3, False), (3, 5, True), (5, 7, False)]
    assert [(part.begin, part.rows, part.keys) for part in parts] == [
        (0, 1, 1),
        (2, 7, 7),
        (9, 12, 12),
        (33, 12, 12),
    ]
    assert batch.parts(None, False) is parts
    batch.mm_prefix_range = None  # what Gemma 4 does for its causal layers, once the metadata are made
    assert _cuts(batch.parts(None, False)) == [(0, 2, False), (2, 7, False)]


def test_equal_images_share_a_rule_in_every_step() -> None:
    one, other = (_batch([12, 12], {0: [(3, 8)], 1: [(3, 8)]}).parts(6, True) for _ in range(2))
    assert one[0].rule is other[0].rule
    assert isinstance(one[0].rule.tail, tuple)
    assert len(one[0].rule.tail) == 1


def test_decoding_ends_a_call_at_1024_requests() -> None:
    parts = _batch([1] * 2100, None, history=9).parts(None, False)
    assert _cuts(parts) == [(0, 1024, False), (1024, 2048, False), (2048, 2100, False)]


def test_prompts_of_unequal_lengths_do_not_pad_each_other_without_bound() -> None:
    parts = _batch([2] * 40 + [8000] + [2] * 40, None).parts(None, False)
    assert _cuts(parts) == [(0, 40, False), (40, 48, False), (48, 81, False)]


def test_a_step_without_rows_makes_no_call() -> None:
    assert _batch([0, 0], None).parts(None, False) == ()
