"""Owners: which rank holds which tokens, as runs of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.parallel.runs import Whole, offsets_within, spread, sums_before

FEW = 16  # tokens a place, from which on places are faster looked up one by one


@dataclass(frozen=True, eq=False)
class Owners:
    """Run i is the tokens [edges[i], edges[i + 1]) and belongs to rank owner[i]; neighbours belong to different ranks.

    edges: int64 (runs + 1,), from 0 to the number of tokens.  owner: int64 (runs,).
    """

    edges: Whole
    owner: Whole
    ranks: int

    @staticmethod
    def of_chunks(edges: Whole, owner: Whole, ranks: int) -> Owners:
        """Chunks and their owners, those side by side of one owner joined."""
        kept = np.ones(len(edges), np.bool_)
        np.not_equal(owner[1:], owner[:-1], out=kept[1:-1])
        return Owners(edges[kept], owner[kept[:-1]], ranks)

    @staticmethod
    def of_tokens(owner: NDArray[np.integer], ranks: int) -> Owners:
        """The owner of each token."""
        first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        return Owners(np.append(first, len(owner)).astype(np.int64), owner[first].astype(np.int64), ranks)

    @property
    def tokens(self) -> int:
        """Tokens of all ranks."""
        return int(self.edges[-1])

    @cached_property
    def counts(self) -> Whole:
        """Tokens of each rank, (ranks,)."""
        found: Whole = np.bincount(self.owner, np.diff(self.edges), self.ranks).astype(np.int64)
        return found

    def of(self, rank: int) -> Whole:
        """The tokens of a rank, ascending."""
        mine = np.flatnonzero(self.owner == rank)
        return spread(self.edges[mine], self.edges[mine + 1])

    def at(self, tokens: Whole) -> Whole:
        """The owner of each of these tokens."""
        return np.take(self.owner, np.searchsorted(self.edges, tokens, "right") - 1)

    def before(self, rank: int) -> NDArray[np.int32]:
        """How many tokens of the rank lie before each place, (tokens + 1,)."""
        steps = np.zeros(self.tokens + 1, np.int32)
        mine = np.repeat(self.owner == rank, np.diff(self.edges))
        np.cumsum(mine, out=steps[1:])
        return steps

    def below(self, rank: int, places: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
        """How many tokens of the rank lie before each place, of each of these arrays."""
        if FEW * sum(one.size for one in places) > self.tokens:
            before = self.before(rank)
            return [before.take(one) for one in places]
        held = self.sums_of(rank, self.edges)
        return [np.interp(one, self.edges, held).astype(np.int32) for one in places]

    def sums_of(self, rank: int, sums: NDArray[Any]) -> NDArray[Any]:
        """What the rank has before each run of all ranks, and in all. sums: the same of all ranks, (runs + 1,), as
        `edges` are of tokens.
        """
        return sums_before(np.where(self.owner == rank, sums[1:] - sums[:-1], 0))

    @cached_property
    def offsets(self) -> Whole:
        """Where each run begins in its owner's shard, (runs,)."""
        return offsets_within(self.owner, np.diff(self.edges))
