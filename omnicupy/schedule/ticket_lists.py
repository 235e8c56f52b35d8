"""Lists by blocks of keys for the kernel that adds to sums of dQ in any order, and makes dQ of them in the background.

They are those of ordered_lists.py, and walked as those are, but nothing is played: in the place of its rank each
addition has the number of all additions to its sum. Who adds waits for nobody but who comes first to the sum, so parts
may be in any tier, and heads of a group follow each other. Nor do long blocks of keys keep others waiting: they are cut
where multiprocessors would have nothing to do otherwise, as where additions wait for nobody at all (parts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.ordered_lists import PLAYED_ITEM, OrderedLists, early_heads
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import walk_of


def ticket_lists(blocks: Sequence[KeyBlocks], workers: Workers) -> OrderedLists:
    """As ordered_lists. `ranks` holds numbers of additions, alike for all heads, and `head_ranks` their number:
    a part goes head by head.
    """
    tiles = sum(int(block.tiles.sum()) for block in blocks)
    found = key_lists(blocks, workers, n_ranks=max(1, tiles))
    parts = found.array("parts")
    walk = walk_of(found, blocks[0].q_blocks)
    lists = OrderedLists(**vars(found) | {"turn_heads": workers.heads})
    lists.array("ranks")[:tiles] = walk.numbers()
    costs = parts[:, 3].astype(np.int64) * workers.repeats + PLAYED_ITEM
    if early := early_heads(lists, costs, workers):
        lists = lists.with_halves(early, [lists.array("ranks")] * 2)
    return replace(lists, head_ranks=max(1, tiles))
