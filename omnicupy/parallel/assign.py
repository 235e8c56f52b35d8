"""Assignments: which rank gets which rows, in chunks that end with their document.

Every one gives each rank its share of the tokens, exact to a token, and tries to give it its share of the work: kernels
and frameworks want equal shapes, and the slowest rank sets the pace.

`two_ended`: documents by density (work a token). A rank takes a run from the dense end and a run from the light end, so
long that tokens and work both are its share. Each rank meets few documents and so needs few keys of others.
`nodes_first`: the same twice, whole documents to nodes before. Keys that cross a network are the expensive ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnicupy.parallel.owners import Owners
from omnicupy.parallel.seen import Real, Whole

EVEN = 0.01  # of a share of the work: within it, fewer cuts count more


@dataclass(frozen=True)
class Line:
    """Chunks in the order in which ranks take from both ends.

    first, stop: the tokens of a chunk.  work: of each.  turned: whether it is taken from its last token on.
    ends: places in `first` where a document begins, and the end.
    """

    first: Whole
    stop: Whole
    work: Real
    turned: np.ndarray
    ends: Whole


Piece = tuple[int, int, int]  # first token, stop token, rank


def contiguous(size: int, ranks: int) -> Owners:
    """Equal runs in order."""
    edges = np.arange(ranks + 1) * size // ranks
    kept = np.flatnonzero(np.diff(edges))
    return Owners(np.append(edges[kept], size), kept, ranks)


def zigzag(size: int, ranks: int) -> Owners:
    """Rank r gets runs r and 2 * ranks - 1 - r of twice as many runs: even for one causal text."""
    edges = np.arange(2 * ranks + 1) * size // (2 * ranks)
    half = np.arange(2 * ranks)
    owner = np.minimum(half, 2 * ranks - 1 - half)
    kept = np.flatnonzero(np.diff(edges))
    return Owners.of_chunks(np.append(edges[kept], size), owner[kept], ranks)


def two_ended(edges: Whole, work: Real, bounds: Whole, ranks: int) -> Owners:
    """edges, work: the chunks.  bounds: of the documents, each of which is an edge."""
    documents = np.split(np.arange(len(work)), np.searchsorted(edges, bounds[1:-1]))
    line = _line(edges[:-1], edges[1:], work, documents)
    return _joined(_taken(line, _shares(int(edges[-1]), ranks), range(ranks)), ranks)


def nodes_first(edges: Whole, work: Real, bounds: Whole, ranks: int, node: int) -> Owners:
    """Whole documents to nodes of `node` ranks, then two_ended inside each. Arguments as there."""
    shares = _shares(int(edges[-1]), ranks)
    documents = np.split(np.arange(len(work)), np.searchsorted(edges, bounds[1:-1]))
    nodes = [range(first, min(first + node, ranks)) for first in range(0, ranks, node)]
    of_nodes = [int(shares[one.start : one.stop].sum()) for one in nodes]
    pieces: list[Piece] = []
    for one, held in zip(nodes, _packed(edges, work, documents, of_nodes), strict=True):
        first, stop, amount, groups = held
        line = _line(first, stop, amount, groups)
        pieces += _taken(line, shares[one.start : one.stop], one)
    return _joined(pieces, ranks)


def _shares(size: int, ranks: int) -> Whole:
    """Tokens of each rank: equal, the first ones one more where that does not come out even."""
    return np.diff(np.arange(ranks, -1, -1) * -size // ranks) if size else np.zeros(ranks, np.int64)


def _line(first: Whole, stop: Whole, work: Real, documents: Sequence[Whole]) -> Line:
    """Documents by density, the dense end of each before its light end."""
    sizes, parts = stop - first, []
    for chunks in documents:
        half = len(chunks) // 2
        turned = bool(half and work[chunks[-half:]].sum() > work[chunks[:half]].sum())
        density = work[chunks].sum() / sizes[chunks].sum()
        parts.append((-density, chunks[::-1] if turned else chunks, turned))
    parts.sort(key=lambda part: part[0])
    order = np.concatenate([chunks for _, chunks, _ in parts])
    lengths = [len(chunks) for _, chunks, _ in parts]
    flags = np.repeat([turned for _, _, turned in parts], lengths)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return Line(first[order], stop[order], work[order], flags, ends)


def _taken(line: Line, shares: Whole, names: range) -> list[Piece]:
    """Each rank's run from the dense end and from the light end: its share of tokens, and of what work is left."""
    tokens = np.append(0, np.cumsum(line.stop - line.first))
    work = np.append(0.0, np.cumsum(line.work))
    low, high = 0, int(tokens[-1])
    pieces: list[Piece] = []
    for at, name in enumerate(names):
        share = int(shares[at])
        left_work = float(np.interp(high, tokens, work) - np.interp(low, tokens, work))
        goal = left_work * share / max(1, high - low)
        take = share if at == len(shares) - 1 else _run_from_below(tokens, work, (low, high), share, goal)
        pieces += _pieces(line, tokens, (low, low + take), name)
        pieces += _pieces(line, tokens, (high - (share - take), high), name)
        low, high = low + take, high - (share - take)
    return pieces


