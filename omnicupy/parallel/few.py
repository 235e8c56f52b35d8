"""Few documents to ranks, as lists; `many` does the same with arrays."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

import numpy as np

from omnicupy.parallel.ends import Run, runs_of_ranks
from omnicupy.parallel.line import Ranges, Text
from omnicupy.parallel.owners import Owners

Dealt = list[Run]  # pieces of documents


def taken(texts: list[Text], documents: list[int], shares: list[int], names: list[range]) -> Dealt:
    """Each rank's run from the dense end and from the light end of its node's documents: its share of tokens, and of
    what work is left. documents: of each node, one node's behind the other's.  shares: of all ranks.  names: of each
    node's ranks.
    """
    ends = [0, *accumulate(documents)]
    order, turned, lengths, each = _order(texts, ends)
    edges, work = [0, *accumulate(lengths)], np.array([0.0, *accumulate(each)])
    begins = [0, *accumulate([texts[at].part.tokens for at in order])]
    line = np.array(edges, np.float64), work
    runs = runs_of_ranks(edges, line, [begins[end] for end in ends[1:]], shares, names)
    return _pieces([(texts[at].part.ranges, turned[at]) for at in order], runs)


def _order(texts: list[Text], ends: list[int]) -> tuple[list[int], list[bool], list[int], list[float]]:
    """Documents of each node by density, and which of them are turned: the dense end of each comes before its light
    end. Then tokens and work of all chunks in this order. ends: of the nodes' documents.
    """
    turned, thin = [], []
    for part, _, work in texts:
        half = len(work) // 2
        turned.append(half > 0 and sum(work[-half:]) > sum(work[:half]))
        thin.append(-part.total / part.tokens)
    order = [at for first, stop in pairwise(ends) for at in sorted(range(first, stop), key=thin.__getitem__)]
    lengths: list[int] = []
    each: list[float] = []
    for at in order:
        one = texts[at]
        lengths += one.lengths[::-1] if turned[at] else one.lengths
        each += one.work[::-1] if turned[at] else one.work
    return order, turned, lengths, each


def _pieces(line: list[tuple[Ranges, bool]], runs: list[Run]) -> Dealt:
    """The tokens of runs of the line. line: documents, and whether they are turned."""
    parts = [(*one, turned) for ranges, turned in line for one in (reversed(ranges) if turned else ranges)]
    begins = [0, *accumulate([stop - first for first, stop, _ in parts])]
    found = []
    for low, high, name in runs:
        at = bisect_right(begins, low) - 1
        while low < high:
            first, stop, turned = parts[at]
            skipped, kept = low - begins[at], min(high, begins[at + 1]) - low
            first = stop - skipped - kept if turned else first + skipped
            found.append((first, first + kept, name))
            low += kept
            at += 1
    return found


def joined(dealt: Dealt, ranks: int) -> Owners:
    """The owners of these pieces, which are all tokens."""
    dealt.sort()
    edges, owner = [], [-1]
    for first, _, name in dealt:
        if name != owner[-1]:
            edges.append(first)
            owner.append(name)
    edges.append(dealt[-1][1])
    return Owners(np.array(edges, np.int64), np.array(owner[1:], np.int64), ranks)
