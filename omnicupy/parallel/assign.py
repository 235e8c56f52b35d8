"""Assignments: which rank gets which rows, in chunks that end with their document.

Every one gives each rank its share of the tokens, exact to a token, and tries to give it its share of the work: kernels
and frameworks want equal shapes, and the slowest rank sets the pace.

`two_ended`: documents by density (work a token). A rank takes a run from the dense end and a run from the light end, so
long that tokens and work both are its share. Each rank meets few documents and so needs few keys of others.
`nodes_first`: the same in each node, whole documents to nodes before: keys that cross a network are the dear ones.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from omnicupy.parallel import few, many
from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.line import Text
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import sums_before

FEW = 64  # documents, which are dealt faster as lists than as arrays


def contiguous(size: int, ranks: int) -> Owners:
    """Equal runs in order."""
    edges = np.arange(ranks + 1) * size // ranks
    kept = (edges[1:] - edges[:-1]).nonzero()[0]
    return Owners(np.concatenate([edges[kept], edges[-1:]]), kept, ranks)


def zigzag(size: int, ranks: int) -> Owners:
    """Rank r gets runs r and 2 * ranks - 1 - r of twice as many runs: even for one causal text."""
    shares = np.array(shares_of(size, ranks))
    low = shares[:-1] // 2
    # The last rank's two runs lie side by side.
    lengths = np.concatenate([low, shares[-1:], (shares[:-1] - low)[::-1]])
    each = np.arange(ranks)
    owner = np.concatenate([each, each[-2::-1]])
    kept = lengths.nonzero()[0]
    return Owners(sums_before(lengths[kept]), owner[kept], ranks)


def two_ended(chunks: Chunks, ranks: int) -> Owners:
    """Dense and light documents to each rank."""
    shares = shares_of(int(chunks.stop[-1]), ranks)
    if len(chunks.ends) > FEW:
        return many.joined(many.taken(chunks, [len(chunks.ends) - 1], shares, [range(ranks)]), ranks)
    line = chunks.line
    lengths, work, ends = line.lengths, line.work, chunks.ends.tolist()
    texts = [
        Text(one, lengths[first:stop], work[first:stop])
        for one, (first, stop) in zip(chunks.texts, pairwise(ends), strict=True)
    ]
    return few.joined(few.taken(texts, [len(texts)], shares, [range(ranks)]), ranks)


def shares_of(size: int, ranks: int) -> list[int]:
    """Tokens of each rank: equal, the first ones one more where that does not come out even."""
    share, more = divmod(size, ranks)
    return [share + 1] * more + [share] * (ranks - more)
