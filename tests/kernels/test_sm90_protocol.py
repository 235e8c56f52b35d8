"""The Hopper kernel's barriers under random schedules: nobody waits for ever, nothing is overwritten unread."""

from __future__ import annotations

import random
from collections.abc import Iterator

import entry_walk
import pytest
from entry_walk import EntryWalk
from sm90_block import Block, Item, Name, Named, Tile
from sm90_model import Consumer, play


def _items(draw: random.Random, groups: int) -> list[Item]:
    items = []
    for _ in range(draw.randint(1, 7)):
        runs = [draw.choice((1, 1, 2, 5)) for _ in range(draw.choice((0, 0, 1, 2, 3)))]  # of FULL tiles
        tiles = [Tile() for _ in range(sum(runs))]
        tiles += [Tile(dead=draw.random() < 0.5) for _ in range(draw.choice((0, 0, 1, 2, 3)))]
        if groups > 1:
            tiles += [Tile(draw.randint(1, 2**groups - 1)) for _ in range(draw.choice((0, 0, 1, 2, 4, 7)))]
        runs += [1] * (len(tiles) - sum(runs))
        items.append(Item(tuple(tiles), tuple(runs)))
    return items


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize("q_slots", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_any_schedule_ends_and_keeps_buffers_until_they_are_read(
    groups: int, stages: int, q_slots: int, scheduler: bool
) -> None:
    for seed in range(40):
        draw = random.Random(seed)
        block = Block(groups, stages, _items(draw, groups), q_slots, scheduler, draw)
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


@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_block_without_items_ends(groups: int, scheduler: bool) -> None:
    """Of calls on caches only the device knows how many items there are: fewer than thread blocks, maybe."""
    for seed in range(20):
        block = Block(groups, 2, [], 1, scheduler, random.Random(seed))
        play(block)
        assert not any(block.seen)


def _play_often(items: list[Item]) -> None:
    for seed in range(50):
        play(Block(2, 2, items, 1, False, random.Random(seed)))


def test_the_model_sees_a_buffer_given_back_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q given back before the last scores have read it."""

    def early(self: Consumer, name: Name) -> Iterator[None]:
        if name[1] == 2:
            self.block.q_empty[self.block.q_place(self.slot)[0]].arrive()
        yield from scored(self, name)

    scored = Consumer.scored
    monkeypatch.setattr(Consumer, "scored", early)
    items = [Item((Tile(),) * 3)] * 3
    with pytest.raises(AssertionError):
        _play_often(items)


def test_the_model_sees_a_slot_given_back_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work slot, which is read to the end of an item, before its tiles."""

    def early(self: Consumer, number: int) -> Iterator[None]:
        self.block.work_empty[self.slot.stage].arrive()
        found = yield from tiles_of(self, number)
        for _ in range(40):
            yield
        return found

    tiles_of = Consumer.tiles_of
    monkeypatch.setattr(Consumer, "tiles_of", early)
    items = [Item((Tile(),) * 3)] * 5
    with pytest.raises(AssertionError):
        _play_often(items)


def test_the_model_sees_a_run_that_is_walked_as_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its later tiles are never asked for."""
    monkeypatch.setattr(EntryWalk, "take", lambda self: _with_step(self, 99))
    with pytest.raises((AssertionError, IndexError)):
        _play_often([Item((Tile(),) * 4, (3, 1))] * 2)


def _with_step(walk: EntryWalk, step: int) -> entry_walk.Tile:
    walk.step = step
    return take(walk)


take = EntryWalk.take


def test_the_model_sees_values_that_were_not_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead rows of V, where groups do not wait for each other."""
    monkeypatch.setattr(Named, "sync", lambda self: iter(()))
    items = [Item((Tile(dead=True),) * 4)] * 3
    with pytest.raises(AssertionError):
        _play_often(items)


def test_the_model_sees_a_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping the tile whose V needs the stage that the warpgroup still holds."""

    def skip_always(self: Consumer, name: Name, any_before: bool) -> Iterator[None]:
        return (yield from skip(self, name, False))

    skip = Consumer.skip
    monkeypatch.setattr(Consumer, "skip", skip_always)
    tiles = (Tile(skips=2), Tile(skips=1), Tile(skips=1), Tile(skips=1), Tile(skips=2))
    with pytest.raises(AssertionError, match="wait for ever"):
        play(Block(2, 2, [Item(tiles)], 1, False, random.Random(0)))
