"""Masks of packed sequences: segments (text, image, noise), documents, and seeded random ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import segments as segment_lists
from omnicupy.masks.arguments import count, flag, integer, plain, tokens
from omnicupy.masks.arguments import length as checked_length
from omnicupy.masks.mask import Mask
from omnicupy.masks.segments import IMAGE, NOISE, TEXT, Document, Segments


def segments(documents: Document | Sequence[Document]) -> Mask:
    """Interleaved segments, one after the other on both axes; a list of such lists packs them as documents.

    documents: [(kind, length), ...] is one document, [[(kind, length), ...], ...] packs several. Lengths in
    tokens. Kinds: "text": causal inside; "image": bidirectional inside, visible to later tokens of its
    document; "noise": as image, but hidden from all tokens outside the segment. Every token sees the earlier
    tokens of its own document that are not hidden from it; documents never see each other. The mask is
    square, one interval per key. Segments of length 0 and documents without tokens are skipped.

    Raises TypeError or ValueError for anything else: no token at all, an unknown kind, a length below 0.
    """
    found = segment_lists.checked("segments", "documents", documents)
    if not len(found.kinds):
        raise ValueError(
            "segments: documents must hold at least one token, got none; pass the segments of a sequence"
        )
    return _mask(found._replace(counts=found.counts[found.counts > 0]))


def documents(lengths: Sequence[int] | NDArray[np.integer], causal: bool = True) -> Mask:
    """Packed documents of these lengths, in tokens; each sees itself alone, causally or (causal=False) whole.

    lengths: a list, or an integer array (n,). Those of length 0 are skipped. Raises TypeError or ValueError for other
    types, lengths below 0 and no token at all.
    """
    kind = TEXT if flag("documents", "causal", causal) else IMAGE
    given = plain("documents", "lengths", lengths)
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise ValueError(f"documents: lengths must have one axis, got shape {given.shape}; reshape it")
    sizes = [tokens("documents", f"lengths[{i}]", size) for i, size in enumerate(given)]
    kept = [size for size in sizes if size]
    if not kept:
        raise ValueError(
            f"documents: lengths must hold at least one token, got {len(sizes)} documents without any; pass the "
            "length of each document"
        )
    return packed([kind] * len(kept), kept, [1] * len(kept))


def random(
    length: int,
    seed: int,
    *,
    text: tuple[int, int] = (32, 256),
    image: tuple[int, int] = (256, 1024),
    noise: float = 0.5,
    documents: int | None = None,
) -> Mask:
    """A random interleaved sequence of `length` tokens, the same for the same arguments.

    Segments alternate text and image, their lengths uniform in the ranges `text` and `image` (both ends
    included, in tokens; the last segment of a document is cut to fit); an image is "noise" with probability
    `noise`. `documents` cuts the row at random places into that many packed documents (None: one). Uses
    numpy.random.default_rng(seed).

    Raises TypeError or ValueError for arguments out of range.
    """
    _check_random(length, text, image, noise, documents)
    seed = count("random", "seed", seed)
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
    if isinstance(noise, bool | np.bool_) or not isinstance(noise, Real):
        raise TypeError(
            f"random: noise must be a number, got {type(noise).__name__} {noise!r}; pass a share of the images"
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


def packed(kinds: Sequence[str], lengths: Sequence[int], counts: Sequence[int]) -> Mask:
    """The mask of segments of these kinds and lengths, trusted; counts: segments of each document."""
    return _mask(segment_lists.coded(kinds, lengths, counts))


def from_codes(code: NDArray[np.int8], sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> Mask:
    """`packed` with kinds as places in KINDS; the mask names its segments where they are few enough to draw."""
    return _mask(Segments(code, sizes, counts))


def _mask(listed: Segments) -> Mask:
    pairs, described = segment_lists.spans(listed)
    total = pairs[0].shape[1]
    return Mask((total, total), intervals=pairs, segments=described, growing=bool(described))
