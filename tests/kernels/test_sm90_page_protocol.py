"""Barriers of the Hopper kernels that read pages beside three warpgroups, and of packed tiles of two, under random
schedules: nobody waits for ever, nothing is overwritten unread.
"""

from __future__ import annotations

import random

import pytest
from sm90_block import Block, Item, Tile
from sm90_model import play
from sm90_page_model import PackedConsumer, PageBlock


def _items(draw: random.Random, skips: int) -> list[Item]:
    """skips: flags that a tile may have."""
    items = []
    for _ in range(draw.randint(0, 7)):
        tiles = [Tile(dead=draw.random() < 0.2) for _ in range(draw.choice((0, 1, 2, 3, 4, 9)))]
        if skips:
            tiles += [Tile(draw.randint(1, skips)) for _ in range(draw.choice((0, 0, 1, 3)))]
        items.append(Item(tuple(tiles)))
    return items


@pytest.mark.parametrize("q_slots", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_warps_that_bring_pages(stages: int, q_slots: int) -> None:
    for seed in range(60):
        draw = random.Random(seed)
        block = PageBlock(3, stages, _items(draw, 7), q_slots, draw)
        play(block, block.producers())
        for group, seen in enumerate(block.seen):
            every = [(i, t) for i, item in enumerate(block.items) for t, _ in enumerate(item.tiles)]
            wanted = {(i, t) for i, t in every if not block.items[i].tiles[t].skips >> group & 1}
            assert wanted <= set(seen)
            assert seen == sorted(seen)


@pytest.mark.parametrize("q_slots", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_packed_tiles_of_which_a_warpgroup_has_no_row(stages: int, q_slots: int) -> None:
    for seed in range(60):
        draw = random.Random(seed)
        block = Block(2, stages, _items(draw, 0), q_slots, True, draw)
        live = [draw.random() < 0.5 for _ in block.items]
        consumers = {
            "first": PackedConsumer(block, 0, lambda number: True).run(),
            "second": PackedConsumer(block, 1, live.__getitem__).run(),
        }
        play(block, consumers=consumers)
        every = [(i, t) for i, item in enumerate(block.items) for t, _ in enumerate(item.tiles)]
        assert block.seen == [every, every]
