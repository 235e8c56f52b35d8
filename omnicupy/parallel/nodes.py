"""Whole documents to nodes, then ranks inside each node: few keys cross the network."""

from __future__ import annotations

import numpy as np

from omnicupy.parallel import few, many
from omnicupy.parallel.assign import FEW, shares_of
from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.line import Line, Part, Ranges
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Real

UNEVEN = 0.1  # what a node's tokens and work may lie apart, against what the fuller one of them counts
MOST_TRIED = 12  # documents, the shortest, of which one is cut
FEW_NODES = 16  # of which one is found faster without NumPy
# Of a document of two nodes whose first half has less work than so much of all, as under causal masks: the length of
# its middle piece and of its first end, keys that the two fetch of each other, and what that is a multiple of.
LIGHT, MIDDLE, WHOLE_TILE = 0.3, 0.37, 128
ALIKE = 1e-9  # of what a cut costs: nearer ones differ in rounding only, and the first of them counts


def nodes_first(chunks: Chunks, ranks: int, node: int, *, middles: bool = False) -> Owners:
    """Documents to nodes of `node` ranks by tokens and work, then `two_ended` inside each. middles: where a document of
    two nodes is light in front, one gets a middle piece of it that is as long as what lies ahead, and no longer.
    """
    shares = shares_of(int(chunks.stop[-1]), ranks)
    names = [range(first, min(first + node, ranks)) for first in range(0, ranks, node)]
    counts = [sum(shares[one.start : one.stop]) for one in names]
    counts = [
        count for count in counts if count
    ]  # the last nodes go without where tokens are fewer than ranks
    held = _packed(chunks, counts, node, middles=middles)
    if node == 1:
        pieces = [(*one, at) for at, parts in enumerate(held) for part in parts for one in part.ranges]
        return few.joined(pieces, ranks)
    documents = [len(parts) for parts in held]
    if sum(documents) > FEW:
        return many.joined(many.dealt(chunks, held, shares, names), ranks)
    texts = [chunks.line.text(part) for parts in held for part in parts]
    return few.joined(few.taken(texts, documents, shares, names), ranks)


def cuts_middles(chunks: Chunks, ranks: int) -> bool:
    """Whether `middles` makes a difference for nodes of one rank."""
    need = _needed(chunks, np.array([max(1e-9, one[-1]) for one in chunks.before]) / ranks)
    line, texts = chunks.line, chunks.texts
    return any(count == 2 and _middle(one, line) for count, one in zip(need, texts, strict=True))


def _needed(chunks: Chunks, share: Real) -> list[float]:
    """How many nodes each document takes. share: tokens and work of a node."""
    found: list[float] = np.ceil(np.maximum(*(chunks.amounts / share).T) - 1e-9).tolist()
    return found


