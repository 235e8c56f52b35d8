"""Mask.extend: appended masks equal those built whole, and what cannot be continued says so."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import pickle
from collections.abc import Callable

import mask_cases as cases
import numpy as np
import pytest

import omnicupy as oc
from omnicupy import presets
from omnicupy.masks import constructors, segment_masks
from omnicupy.masks import segments as segment_lists

KINDS = ("text", "image", "noise")
Document = list[tuple[str, int]]


def _sample(rng: np.random.Generator) -> Document:
    return [(str(rng.choice(KINDS)), cases.upto(rng, 12, 1)) for _ in range(cases.upto(rng, 4, 1))]


@pytest.mark.parametrize("seed", range(200))
def test_segments_appended_piece_by_piece_are_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = [_sample(rng)]
    mask = segment_masks.segments(whole)
    for _ in range(cases.upto(rng, 4, 1)):
        more, new = [_sample(rng) for _ in range(cases.upto(rng, 3, 1))], bool(rng.random() < 0.4)
        if new:
            whole += more
        else:
            whole = [*whole[:-1], whole[-1] + more[0], *more[1:]]
        before = mask.to_dense()
        longer = mask.extend(more[0] if len(more) == 1 else more, new_document=new)
        np.testing.assert_array_equal(mask.to_dense(), before)
        mask = longer
        assert mask == segment_masks.segments(whole)
        np.testing.assert_array_equal(mask.to_dense(), cases.oracle.segments(whole))
        np.testing.assert_array_equal(mask.to_dense(), cases.oracle.described(mask.segments))


@pytest.mark.parametrize("seed", range(200))
def test_rows_appended_to_any_mask_are_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = cases.random_case(rng, cases.upto(rng, 90, 2), cases.upto(rng, 90, 2))
    q_len, k_len = drawn.mask.shape
    row, key = cases.upto(rng, q_len - 1, 1), cases.upto(rng, k_len, 1)
    dense = drawn.dense.copy()
    dense[:row, key:] = False  # the old rows do not see the new keys
    whole = constructors.from_dense(dense)
    grown = whole.rows(0, row, key).extend(whole.rows(row, q_len))
    assert grown == whole, drawn.label
    np.testing.assert_array_equal(grown.to_dense(), dense)
    if whole.intervals is not None:
        assert grown.intervals is not None
        assert len(grown.intervals[0]) == len(whole.intervals[0])  # merged where they touch


def test_a_window_grows_by_its_rows() -> None:
    mask = constructors.sliding_window(50, left=9)
    for length in range(51, 60):
        mask = mask.extend(constructors.sliding_window(1, length, left=9))
    assert mask == constructors.sliding_window(59, left=9)
    assert mask.diagonal == 0
    assert np.array_equal(
        mask.blocks(32, 32).kinds, constructors.sliding_window(59, left=9).blocks(32, 32).kinds
    )


def test_a_draft_tree_follows_its_context() -> None:
    parents = [-1, 0, 0, 1, 1, 2, 5]
    grown = constructors.causal(30).extend(presets.tree(30, parents))
    np.testing.assert_array_equal(grown.to_dense()[:30, :30], constructors.causal(30).to_dense())
    np.testing.assert_array_equal(grown.to_dense()[30:], presets.tree(30, parents).to_dense())
    assert not grown.to_dense()[:30, 30:].any()


@pytest.mark.parametrize(
    "mask",
    [
        constructors.causal(10),
        segment_masks.documents([4, 6]),
        presets.transfusion(10, [(2, 5)]),
        presets.bagel([10], [4, 6], ["causal", "full"]),
        presets.packed([3, 7], causal=False),
        segment_masks.segments([("text", 5), ("image", 9)])[:10, :10],
    ],
    ids=lambda mask: repr(mask),
)
def test_what_is_made_of_segments_goes_on(mask: oc.Mask) -> None:
    longer = mask.extend([("noise", 3), ("text", 2)])
    dense = np.zeros((15, 15), np.bool_)
    dense[:10, :10] = mask.to_dense()
    dense[10:, :10] = mask.to_dense()[9]  # no noise at its end: new tokens see what the last one sees
    dense[13:, 10:13] = False
    dense[10:13, 10:13] = True
    dense[13:, 13:] = np.tri(2, dtype=np.bool_)
    np.testing.assert_array_equal(longer.to_dense(), dense)


def test_what_a_copy_and_a_longer_mask_are_made_of_is_known() -> None:
    mask = pickle.loads(pickle.dumps(segment_masks.segments([("text", 3), ("image", 4)])))
    assert mask.extend([("text", 2)]).extend([("text", 1)]) == segment_masks.segments(
        [("text", 3), ("image", 4), ("text", 3)]
    )


def test_text_grows_by_tokens_without_a_list_of_them() -> None:
    mask = segment_masks.segments([[("image", 3)], [("text", 2)]])
    for _ in range(5):
        mask = mask.extend([("text", 1)])
    assert mask.segments == (("image", 0, 3, 0), ("text", 3, 10, 1))
    assert mask.extend([("text", 1)], new_document=True).segments[-1] == ("text", 10, 11, 2)


def test_no_pair_is_looked_at() -> None:
    """A mask of 2**28 tokens has more pairs than any machine holds; two intervals are what is stored."""
    length = 1 << 20
    grown = constructors.causal(length).extend([("text", length), ("image", 7)])
    assert grown.pairs == length * (2 * length + 1) + 7 * (2 * length + 7)
    rows = constructors.sliding_window(3, length + 3, left=length)
    assert (
        constructors.sliding_window(length, left=length).extend(rows).pairs
        == (length + 3) * (length + 4) // 2 - 3
    )


MANY = segment_masks.documents([1] * (segment_lists.MAX_DRAWN + 1))
ONLY = "extend: segments continue only a mask made of at most 2048 segments and nothing else, got "
INSTEAD = "; append a mask of the new rows against all keys instead"
TEXT = [("text", 1)]
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: constructors.sliding_window(9, left=2).extend(TEXT), ValueError, f"{ONLY}<Mask 9x9 pairs=24 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: constructors.sliding_window(9, left=9).extend(TEXT), ValueError, f"{ONLY}<Mask 9x9 pairs=45 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: presets.gemma3(9, [(2, 4)], window=64).extend(TEXT), ValueError, f"{ONLY}<Mask 9x9 pairs=51 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: presets.streaming(9, 1, 64).extend(TEXT), ValueError, f"{ONLY}<Mask 9x9 pairs=45 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: constructors.causal(9).extend(TEXT, new_document="no"), TypeError, "extend: new_document must be True or False, got str 'no'; pass a bool"),  # type: ignore[arg-type]
    (lambda: constructors.causal(3, 9).extend(TEXT), ValueError, f"{ONLY}<Mask 3x9 pairs=24 intervals=1 diagonal=6>{INSTEAD}"),
    (lambda: (segment_masks.segments([("text", 2), ("image", 2)]) & constructors.sink(4, 2)).extend(TEXT), ValueError, f"{ONLY}<Mask 4x4 pairs=7 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: segment_masks.segments([("text", 5), ("image", 9)])[2:9, 1:8].extend(TEXT), ValueError, f"{ONLY}<Mask 7x7 pairs=37 intervals=1 diagonal=1>{INSTEAD}"),
    (lambda: MANY.extend(TEXT), ValueError, f"{ONLY}<Mask 2049x2049 pairs=2049 intervals=1 diagonal=0>{INSTEAD}"),
    (lambda: constructors.causal(9).extend([("text", -1)]), ValueError, "extend: document 0, segment 0: length must be at least 0 tokens, got -1; pass a length in tokens"),
    (lambda: constructors.causal(9).extend([("video", 3)]), ValueError, "extend: document 0, segment 0: kind must be one of text, image, noise, got 'video'; name one of these"),
    (lambda: constructors.causal(9).extend(3), TypeError, 'extend: added must be a list of (kind, length) or a list of such lists, got int; write for example [("text", 120), ("image", 729)]'),
    (lambda: constructors.causal(9).extend([("text", 2**30)]), ValueError, "segments: expected at most 1073741824 tokens, got 1073741833; split it into several masks"),
    (lambda: constructors.causal(9).extend(constructors.full(2, 8)), ValueError, "extend: a mask of new rows must have the 9 keys of this mask or more, got shape (2, 8); build it against all keys, old ones first"),
    (lambda: constructors.causal(9).extend(constructors.full(2, 9), new_document=True), ValueError, "extend: new_document goes with segments, got it with a mask; the mask's rows say what they see"),
    (lambda: constructors.full(2**30, 1).extend(constructors.full(1)), ValueError, "extend: the rows of both masks must be from 1 to 1073741824 tokens, got 1073741825; pass a length in that range"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_calls_say_what_to_do(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert (caught.type, str(caught.value)) == (kind, message)


def test_one_more_segment_than_is_described_still_extends_by_rows() -> None:
    whole = segment_masks.documents([1] * (segment_lists.MAX_DRAWN + 2))
    assert MANY.extend(whole.rows(len(MANY.to_dense()), whole.shape[0])) == whole


def test_what_only_looks_causal_is_not_continued_as_text() -> None:
    """More segments than are described: a noise token at the end sees and is seen as text, but not by further rows."""
    longest = [("text", 1)] * segment_lists.MAX_DRAWN + [("noise", 1)]
    last, first = segment_masks.segments(longest), segment_masks.segments(longest[::-1])[:1, :1]
    grown = constructors.causal(segment_lists.MAX_DRAWN).extend([("text", 1)] * segment_lists.MAX_DRAWN)
    for mask in (last, first, last.rows(0, 9, 9), grown.extend([])):
        assert mask == constructors.causal(mask.shape[0])
    for mask in (last, first):
        with pytest.raises(
            ValueError, match=r"^extend: segments continue only a mask made of at most 2048 segments"
        ):
            mask.extend([("text", 2)])
    few = segment_masks.segments([("text", 3), ("noise", 1)])
    assert few.extend(TEXT).to_dense()[4].tolist() == [True, True, True, False, True]
