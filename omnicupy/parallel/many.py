"""Many documents to ranks, as arrays; `few` does the same with lists."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.ends import runs_of_ranks
from omnicupy.parallel.line import Part
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Whole, spread, sums_before

Dealt = tuple[Whole, Whole, Whole]  # first and stop tokens of pieces of chunks, and their ranks


def dealt(chunks: Chunks, held: list[list[Part]], shares: list[int], names: list[range]) -> Dealt:
    """The chunks of each node to its ranks."""
    texts = [part for parts in held for part in parts]
    ranges = [(*one, text) for text, part in enumerate(texts) for one in part.ranges]
    first, stop, text = np.array(ranges).T
    begin = chunks.first.searchsorted(first, "right") - 1
    count = chunks.first.searchsorted(stop) - begin
    at = spread(begin, begin + count)
    low, high = chunks.first[at], chunks.stop[at]
    lengths = high - low
    low, high = np.maximum(low, first.repeat(count)), np.minimum(high, stop.repeat(count))
    ends = sums_before(np.bincount(text, count).astype(np.int64))
    parts = Chunks(low, high, chunks.work[at] * ((high - low) / lengths), ends)
    return taken(parts, [len(parts) for parts in held], shares, names)


def taken(chunks: Chunks, documents: list[int], shares: list[int], names: list[range]) -> Dealt:
    """Each rank's run from the dense end and from the light end of its node's documents: its share of tokens, and of
    what work is left. documents: of each node, one node's behind the other's.  shares: of all ranks.  names: of each
    node's ranks.
    """
    line, turned = _line(chunks, np.arange(len(documents)).repeat(documents))
    tokens, work = line.before
    stops = tokens[line.ends[list(accumulate(documents))]].tolist()
    runs = runs_of_ranks(tokens.tolist(), (tokens.astype(np.float64), work), stops, shares, names)
    return _pieces(line, turned, tokens, np.array(runs))


def _line(chunks: Chunks, nodes: Whole) -> tuple[Chunks, np.ndarray]:
    """Documents by node and density, the dense end of each before its light end; and which chunks are turned so.
    nodes: of the documents.
    """
    first, stop = chunks.ends[:-1], chunks.ends[1:]
    work, amounts = chunks.before[1], chunks.amounts
    half = (stop - first) // 2
    turned = work[stop] - work[stop - half] > work[first + half] - work[first]
    density = amounts[:, 1] / amounts[:, 0]
    order = np.lexsort((-density, nodes))
    first, stop, turned = first[order], stop[order], turned[order]
    lengths = stop - first
    ends = sums_before(lengths)
    places = spread(first, stop)
    flags = np.repeat(turned, lengths)
    backward = np.repeat(first + stop - 1, lengths) - places
    return chunks.pick(np.where(flags, backward, places), ends), flags


def _pieces(line: Chunks, turned: np.ndarray, tokens: Whole, runs: Whole) -> Dealt:
    """The tokens of runs of the line, (low, high, rank) each, as pieces of chunks."""
    runs = runs[runs[:, 0] < runs[:, 1]]
    begin = tokens.searchsorted(runs[:, 0], "right") - 1
    end = tokens.searchsorted(runs[:, 1])
    chunk = spread(begin, end)
    low, high, name = runs.repeat(end - begin, axis=0).T
    skipped = np.maximum(low - tokens[chunk], 0)
    kept = np.minimum(high, tokens[chunk + 1]) - tokens[chunk] - skipped
    first = np.where(turned[chunk], line.stop[chunk] - skipped - kept, line.first[chunk] + skipped)
    return first, first + kept, name


def joined(dealt: Dealt, ranks: int) -> Owners:
    """The owners of these pieces, which are all tokens."""
    first, stop, name = dealt
    order = first.argsort()
    edges = np.empty(len(order) + 1, np.int64)
    edges[:-1], edges[-1] = first[order], stop[order[-1]]
    return Owners.of_chunks(edges, name[order], ranks)
