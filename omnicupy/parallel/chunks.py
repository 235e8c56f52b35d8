"""Chunks of rows and their work: what assignments weigh."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from omnicupy.parallel.line import Line, Part
from omnicupy.parallel.runs import Real, Whole, sums_before


@dataclass(frozen=True)
class Chunks:
    """Chunks of rows, document by document. first, stop: their tokens.  work: of each.

    ends: places of the chunks where a document begins, and their number.
    """

    first: Whole
    stop: Whole
    work: Real
    ends: Whole

    @staticmethod
    def of(edges: Whole, work: Real, bounds: Whole) -> Chunks:
        """edges, work: of all chunks.  bounds: of the documents, each of which is an edge."""
        return Chunks(edges[:-1], edges[1:], work, np.searchsorted(edges, bounds))

    @cached_property
    def before(self) -> tuple[Whole, Real]:
        """Tokens and work before each chunk, and of all."""
        return sums_before(self.stop - self.first), sums_before(self.work)

    @cached_property
    def amounts(self) -> Real:
        """Tokens and work of each document, (documents, 2)."""
        found: Real = np.array([one[self.ends] for one in self.before])
        return (found[:, 1:] - found[:, :-1]).T

    @cached_property
    def texts(self) -> list[Part]:
        """All documents."""
        bounds = self.before[0][self.ends].tolist()
        work = self.amounts[:, 1].tolist()
        return [Part([two], two[1] - two[0], one) for two, one in zip(pairwise(bounds), work, strict=True)]

    @cached_property
    def line(self) -> Line:
        """All chunks, which must be in their order."""
        edges = [*self.first.tolist(), int(self.stop[-1])]
        lengths = self.stop - self.first
        return Line(
            edges,
            lengths.tolist(),
            self.work.tolist(),
            self.before[1].tolist(),
            (self.work / lengths).tolist(),
        )

    def pick(self, order: Whole, ends: Whole) -> Chunks:
        """Other chunks or another order."""
        return Chunks(self.first[order], self.stop[order], self.work[order], ends)