def _middle(document: Part, line: Line) -> int:
    """The length of its middle piece; 0 where the document is not light in front, or short."""
    ((first, stop),) = document.ranges
    length = round(MIDDLE * (stop - first) / WHOLE_TILE) * WHOLE_TILE
    if not 0 < 2 * length < stop - first:
        return 0
    light = line.work_of([(first, (first + stop) // 2)]) < LIGHT * document.total
    return length if light else 0


def _packed(chunks: Chunks, counts: list[int], node: int, *, middles: bool) -> list[list[Part]]:
    """Documents to nodes of so many tokens: the largest first, each to the node that it fills least; then runs of
    documents go from full nodes to others until the tokens are exact.
    """
    total = np.array([max(1.0, sum(counts)), max(1e-9, float(chunks.work.sum()))])
    share = np.array(counts) / total[0]  # of a node; the last one may have fewer ranks
    items, amounts = _items(chunks, total / len(counts), middles=middles)
    scaled = amounts / total
    order = (-np.maximum(*scaled.T)).argsort(kind="stable")
    least = _few if len(counts) <= FEW_NODES else _many
    held: list[list[Part]] = [[] for _ in counts]
    for item, at in zip(order.tolist(), least(scaled[order], share), strict=True):
        held[at].append(items[item])
    _settle(held, counts, node, chunks.line)
    return held


def _few(amounts: Real, share: Real) -> list[int]:
    """The node of each item. amounts: tokens and work over those of all, (items, 2).  share: of each node."""
    fill, load, found = [0.0] * len(share), [0.0] * len(share), []
    for tokens, work in (amounts[:, :, None] / share).tolist():
        least, at = np.inf, 0
        for node, (a, b, more, of_it) in enumerate(zip(fill, load, tokens, work, strict=True)):
            a += more
            if a < least:
                b += of_it
                most = (b + UNEVEN * (b - a)) if b > a else a + UNEVEN * (a - b)
                if most < least:
                    least, at = most, node
        fill[at] += tokens[at]
        load[at] += work[at]
        found.append(at)
    return found


def _many(amounts: Real, share: Real) -> list[int]:
    """The same with less work for each node and more for each item."""
    filled = np.zeros((2, len(share)))
    more, uneven, most, found = np.empty_like(filled), np.empty(len(share)), np.empty(len(share)), []
    for item in amounts:
        np.divide(item[:, None], share, out=more)
        np.add(filled, more, out=more)
        np.abs(np.subtract(more[0], more[1], out=uneven), out=uneven)
        np.maximum(more[0], more[1], out=most)
        np.add(most, np.multiply(uneven, UNEVEN, out=uneven), out=most)
        at = int(most.argmin())
        filled[:, at] = more[:, at]
        found.append(at)
    return found


def _items(chunks: Chunks, share: Real, *, middles: bool) -> tuple[list[Part], Real]:
    """Documents, and what tokens and work they have; one that is too large for a node comes in several items of equal
    tokens and work (its chunks in a zigzag), or in a middle piece and two ends.
    """
    line, amounts, places = chunks.line, chunks.amounts, chunks.ends.tolist()
    need = _needed(chunks, share)
    if max(need) <= 1:
        return chunks.texts, amounts
    items: list[Part] = []
    for first, stop, parts, one in zip(places, places[1:], need, chunks.texts, strict=False):
        count = min(int(parts), stop - first)
        if count <= 1:
            items.append(one)
        elif middles and count == 2 and (length := _middle(one, line)):
            ((begin, end),) = one.ranges
            low, high = begin + length, begin + 2 * length
            work = line.work_of([(low, high)])
            items.append(Part([(begin, low), (high, end)], one.tokens - length, one.total - work))
            items.append(Part([(low, high)], length, work))
        else:
            items += _zigzag(line, first, stop, count)
    return items, np.array([one[1:] for one in items])


def _zigzag(line: Line, first: int, stop: int, count: int) -> list[Part]:
    """So many items of the chunks from first to stop."""
    edges, before = line.edges, line.before
    items = []
    cuts = [first + -(-half * (stop - first) // (2 * count)) for half in range(2 * count + 1)]
    for number in range(count):
        low, high, again = cuts[number], cuts[number + 1], (cuts[-2 - number], cuts[-1 - number])
        runs = [(low, again[1])] if high == again[0] else [(low, high), again]
        ranges = [(edges[a], edges[b]) for a, b in runs if a < b]
        if ranges:
            work = sum([before[b] - before[a] for a, b in runs])
            items.append(Part(ranges, sum([b - a for a, b in ranges]), work))
    return items


def _settle(held: list[list[Part]], counts: list[int], node: int, line: Line) -> None:
    """In place: full nodes give documents and runs of them to others until each node has its tokens."""
    over = [
        sum([one.tokens for one in documents]) - count for documents, count in zip(held, counts, strict=True)
    ]
    work = [sum([one.total for one in documents]) for documents in held]
    while max(over) > 0:
        full, free = over.index(max(over)), over.index(min(over))
        tokens = min(over[full], -over[free])
        moved = _moved(held[full], tokens, (work[full] - work[free]) / 2, counts[full] / node, line)
        held[free] += moved
        amount = sum([one.total for one in moved])
        over[full] -= tokens
        over[free] += tokens
        work[full] -= amount
        work[free] += amount


def _moved(documents: list[Part], tokens: int, wanted: float, rank_tokens: float, line: Line) -> list[Part]:
    """In place: `tokens` tokens taken from a node's documents, with work near `wanted`: whole documents while they fit,
    then a run of one, chosen so that few keys are needed on both sides of the cut.
    """
    found: list[Part] = []
    total = sum([one.total for one in documents])
    while tokens:
        fits = [at for at, one in enumerate(documents) if one.tokens <= tokens]
        if fits:
            moved = documents.pop(max(fits, key=lambda at: documents[at].tokens))
        else:
            at, from_tail, moved = _cheapest_cut(documents, tokens, (wanted, total), rank_tokens, line)
            documents[at] = _without(documents[at], moved, from_tail)
        found.append(moved)
        tokens -= moved.tokens
        wanted -= moved.total
    return found


def _cheapest_cut(
    documents: list[Part], tokens: int, work: tuple[float, float], rank_tokens: float, line: Line
) -> tuple[int, bool, Part]:
    """The document that loses `tokens` tokens of one end, whether it is the tail, and what it loses. work: wanted, and
    of all.

    Who gets n rows that see up to w keys fetches about w - n of them; who keeps the rest up to n.
    """
    wanted, total = work[0], max(work[1], 1.0)
    best, found = np.inf, (0, False, documents[0])
    shortest = sorted([(one.tokens, at) for at, one in enumerate(documents)])[:MOST_TRIED]
    for _, at in shortest:
        ranges = documents[at].ranges
        for from_tail in (False, True):
            end = _end(ranges, tokens, from_tail)
            most = line.most(end) - tokens
            cost = (most if most > tokens else tokens) / rank_tokens
            if cost < best:
                of_it = line.work_of(end)
                cost += abs(of_it - wanted) / total
                if cost < best * (1 - ALIKE):
                    best, found = cost, (at, from_tail, Part(sorted(end), tokens, of_it))
    return found


def _end(ranges: Ranges, tokens: int, from_tail: bool) -> Ranges:
    """The first tokens of these, or the last ones."""
    first, stop = ranges[-from_tail]
    if tokens <= stop - first:
        return [(stop - tokens, stop) if from_tail else (first, first + tokens)]
    others = ranges[:-1] if from_tail else ranges[1:]
    return [(first, stop), *_end(others, tokens - (stop - first), from_tail)]


def _without(document: Part, lost: Part, from_tail: bool) -> Part:
    """A document that loses tokens of one end."""
    tokens = document.tokens - lost.tokens
    return Part(sorted(_end(document.ranges, tokens, not from_tail)), tokens, document.total - lost.total)