def _run_from_below(tokens: Whole, work: Real, left: tuple[int, int], share: int, goal: float) -> int:
    """How many of `share` tokens come from the dense end so that the work is nearest to `goal`.

    Within EVEN of the goal the place that cuts fewest chunks is taken.
    """
    low, high = left
    i, j = np.searchsorted(tokens, [low, low + share], "right")
    p, q = np.searchsorted(tokens, [high - share, high], "left")
    inside = np.concatenate([[0, share], tokens[i:j] - low, tokens[p:q] - (high - share)])
    places = np.unique(inside[(inside >= 0) & (inside <= share)])
    below, above = np.interp(low + places, tokens, work), np.interp(high - share + places, tokens, work)
    got = below - np.interp(low, tokens, work) + np.interp(high, tokens, work) - above
    near = np.flatnonzero(np.abs(got - goal) <= EVEN / 4 * goal)
    if len(near):
        chosen = near[np.argmax(np.abs(places[near] - share / 2))]
        return int(places[chosen])
    over = got - goal
    cross = np.flatnonzero((over[:-1] < 0) != (over[1:] < 0))
    if not len(cross):
        return int(places[int(np.argmin(np.abs(over)))])
    at = int(cross[0])
    part = over[at] / (over[at] - over[at + 1])
    return int(places[at] + round(part * float(places[at + 1] - places[at])))


def _pieces(line: Line, tokens: Whole, run: tuple[int, int], name: int) -> list[Piece]:
    """The tokens of a run of the line, as pieces of chunks."""
    low, high = run
    if low >= high:
        return []
    a, b = int(np.searchsorted(tokens, low, "right")) - 1, int(np.searchsorted(tokens, high, "left"))
    found = []
    for chunk in range(a, b):
        skipped = max(0, low - int(tokens[chunk]))
        kept = min(high, int(tokens[chunk + 1])) - int(tokens[chunk]) - skipped
        first, stop = int(line.first[chunk]), int(line.stop[chunk])
        if line.turned[chunk]:
            found.append((stop - skipped - kept, stop - skipped, name))
        else:
            found.append((first + skipped, first + skipped + kept, name))
    return found


def _joined(pieces: list[Piece], ranks: int) -> Owners:
    ordered = np.array(sorted(pieces), np.int64)
    return Owners.of_chunks(np.append(ordered[:, 0], ordered[-1, 1]), ordered[:, 2], ranks)


Held = tuple[Whole, Whole, Real, list[Whole]]  # first, stop, work of chunks, and the chunks of each document


def _packed(edges: Whole, work: Real, documents: Sequence[Whole], shares: list[int]) -> list[Held]:
    """Documents to nodes of so many tokens: the largest first, each to the node that it fills least; then runs of a
    document go from full nodes to others until the tokens are exact.
    """
    size, nodes = int(edges[-1]), len(shares)
    goal = max(float(work.sum()) / nodes, 1.0)
    items = _items(edges, work, documents, size / nodes, goal)
    amounts = np.array([[(edges[one + 1] - edges[one]).sum(), work[one].sum()] for one in items])
    scaled = amounts / [size / nodes, goal]
    load = np.zeros((nodes, 2))
    held: list[list[tuple[Whole, Whole, Real]]] = [[] for _ in range(nodes)]
    for item in np.argsort(-scaled.max(axis=1), kind="stable").tolist():
        after = load + scaled[item]
        node = int((after.max(axis=1) + 0.1 * np.abs(after[:, 0] - after[:, 1])).argmin())
        load[node] += scaled[item]
        chunks = items[item]
        held[node].append((edges[chunks], edges[chunks + 1], work[chunks]))
    _settle(held, shares, load[:, 1] * goal)
    return [_merged(one) for one in held]


