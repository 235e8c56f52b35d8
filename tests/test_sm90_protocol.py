"""The Hopper kernel's barriers under random schedules: nobody waits for ever, nothing is overwritten unread."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sm90_block import Block, Item, Name, Tile
from sm90_model import Consumer, play


def _items(draw: random.Random, groups: int) -> list[Item]:
    items = []
    for _ in range(draw.randint(1, 7)):
        tiles = [Tile() for _ in range(draw.choice((0, 0, 1, 2, 5, 9)))]
        tiles += [Tile(dead=draw.random() < 0.5) for _ in range(draw.choice((0, 0, 1, 2, 3)))]
        if groups > 1:
            tiles += [Tile(draw.randint(1, 2**groups - 1)) for _ in range(draw.choice((0, 0, 1, 2, 4, 7)))]
        items.append(Item(tuple(tiles)))
    return items


@pytest.mark.parametrize("crossing", [False, True], ids=["apart", "crossing"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_any_schedule_ends_and_keeps_buffers_until_they_are_read(
    groups: int, stages: int, crossing: bool
) -> None:
    for seed in range(150):
        draw = random.Random(seed)
        block = Block(groups, stages, _items(draw, groups), crossing, draw)
        play(block)
        for group, seen in enumerate(block.seen):
            wanted = {
                (number, tile)
                for number, item in enumerate(block.items)
                for tile, one in enumerate(item.tiles)
                if not one.skips >> group & 1
            }
            assert wanted <= set(seen)
            assert seen == sorted(seen)


def test_the_model_sees_a_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping the tile whose V needs the stage that the warpgroup still holds."""

    def skip_always(self: Consumer, name: Name, any_before: bool) -> Iterator[None]:
        return (yield from skip(self, name, False))

    skip = Consumer.skip
    monkeypatch.setattr(Consumer, "skip", skip_always)
    tiles = (Tile(skips=2), Tile(skips=1), Tile(skips=1), Tile(skips=1), Tile(skips=2))
    with pytest.raises(AssertionError, match="wait for ever"):
        play(Block(2, 2, [Item(tiles)], False, random.Random(0)))
