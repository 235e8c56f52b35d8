"""Whole documents to nodes, then ranks inside each node: few keys cross the network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from omnicupy.parallel.assign import Chunks, Dealt, joined, shares_of, taken
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Real, Whole, sums_before

UNEVEN = 0.1  # what a node's tokens and work may lie apart, against what the fuller one of them counts
MOST_TRIED = 12  # documents, the shortest, of which one is cut


class Part(NamedTuple):
    """Of a document. first, stop, work: of its chunks.  tokens, total: of them, and their work."""

    first: Whole
    stop: Whole
    work: Real
    tokens: int
    total: float

    @staticmethod
    def of(first: Whole, stop: Whole, work: Real) -> Part:
        return Part(first, stop, work, int(np.add.reduce(stop - first)), float(np.add.reduce(work)))


def nodes_first(chunks: Chunks, ranks: int, node: int) -> Owners:
    """Documents to nodes of `node` ranks by tokens and work, then `two_ended` inside each."""
    shares = shares_of(int((chunks.stop - chunks.first).sum()), ranks)
    names = [range(first, min(first + node, ranks)) for first in range(0, ranks, node)]
    counts = [int(shares[one.start : one.stop].sum()) for one in names]
    counts = [
        count for count in counts if count
    ]  # the last nodes go without where tokens are fewer than ranks
    held = _packed(chunks, counts, node)
    dealt = [
        _dealt(_merged(part), shares[one.start : one.stop], one)
        for one, part in zip(names, held, strict=False)
    ]
    return joined(dealt, ranks)


def _dealt(chunks: Chunks, shares: Whole, names: range) -> Dealt:
    """A node's chunks to its ranks."""
    if len(names) > 1:
        return taken(chunks, shares, names)
    return chunks.first, chunks.stop, np.full(len(chunks.first), names.start)


def _packed(chunks: Chunks, counts: list[int], node: int) -> list[list[Part]]:
    """Documents to nodes of so many tokens: the largest first, each to the node that it fills least; then runs of
    documents go from full nodes to others until the tokens are exact.
    """
    total = np.array([max(1.0, sum(counts)), max(1e-9, float(chunks.work.sum()))])
    share = np.array(counts) / total[0]  # of a node; the last one may have fewer ranks
    items, amounts = _items(chunks, total / len(counts))
    filled = np.zeros((2, len(counts)))  # tokens and work over the node's share of all
    held: list[list[Part]] = [[] for _ in counts]
    scaled = amounts / total
    more, uneven, most = np.empty_like(filled), np.empty(len(counts)), np.empty(len(counts))
    for item in np.argsort(-scaled.max(axis=1), kind="stable").tolist():
        np.divide(scaled[item][:, None], share, out=more)
        np.add(filled, more, out=more)
        np.abs(np.subtract(more[0], more[1], out=uneven), out=uneven)
        np.maximum(more[0], more[1], out=most)
        np.add(most, np.multiply(uneven, UNEVEN, out=uneven), out=most)
        at = int(most.argmin())
        filled[:, at] = more[:, at]
        held[at].append(items[item])
    _settle(held, counts, node)
    return held


def _items(chunks: Chunks, share: Real) -> tuple[list[Part], Real]:
    """Documents, and what tokens and work they have; one that is too large for a node comes in several items of equal
    tokens and work (its chunks in a zigzag).
    """
    tokens, work = chunks.before()
    ends = chunks.ends
    amounts = np.stack([np.diff(tokens[ends]).astype(np.float64), np.diff(work[ends])], axis=1)
    need = np.ceil((amounts / share).max(axis=1) - 1e-9).astype(np.int64)
    parts = np.minimum(need, np.diff(ends))
    items: list[Part] = []
    found: list[tuple[float, float]] = []
    rows = zip(ends[:-1].tolist(), ends[1:].tolist(), parts.tolist(), amounts.tolist(), strict=True)
    for first, stop, count, amount in rows:
        if count <= 1:
            one = chunks.work[first:stop]
            total = float(np.add.reduce(one))
            items.append(Part(chunks.first[first:stop], chunks.stop[first:stop], one, int(amount[0]), total))
            found.append((amount[0], amount[1]))
            continue
        half = np.arange(stop - first) * 2 * count // (stop - first)
        own = np.minimum(half, 2 * count - 1 - half)
        for number in range(count):
            chosen = first + np.flatnonzero(own == number)
            if len(chosen):
                part = Part.of(chunks.first[chosen], chunks.stop[chosen], chunks.work[chosen])
                items.append(part)
                found.append((part.tokens, part.total))
    return items, np.array(found)


