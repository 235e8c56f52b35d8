"""How many heads of keys are worked on side by side: a section, all of whose parts of a tier come before the next's.

Parts of one head that begin together walk over the same queries, and where additions have an order they wait for each
other. Many heads side by side keep them apart, and leave less to do for a few multiprocessors at the end. But what a
section reads and adds to should stay in the L2 cache. It does where parts that begin together add to the same sums; of
documents that are packed, or of windows, each part has few sums in common with the others (docs/tries.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.parts import Workers

# So many heads, or as many more as give each multiprocessor a part, where at least that share of the tiles has work.
SIDE_BY_SIDE, SHARED = 8, 1 / 8
# Elsewhere so many where additions have an order, one or two would have work for all multiprocessors, and that many
# stay in half of the L2 cache.
IN_L2 = 3


def section_of(blocks: Sequence[KeyBlocks], parts: int, workers: Workers) -> int:
    """Heads of keys side by side, where a kernel makes all gradients. blocks: of each mask.  parts: under all masks.
    workers: `side_by_side` says how many heads stay in half of the L2 cache.
    """
    tiles = sum(int(block.tiles.sum()) for block in blocks)
    enough = max(1, round(workers.sm_count / max(1, parts)))
    if tiles >= SHARED * sum(block.q_blocks * block.k_blocks for block in blocks):
        return even_section(workers.heads, max(SIDE_BY_SIDE, enough))
    found = min(workers.heads, enough, workers.side_by_side)
    if workers.ordered_sums and found <= 2 and workers.side_by_side >= IN_L2:
        return min(workers.heads, SIDE_BY_SIDE)
    return found


def even_section(heads: int, most: int) -> int:
    """Of as few sections as up to `most` heads allow, the largest: the last one is hardly smaller."""
    return -(-heads // -(-heads // most))
