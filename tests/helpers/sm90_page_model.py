"""Who brings pages beside three warpgroups of consumers (kernels/omni/sm90/paged/page_warps.cuh), and a warpgroup that
has no row of a packed tile (kernels/omni/sm90/packed/loop.cuh), as parts of the model in sm90_model.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from sm90_block import Barrier, Block, Item, Name, Steps
from sm90_model import Consumer, Producer, Scheduler


class PageBlock(Block):
    """Besides consumers the warps of keys, of values and of queries give the slots of items back."""

    def __init__(
        self, groups: int, stages: int, items: list[Item], q_slots: int, draw: random.Random
    ) -> None:
        super().__init__(groups, stages, items, q_slots, True, draw)
        self.work_empty = [Barrier(groups + 3), Barrier(groups + 3)]

    def producers(self) -> dict[str, Steps]:
        roles: dict[str, Callable[[Producer], Steps]] = {
            "keys": _keys,
            "values": _values,
            "queries": _queries,
        }
        return {name: role(Producer(self)) for name, role in roles.items()} | {
            "scheduler": Scheduler(self).run()
        }


def _keys(of: Producer) -> Steps:
    while (number := (yield from of.item(of.slot))) >= 0:
        left = len(of.block.items[number].tiles)
        if left < of.ask_at:
            of.ask()
        for tile in range(left):
            if left - tile == of.ask_at:
                of.ask()
            yield from of.load_k((number, tile))
        _give_back(of, number)


def _values(of: Producer) -> Steps:
    while (number := (yield from of.item(of.slot))) >= 0:
        for tile in range(len(of.block.items[number].tiles)):
            yield from of.load_v((number, tile))
        _give_back(of, number)


def _queries(of: Producer) -> Steps:
    while (number := (yield from of.item(of.slot))) >= 0:
        yield from of.load_q(number, of.slot)
        _give_back(of, number)


def _give_back(of: Producer, number: int) -> None:
    assert of.block.work[of.slot.stage] == number
    of.block.work_empty[of.slot.stage].arrive()
    of.slot.next()


class PackedConsumer(Consumer):
    """A warpgroup of a packed tile: no tile is skipped, and items of which it has no row are given back unread."""

    def __init__(self, block: Block, group: int, live: Callable[[int], bool]) -> None:
        super().__init__(block, group)
        self.live = live  # has an item a row of the warpgroup?

    def tiles_of(self, number: int) -> Iterator[None]:
        count = len(self.block.items[number].tiles)
        for tile in range(count):
            name, in_turn = (number, tile), True
            if self.live(number):
                yield from self.next_tile(name, in_turn) if tile else self.first_tile(name)
            else:
                yield from self.pass_tile(name, tile > 0)
        return count > 0

    def pass_tile(self, name: Name, any_before: bool) -> Steps:
        if any_before:
            yield from self.zero_dead()
        yield from self.keys(name)
        if any_before:
            yield from self.block.turn[self.group].sync()
            self.block.turn[(self.group + 1) % self.block.groups].arrive()
        self.is_dead = self.tile(name).dead
        self.block.k_empty[self.ring.stage].arrive()
        if any_before:
            yield from self.values()
            yield from self.added()
        self.step(name)
