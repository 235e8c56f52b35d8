"""Whole documents to nodes, then ranks inside each node: few keys cross the network."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnicupy.parallel.assign import Chunks, Piece, joined, shares_of, taken
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.seen import Real, Whole

UNEVEN = 0.1  # what a node's tokens and work may lie apart, against what the fuller one of them counts
MOST_TRIED = 12  # documents, the shortest, of which one is cut

Part = tuple[Whole, Whole, Real]  # first, stop, work of the chunks of a document


def nodes_first(chunks: Chunks, ranks: int, node: int) -> Owners:
    """Documents to nodes of `node` ranks by tokens and work, then `two_ended` inside each."""
    shares = shares_of(int((chunks.stop - chunks.first).sum()), ranks)
    names = [range(first, min(first + node, ranks)) for first in range(0, ranks, node)]
    counts = [int(shares[one.start : one.stop].sum()) for one in names]
    counts = [
        count for count in counts if count
    ]  # the last nodes go without where tokens are fewer than ranks
    pieces: list[Piece] = []
    for one, held in zip(names, _packed(chunks, counts, node), strict=False):
        pieces += taken(_merged(held), shares[one.start : one.stop], one)
    return joined(pieces, ranks)


def _packed(chunks: Chunks, counts: list[int], node: int) -> list[list[Part]]:
    """Documents to nodes of so many tokens: the largest first, each to the node that it fills least; then runs of
    documents go from full nodes to others until the tokens are exact.
    """
    total = np.array([max(1.0, sum(counts)), max(1e-9, float(chunks.work.sum()))])
    part = np.array(counts) / total[0]  # of a node; the last one may have fewer ranks
    items, amounts = _items(chunks, total / len(counts))
    tokens, work = np.zeros(len(counts)), np.zeros(len(counts))  # over the node's part of all
    held: list[list[Part]] = [[] for _ in counts]
    scaled = amounts / total
    for item in np.argsort(-scaled.max(axis=1), kind="stable").tolist():
        more_tokens, more_work = tokens + scaled[item, 0] / part, work + scaled[item, 1] / part
        uneven = np.abs(more_tokens - more_work)
        at = int((np.maximum(more_tokens, more_work) + UNEVEN * uneven).argmin())
        tokens[at], work[at] = more_tokens[at], more_work[at]
        of = items[item]
        held[at].append((chunks.first[of], chunks.stop[of], chunks.work[of]))
    load = [sum(float(one[2].sum()) for one in documents) for documents in held]
    _settle(held, counts, np.array(load), node)
    return held


def _items(chunks: Chunks, share: Real) -> tuple[list[Any], Real]:
    """Documents, and what tokens and work they have; one that is too large for a node comes in several items of equal
    tokens and work (its chunks in a zigzag).
    """
    tokens, work = chunks.before()
    ends = chunks.ends
    amounts = np.stack([np.diff(tokens[ends]).astype(np.float64), np.diff(work[ends])], axis=1)
    need = np.ceil((amounts / share).max(axis=1) - 1e-9).astype(np.int64)
    items: list[Any] = []
    found = []
    for at, (first, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        count, parts = stop - first, min(int(need[at]), stop - first)
        if parts <= 1:
            items.append(slice(first, stop))
            found.append(amounts[at])
            continue
        half = np.arange(count) * 2 * parts // count
        own = np.minimum(half, 2 * parts - 1 - half)
        for part in range(parts):
            chosen = first + np.flatnonzero(own == part)
            if len(chosen):
                items.append(chosen)
                lengths = chunks.stop[chosen] - chunks.first[chosen]
                found.append(np.array([lengths.sum(), chunks.work[chosen].sum()]))
    return items, np.array(found)


def _settle(held: list[list[Part]], counts: list[int], work: Real, node: int) -> None:
    """In place: full nodes give documents and runs of them to others until each node has its tokens."""
    over = np.array([sum(int((one[1] - one[0]).sum()) for one in documents) for documents in held]) - counts
    while over.max() > 0:
        full, free = int(over.argmax()), int(over.argmin())
        tokens = min(int(over[full]), -int(over[free]))
        moved = _moved(held[full], tokens, (work[full] - work[free]) / 2, counts[full] / node)
        held[free] += moved
        amount = sum(float(one[2].sum()) for one in moved)
        over[full] -= tokens
        over[free] += tokens
        work[full] -= amount
        work[free] += amount


def _moved(documents: list[Part], tokens: int, wanted: float, rank_tokens: float) -> list[Part]:
    """In place: `tokens` tokens taken from a node's documents, with work near `wanted`: whole documents while they fit,
    then a run of one, chosen so that few keys are needed on both sides of the cut.
    """
    found: list[Part] = []
    total = sum(float(work.sum()) for _, _, work in documents)
    while tokens:
        lengths = np.array([int((stop - first).sum()) for first, stop, _ in documents])
        fits = np.flatnonzero(lengths <= tokens)
        if len(fits):
            at = int(fits[lengths[fits].argmax()])
            found.append(documents.pop(at))
        else:
            at, from_tail = _cheapest_cut(documents, tokens, (wanted, total), rank_tokens)
            low, high = _halves(documents[at], int(lengths[at]) - tokens if from_tail else tokens)
            documents[at], part = (low, high) if from_tail else (high, low)
            found.append(part)
        tokens -= int((found[-1][1] - found[-1][0]).sum())
        wanted -= float(found[-1][2].sum())
    return found


def _cheapest_cut(
    documents: list[Part], tokens: int, work: tuple[float, float], rank_tokens: float
) -> tuple[int, bool]:
    """The document that loses `tokens` tokens of one end, and whether it is the tail. work: wanted, and of all.

    Who gets n rows that see up to w keys fetches about w - n of them; who keeps the rest up to n.
    """
    wanted, total = work
    best, found = np.inf, (0, False)
    lengths = [int((stop - first).sum()) for first, stop, _ in documents]
    for at in np.argsort(lengths, kind="stable")[:MOST_TRIED].tolist():
        first, stop, amount = documents[at]
        before = np.append(0, np.cumsum(stop - first))
        sums = np.append(0.0, np.cumsum(amount))
        seen = amount / (stop - first)
        last = int(np.searchsorted(before, tokens, "left"))
        begin = int(np.searchsorted(before, before[-1] - tokens, "right")) - 1
        head, rest = np.interp([tokens, before[-1] - tokens], before, sums)
        for from_tail, got, most in (
            (False, head, seen[:last].max()),
            (True, sums[-1] - rest, seen[begin:].max()),
        ):
            fetched = max(float(tokens), float(most) - tokens) / rank_tokens
            cost = fetched + abs(float(got) - wanted) / max(total, 1.0)
            if cost < best:
                best, found = cost, (at, from_tail)
    return found


def _halves(document: Part, place: int) -> tuple[Part, Part]:
    """A document's chunks before and after `place` tokens, a chunk cut in two where it must be."""
    first, stop, work = document
    before = np.append(0, np.cumsum(stop - first))
    at = int(np.searchsorted(before, place, "right")) - 1
    inside = place - int(before[at])
    if inside == 0:
        return (first[:at], stop[:at], work[:at]), (first[at:], stop[at:], work[at:])
    middle = int(first[at]) + inside
    part = inside / int(stop[at] - first[at])
    low = (first[: at + 1], np.append(stop[:at], middle), np.append(work[:at], work[at] * part))
    high = (np.append(middle, first[at + 1 :]), stop[at:], np.append(work[at] * (1 - part), work[at + 1 :]))
    return low, high


def _merged(documents: list[Part]) -> Chunks:
    ends = np.append(0, np.cumsum([len(first) for first, _, _ in documents]))
    first, stop, work = (np.concatenate([one[side] for one in documents]) for side in range(3))
    return Chunks(first, stop, work, ends)
