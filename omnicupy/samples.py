"""Masks of packed sequences: segments (text, image, noise), documents, and seeded random layouts of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from omnicupy.maskargs import MAX_LENGTH, integer
from omnicupy.maskargs import length as checked_length
from omnicupy.masks import Mask
from omnicupy.pairset import Segment

Sample = Sequence[tuple[str, int]]
TEXT, IMAGE, NOISE = KINDS = ("text", "image", "noise")
MAX_DRAWN = 2048  # segments that a mask describes; more are no picture, and cost more than the mask


def segments(layout: Sample | Sequence[Sample]) -> Mask:
    """Interleaved segments, one after the other on both axes; a list of samples packs them as documents.

    layout: [(kind, length), ...] is one sample, [[(kind, length), ...], ...] packs several. Lengths in
    tokens. Kinds: "text": causal inside; "image": bidirectional inside, visible to later tokens of its
    document; "noise": as image, but hidden from all tokens outside the segment. Every token sees the earlier
    tokens of its own document that are not hidden from it; documents never see each other. The mask is
    square, one interval per key.

    Raises TypeError or ValueError for anything else: an empty list, an unknown kind, a length below 1.
    """
    kinds: list[str] = []
    lengths: list[int] = []
    counts: list[int] = []
    for number, sample in enumerate(_documents(layout)):
        if not isinstance(sample, Sequence) or isinstance(sample, str):
            raise TypeError(
                f"segments: document {number} of layout: expected a list of (kind, length), got {sample!r}; "
                "write a list"
            )
        for place, segment in enumerate(sample):
            kind, tokens = _segment(segment, number, place)
            kinds.append(kind)
            lengths.append(tokens)
        counts.append(len(sample))
    return packed(kinds, lengths, counts)


def documents(lengths: Sequence[int], causal: bool = True) -> Mask:
    """Packed samples of these lengths, in tokens; each sees itself alone, causally or (causal=False) whole.

    Raises TypeError or ValueError for no documents or a length below 1.
    """
    checked = [checked_length("documents", f"lengths[{i}]", size) for i, size in enumerate(lengths)]
    if not checked:
        raise ValueError(
            "documents: lengths must hold at least one length, got none; pass the length of each document"
        )
    return packed([TEXT if causal else IMAGE] * len(checked), checked, [1] * len(checked))


def random(
    length: int,
    seed: int,
    *,
    text: tuple[int, int] = (32, 256),
    image: tuple[int, int] = (256, 1024),
    noise: float = 0.5,
    documents: int | None = None,
) -> Mask:
    """A random interleaved layout of `length` tokens, the same for the same arguments.

    Segments alternate text and image, their lengths uniform in the ranges `text` and `image` (both ends
    included, in tokens; the last segment of a document is cut to fit); an image is "noise" with probability
    `noise`. `documents` cuts the row at random places into that many packed samples (None: one). Uses
    numpy.random.default_rng(seed).

    Raises TypeError or ValueError for arguments out of range.
    """
    _check_random(length, text, image, noise, documents)
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(length - 1, documents - 1, replace=False) + 1) if documents else np.array([])
    kinds: list[str] = []
    lengths: list[int] = []
    counts: list[int] = []
    for first, stop in pairwise([0, *cuts.tolist(), length]):
        before, left = len(kinds), stop - first
        while left:
            is_text = (len(kinds) - before) % 2 == 0
            tokens = min(left, int(rng.integers(*(text if is_text else image), endpoint=True)))
            kinds.append(TEXT if is_text else NOISE if rng.random() < noise else IMAGE)
            lengths.append(tokens)
            left -= tokens
        counts.append(len(kinds) - before)
    return packed(kinds, lengths, counts)


def _check_random(
    length: int, text: tuple[int, int], image: tuple[int, int], noise: float, documents: int | None
) -> None:
    checked_length("random", "length", length)
    for name, bounds in (("text", text), ("image", image)):
        if not isinstance(bounds, Sequence) or len(bounds) != 2:
            raise TypeError(f"random: {name} must be (low, high), got {bounds!r}; pass two integers")
        low, high = (integer("random", f"{name}[{i}]", bound) for i, bound in enumerate(bounds))
        if not 1 <= low <= high:
            raise ValueError(
                f"random: {name} must be (low, high) with 1 <= low <= high, got {bounds}; swap or raise them"
            )
    if not 0 <= noise <= 1:
        raise ValueError(
            f"random: noise must be a probability from 0 to 1, got {noise}; pass a share of the images"
        )
    if documents is not None and not 1 <= integer("random", "documents", documents) <= length:
        raise ValueError(
            f"random: documents must be from 1 to length={length}, got {documents}; "
            "leave at least a token for each"
        )


def _documents(layout: Sample | Sequence[Sample]) -> Sequence[Sample]:
    """The samples of a layout; one sample is a list of one."""
    if isinstance(layout, str) or not isinstance(layout, Sequence):
        raise TypeError(
            f"segments: layout must be a list of (kind, length) or a list of such lists, got "
            f'{type(layout).__name__}; write for example [("text", 120), ("image", 729)]'
        )
    if not layout or any(isinstance(sample, Sequence) and not sample for sample in layout):
        raise ValueError(
            "segments: layout and each of its documents must hold at least one segment, got an empty list; "
            "drop it"
        )
    if isinstance(layout[0], Sequence) and isinstance(layout[0][0], str):
        return [cast("Sample", layout)]
    return cast("Sequence[Sample]", layout)


def _segment(segment: object, document: int, place: int) -> tuple[str, int]:
    """One checked (kind, length)."""
    if isinstance(segment, tuple) and len(segment) == 2:
        kind, tokens = segment
        if type(tokens) is int and tokens > 0 and kind in KINDS:
            return kind, tokens
    where = f"segments: document {document}, segment {place} of layout"
    if not isinstance(segment, Sequence) or isinstance(segment, str) or len(segment) != 2:
        raise TypeError(f"{where}: expected (kind, length), got {segment!r}; write a pair")
    kind, tokens = segment
    if kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}; name one of these")
    tokens = integer(where, "length", tokens)
    if tokens < 1:
        raise ValueError(f"{where}: length must be at least 1 token, got {tokens}; drop the segment")
    return kind, tokens


def packed(kinds: Sequence[str], lengths: Sequence[int], counts: Sequence[int]) -> Mask:
    """The mask of segments of these kinds and lengths, trusted; counts: segments of each document."""
    code = np.fromiter(map(KINDS.index, kinds), np.int8, len(kinds))
    return from_codes(code, np.array(lengths, np.int64), np.array(counts, np.int64))


def from_codes(code: NDArray[np.int8], sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> Mask:
    """`packed` with kinds as places in KINDS; the mask names its segments where they are few enough to draw."""
    stops = np.cumsum(sizes)
    total = int(stops[-1])
    if total > MAX_LENGTH:
        raise ValueError(
            f"layout: expected at most {MAX_LENGTH} tokens, got {total}; split it into several masks"
        )
    firsts = stops - sizes
    ends = np.repeat(stops[np.cumsum(counts) - 1], counts)
    # the first row that sees key k: k itself in text, the segment's first row elsewhere
    first_row = np.where(code == KINDS.index(TEXT), total, firsts).astype(np.int32)
    end_row = np.where(code == KINDS.index(NOISE), stops, ends).astype(np.int32)
    start = np.repeat(first_row, sizes)
    np.minimum(start, np.arange(total, dtype=np.int32), out=start)
    stop = np.repeat(end_row, sizes)
    described: tuple[Segment, ...] = ()
    if len(sizes) <= MAX_DRAWN:
        document = np.repeat(np.arange(len(counts)), counts)
        kinds = [KINDS[i] for i in code.tolist()]
        described = tuple(zip(kinds, firsts.tolist(), stops.tolist(), document.tolist(), strict=True))
    return Mask((total, total), intervals=(start[None], stop[None]), segments=described)
