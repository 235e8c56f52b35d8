"""Packed documents as segments (text, image, noise): their checked lists, their codes, the intervals they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import MAX_LENGTH, integer
from omnicupy.masks.intervals import Intervals
from omnicupy.masks.pairs import Segment

Document: TypeAlias = Sequence[tuple[str, int]]
TEXT, IMAGE, NOISE = KINDS = ("text", "image", "noise")
MAX_DRAWN = 2048  # segments that a mask describes; more are no picture, and cost more than the mask


class Segments(NamedTuple):
    """Segments one after the other. kinds: places in KINDS, int8 (s,).  sizes: tokens of each, int64 (s,).
    counts: segments of each document, int64 (d,).
    """

    kinds: NDArray[np.int8]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens of all segments."""
        return int(self.sizes.sum())


def checked(where: str, name: str, given: object) -> Segments:
    """[(kind, length), ...] or a list of such lists, as `segments` takes it; where, name: the caller, its argument.

    Segments of length 0 are left out, and so are documents without others; but for the first one, since that
    may continue one: it then has a count of 0. Raises TypeError or ValueError for anything else: an unknown
    kind, a length below 0.
    """
    kinds: list[str] = []
    lengths: list[int] = []
    counts: list[int] = []
    for number, document in enumerate(_documents(where, name, given)):
        if not isinstance(document, Sequence) or isinstance(document, str):
            raise TypeError(
                f"{where}: document {number}: expected a list of (kind, length), got {document!r}; "
                "write a list"
            )
        before = len(kinds)
        for place, segment in enumerate(document):
            kind, tokens = _segment(where, segment, number, place)
            if tokens:
                kinds.append(kind)
                lengths.append(tokens)
        if len(kinds) > before or not counts:
            counts.append(len(kinds) - before)
    return coded(kinds, lengths, counts)


def coded(kinds: Sequence[str], lengths: Sequence[int], counts: Sequence[int]) -> Segments:
    """Segments of these kinds and lengths, trusted; counts: segments of each document."""
    codes = np.fromiter(map(KINDS.index, kinds), np.int8, len(kinds))
    return Segments(codes, np.array(lengths, np.int64), np.array(counts, np.int64))


def of_segments(described: Sequence[Segment]) -> Segments:
    """The segments that a mask describes; at least one."""
    kinds, firsts, stops, documents = zip(*described, strict=True)
    counts = np.unique(documents, return_counts=True)[1]
    return Segments(coded(kinds, [], []).kinds, np.subtract(stops, firsts), counts)


def joined(first: Segments, then: Segments, new_document: bool) -> Segments:
    """`then` after `first`; its first document, which may be empty, goes on with the last document, unless
    `new_document`.
    """
    kinds = np.concatenate([first.kinds, then.kinds])
    sizes = np.concatenate([first.sizes, then.sizes])
    counts = np.concatenate([first.counts, then.counts])
    if new_document or not then.counts[0]:
        return Segments(kinds, sizes, counts[counts > 0])
    last, place = len(first.counts) - 1, len(first.kinds)
    counts[last] += counts[last + 1]
    counts = np.delete(counts, last + 1)
    if kinds[place - 1] == kinds[place] == KINDS.index(TEXT):  # the same pairs, and text grows token by token
        sizes[place - 1] += sizes[place]
        counts[last] -= 1
        kinds, sizes = np.delete(kinds, place), np.delete(sizes, place)
    return Segments(kinds, sizes, counts)


def spans(segments: Segments) -> tuple[Intervals, tuple[Segment, ...]]:
    """One interval per key, int32 (1, tokens), and the segments where they are few enough to draw."""
    kinds, sizes, counts = segments
    stops = np.cumsum(sizes)
    total = int(stops[-1])
    if total > MAX_LENGTH:
        raise ValueError(
            f"segments: expected at most {MAX_LENGTH} tokens, got {total}; split it into several masks"
        )
    firsts = stops - sizes
    ends = np.repeat(stops[np.cumsum(counts) - 1], counts)
    # the first row that sees key k: k itself in text, the segment's first row elsewhere
    first_row = np.where(kinds == KINDS.index(TEXT), total, firsts).astype(np.int32)
    end_row = np.where(kinds == KINDS.index(NOISE), stops, ends).astype(np.int32)
    start = np.repeat(first_row, sizes)
    np.minimum(start, np.arange(total, dtype=np.int32), out=start)
    stop = np.repeat(end_row, sizes)
    described: tuple[Segment, ...] = ()
    if len(sizes) <= MAX_DRAWN:
        document = np.repeat(np.arange(len(counts)), counts)
        names = [KINDS[i] for i in kinds.tolist()]
        described = tuple(zip(names, firsts.tolist(), stops.tolist(), document.tolist(), strict=True))
    return (start[None], stop[None]), described


def _documents(where: str, name: str, given: object) -> Sequence[Document]:
    """A list of documents; one document becomes a list of one."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"{where}: {name} must be a list of (kind, length) or a list of such lists, got "
            f'{type(given).__name__}; write for example [("text", 120), ("image", 729)]'
        )
    some = next((one for one in given if not isinstance(one, Sequence) or len(one)), None)
    if isinstance(some, Sequence) and not isinstance(some, str) and isinstance(some[0], str):
        return [cast("Document", given)]
    return cast("Sequence[Document]", given)


def _segment(caller: str, segment: object, document: int, place: int) -> tuple[str, int]:
    """One checked (kind, length)."""
    if isinstance(segment, tuple) and len(segment) == 2:
        kind, tokens = segment
        if type(tokens) is int and 0 <= tokens <= MAX_LENGTH and isinstance(kind, str) and kind in KINDS:
            return kind, tokens
    where = f"{caller}: document {document}, segment {place}"
    if not isinstance(segment, Sequence) or isinstance(segment, str) or len(segment) != 2:
        raise TypeError(f"{where}: expected (kind, length), got {segment!r}; write a pair")
    kind, tokens = segment
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}; name one of these")
    tokens = integer(where, "length", tokens)
    if tokens < 0:
        raise ValueError(f"{where}: length must be at least 0 tokens, got {tokens}; pass a length in tokens")
    if tokens > MAX_LENGTH:
        raise ValueError(
            f"{where}: length must be at most {MAX_LENGTH} tokens, got {tokens}; split it into several masks"
        )
    return kind, tokens