def _settle(held: list[list[Part]], counts: list[int], node: int) -> None:
    """In place: full nodes give documents and runs of them to others until each node has its tokens."""
    over = [
        sum(one.tokens for one in documents) - count for documents, count in zip(held, counts, strict=True)
    ]
    work = [sum(one.total for one in documents) for documents in held]
    while max(over) > 0:
        full, free = over.index(max(over)), over.index(min(over))
        tokens = min(over[full], -over[free])
        moved = _moved(held[full], tokens, (work[full] - work[free]) / 2, counts[full] / node)
        held[free] += moved
        amount = sum(one.total for one in moved)
        over[full] -= tokens
        over[free] += tokens
        work[full] -= amount
        work[free] += amount


def _moved(documents: list[Part], tokens: int, wanted: float, rank_tokens: float) -> list[Part]:
    """In place: `tokens` tokens taken from a node's documents, with work near `wanted`: whole documents while they fit,
    then a run of one, chosen so that few keys are needed on both sides of the cut.
    """
    found: list[Part] = []
    total = sum(one.total for one in documents)
    while tokens:
        fits = [at for at, one in enumerate(documents) if one.tokens <= tokens]
        if fits:
            moved = documents.pop(max(fits, key=lambda at: documents[at].tokens))
        else:
            at, from_tail = _cheapest_cut(documents, tokens, (wanted, total), rank_tokens)
            low, high = _halves(documents[at], documents[at].tokens - tokens if from_tail else tokens)
            documents[at], moved = (low, high) if from_tail else (high, low)
        found.append(moved)
        tokens -= moved.tokens
        wanted -= moved.total
    return found


def _cheapest_cut(
    documents: list[Part], tokens: int, work: tuple[float, float], rank_tokens: float
) -> tuple[int, bool]:
    """The document that loses `tokens` tokens of one end, and whether it is the tail. work: wanted, and of all.

    Who gets n rows that see up to w keys fetches about w - n of them; who keeps the rest up to n.
    """
    wanted, total = work
    best, found = np.inf, (0, False)
    shortest = sorted(range(len(documents)), key=lambda at: documents[at].tokens)[:MOST_TRIED]
    for at in shortest:
        first, stop, amount, *_ = documents[at]
        lengths = stop - first
        before, sums, seen = sums_before(lengths), sums_before(amount), amount / lengths
        rest = int(before[-1]) - tokens
        last, begin = before.searchsorted(tokens), before.searchsorted(rest, "right") - 1
        head, others = np.interp((tokens, rest), before, sums)
        for from_tail, got, most in (
            (False, head, seen[:last].max()),
            (True, sums[-1] - others, seen[begin:].max()),
        ):
            fetched = max(float(tokens), float(most) - tokens) / rank_tokens
            cost = fetched + abs(float(got) - wanted) / max(total, 1.0)
            if cost < best:
                best, found = cost, (at, from_tail)
    return found


def _halves(document: Part, place: int) -> tuple[Part, Part]:
    """A document's chunks before and after `place` tokens, a chunk cut in two where it must be."""
    first, stop, work, *_ = document
    before = sums_before(stop - first)
    at = int(np.searchsorted(before, place, "right")) - 1
    inside = place - int(before[at])
    if inside == 0:
        return Part.of(first[:at], stop[:at], work[:at]), Part.of(first[at:], stop[at:], work[at:])
    middle = int(first[at]) + inside
    part = inside / int(stop[at] - first[at])
    low = Part.of(first[: at + 1], np.append(stop[:at], middle), np.append(work[:at], work[at] * part))
    high = Part.of(
        np.append(middle, first[at + 1 :]), stop[at:], np.append(work[at] * (1 - part), work[at + 1 :])
    )
    return low, high


def _merged(documents: list[Part]) -> Chunks:
    first, stop, work = (np.concatenate([one[side] for one in documents]) for side in range(3))
    return Chunks(first, stop, work, sums_before(np.array([len(one.first) for one in documents])))