def _items(edges: Whole, work: Real, documents: Sequence[Whole], tokens: float, goal: float) -> list[Whole]:
    """Documents; one that is too large for a node in shares of equal tokens and work (its chunks in a zigzag)."""
    found: list[Whole] = []
    for chunks in documents:
        need = max((edges[chunks[-1] + 1] - edges[chunks[0]]) / tokens, work[chunks].sum() / goal)
        parts = min(int(np.ceil(need - 1e-9)), len(chunks))
        if parts <= 1:
            found.append(chunks)
            continue
        half = np.arange(len(chunks)) * 2 * parts // len(chunks)
        share = np.minimum(half, 2 * parts - 1 - half)
        found += [chunks[share == part] for part in range(parts) if (share == part).any()]
    return found


def _settle(held: list[list[tuple[Whole, Whole, Real]]], shares: list[int], load: Real) -> None:
    """In place: full nodes give runs of one document to others until each node has its tokens."""
    counts = [sum(int((stop - first).sum()) for first, stop, _ in one) for one in held]
    while True:
        extra = max(range(len(held)), key=lambda node: counts[node] - shares[node])
        over = counts[extra] - shares[extra]
        if over <= 0:
            return
        short = max(range(len(held)), key=lambda node: shares[node] - counts[node])
        move = min(over, shares[short] - counts[short])
        dense = load[extra] - load[short]  # what the run should take with it is half of this
        run = _cut(held[extra], move, dense / 2)
        held[short].append(run)
        moved = float(run[2].sum())
        load[extra], load[short] = load[extra] - moved, load[short] + moved
        counts[extra], counts[short] = counts[extra] - move, counts[short] + move


def _cut(documents: list[tuple[Whole, Whole, Real]], tokens: int, wanted: float) -> tuple[Whole, Whole, Real]:
    """In place: `tokens` tokens off one end of a document (the whole of it where it has no more), work near `wanted`.

    Where no single document has so many, the largest is taken whole and the rest comes off others.
    """
    lengths = np.array([int((stop - first).sum()) for first, stop, _ in documents])
    fit = np.flatnonzero(lengths >= tokens)
    if not len(fit):
        at = int(lengths.argmax())
        whole = documents.pop(at)
        rest = _cut(documents, tokens - int(lengths[at]), wanted - float(whole[2].sum()))
        return tuple(np.concatenate(pair) for pair in zip(whole, rest, strict=True))  # type: ignore[return-value]
    best: tuple[float, int, bool] | None = None
    for at in fit.tolist():
        first, stop, work = documents[at]
        sums = np.append(0, np.cumsum(stop - first)), np.append(0.0, np.cumsum(work))
        total = int(sums[0][-1])
        head = float(np.interp(tokens, *sums))
        tail = float(sums[1][-1] - np.interp(total - tokens, *sums))
        for from_tail, got in ((False, head), (True, tail)):
            cost = abs(got - wanted) * (1 + total / lengths.max())
            if best is None or cost < best[0]:
                best = cost, at, from_tail
    assert best is not None
    _, at, from_tail = best
    kept, given = _halves(documents[at], int(lengths[at]) - tokens if from_tail else tokens)
    if not from_tail:
        kept, given = given, kept
    documents[at : at + 1] = [kept] if len(kept[0]) else []
    return given


def _halves(document: tuple[Whole, Whole, Real], place: int) -> tuple[tuple[Whole, Whole, Real], ...]:
    """A document's chunks before and after `place` tokens, a chunk cut in two where it must be."""
    first, stop, work = document
    before = np.append(0, np.cumsum(stop - first))
    at = int(np.searchsorted(before, place, "right")) - 1
    inside = place - int(before[at])
    if inside == 0:
        return tuple(x[:at] for x in document), tuple(x[at:] for x in document)  # type: ignore[return-value]
    middle = int(first[at]) + inside
    part = inside / int(stop[at] - first[at])
    low = (first[: at + 1], np.append(stop[:at], middle), np.append(work[:at], work[at] * part))
    high = (np.append(middle, first[at + 1 :]), stop[at:], np.append(work[at] * (1 - part), work[at + 1 :]))
    return low, high


def _merged(documents: list[tuple[Whole, Whole, Real]]) -> Held:
    lengths = [len(first) for first, _, _ in documents]
    ends = np.cumsum([0, *lengths])
    first, stop, work = (np.concatenate([one[side] for one in documents]) for side in range(3))
    return first, stop, work, [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)]
