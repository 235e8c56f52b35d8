"""Chunks as lists: what a plan asks of a few of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple, TypeAlias

Ranges: TypeAlias = list[tuple[int, int]]  # of tokens


class Part(NamedTuple):
    """Of a document. ranges: of its tokens, ascending.  tokens, total: of them, and their work."""

    ranges: Ranges
    tokens: int
    total: float


class Text(NamedTuple):
    """A part, and the tokens and the work of its chunks."""

    part: Part
    lengths: list[int]
    work: list[float]


class Line(NamedTuple):
    """All chunks as lists, which are faster than arrays for a few numbers each.

    edges: bounds of chunks.  lengths, work: of each.  before: the work before each, and of all.  density: work a token
    of each chunk.
    """

    edges: list[int]
    lengths: list[int]
    work: list[float]
    before: list[float]
    density: list[float]

    def most(self, ranges: Ranges) -> float:
        """The greatest work a token of these."""
        edges, density, most = self.edges, self.density, 0.0
        for first, stop in ranges:
            low = bisect_right(edges, first) - 1
            most = max(most, *density[low : bisect_left(edges, stop, low)])
        return most

    def work_of(self, ranges: Ranges) -> float:
        """The work of these tokens."""
        edges, before, density = self.edges, self.before, self.density
        work = 0.0
        for first, stop in ranges:
            low = bisect_right(edges, first) - 1
            high = bisect_left(edges, stop, low)
            cut = density[low] * (first - edges[low]) + density[high - 1] * (edges[high] - stop)
            work += before[high] - before[low] - cut
        return work

    def text(self, part: Part) -> Text:
        """The tokens of a document by chunks, the first and the last of which may be cut."""
        edges = self.edges
        lengths: list[int] = []
        work: list[float] = []
        for first, stop in part.ranges:
            low = bisect_right(edges, first) - 1
            high = bisect_left(edges, stop, low)
            behind = len(lengths) - low
            lengths += self.lengths[low:high]
            work += self.work[low:high]
            if edges[low] == first and edges[high] == stop:
                continue
            for at in (low, high - 1):
                kept = min(stop, edges[at + 1]) - max(first, edges[at])
                if kept < self.lengths[at]:
                    lengths[behind + at] = kept
                    work[behind + at] = self.work[at] * (kept / self.lengths[at])
        return Text(part, lengths, work)
