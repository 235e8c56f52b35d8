"""The barriers of key tiles taken in turn, under random schedules: nobody waits for ever, no tile is lost unread."""

from __future__ import annotations

import random

import pytest
from sm90_block import Block, Item, Tile
from sm90_model import play
from sm90_turns_model import Exchange, TakesTurns


def _play(stages: int, q_slots: int, seed: int, turns: bool) -> Block:
    draw = random.Random(seed)
    counts = [draw.choice((0, 1, 1, 2, 3, 4, 5, 8, 13)) for _ in range(draw.randint(1, 7))]
    items = [Item(tuple(Tile(dead=draw.random() < 0.3) for _ in range(count))) for count in counts]
    block = Block(2, stages, items, q_slots, True, draw)
    exchange = Exchange(block, turns)
    play(block, consumers={f"group {i}": TakesTurns(block, i, exchange).run() for i in range(2)})
    return block


@pytest.mark.parametrize("q_slots", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_any_schedule_ends_and_each_tile_is_read_by_one(stages: int, q_slots: int) -> None:
    for seed in range(60):
        block = _play(stages, q_slots, seed, True)
        for group, seen in enumerate(block.seen):
            mine = [(n, i) for n, item in enumerate(block.items) for i in range(group, len(item.tiles), 2)]
            assert seen == mine


def _play_some_without_turns() -> None:
    for seed in range(60):
        _play(3, 1, seed, False)


def test_without_turns_a_wait_is_for_another_tile() -> None:
    """With three stages both warpgroups come to each, and a parity does not say whose tile has come."""
    with pytest.raises(AssertionError):
        _play_some_without_turns()
