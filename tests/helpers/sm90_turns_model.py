"""The two consumer warpgroups that take key tiles in turn, as processes: a transcription of
kernels/omni/sm90/key_turns/loop.cuh. Producer and scheduler are those of sm90_model.py.
"""

from __future__ import annotations

from sm90_block import Barrier, Block, Name, Place, Steps
from sm90_model import Consumer


class Exchange:
    """What the second warpgroup leaves in the buffer of its last values. turns: warps weigh in turn."""

    def __init__(self, block: Block, turns: bool) -> None:
        self.turns = turns
        self.left, self.taken = Barrier(1), Barrier(1)
        self.number: int | None = None  # the item whose sums are there
        for barriers in (block.k_empty, block.v_empty):
            barriers[:] = [Barrier(1) for _ in range(block.stages)]


class TakesTurns(Consumer):
    def __init__(self, block: Block, group: int, exchange: Exchange) -> None:
        super().__init__(block, group)
        self.exchange, self.place = exchange, Place(1)
        if group == 1:
            self.ring.next()

    def weigh(self) -> Steps:
        if self.exchange.turns:
            yield from self.block.turn[self.group].sync()
        yield from self.block.some_time()
        self.pass_turn()

    def pass_turn(self) -> None:
        if self.exchange.turns:
            self.block.turn[1 - self.group].arrive()

    def zero_dead(self) -> Steps:
        if self.is_dead:
            yield from self.values()
            yield from self.block.some_time()
            self.block.cleared[self.value_stage.stage] = self.block.groups  # alone

    def step(self, name: Name) -> None:
        super().step(name)
        self.ring.next()

    def first_tile(self, name: Name) -> Steps:
        yield from self.keys(name)
        yield from self.scored(name)
        yield from self.weigh()
        self.step(name)

    def next_tile(self, name: Name, in_turn: bool = False) -> Steps:
        yield from self.zero_dead()
        yield from self.keys(name)
        yield from self.values()
        yield from self.scored(name)
        yield from self.added()
        yield from self.weigh()
        self.step(name)

    def last_values(self) -> Steps:
        yield from self.zero_dead()
        yield from self.values()
        if self.group == 0:
            yield from self.added()

    def end_item(self, number: int, tiles: int) -> Steps:
        ring = self.ring
        if tiles % 2 and self.group == 0:
            ring.stage, ring.parity = before(ring).stage, before(ring).parity
        elif tiles % 2:
            ring.next()
        if self.group == 1:
            if tiles > 1:
                yield from self.leave(number)
            if tiles % 2:
                yield from self.weigh()
        elif tiles > 1:
            at = before(ring)
            yield from self.add_other(number, before(at) if tiles % 2 else at)

    def leave(self, number: int) -> Steps:
        stage = self.value_stage.stage
        yield from self.exchange.taken.wait(self.place.parity ^ 1)
        assert self.block.v[stage] == self.name_before
        assert self.exchange.number is None
        self.exchange.number = number
        self.exchange.left.arrive()
        self.place.next()

    def add_other(self, number: int, at: Place) -> Steps:
        yield from self.exchange.left.wait(self.place.parity)
        yield from self.block.some_time()
        assert self.exchange.number == number
        last = len(self.block.items[number].tiles) - 1
        assert self.block.v[at.stage] == (number, last if last % 2 else last - 1)
        self.exchange.number = None
        self.block.v_empty[at.stage].arrive()
        self.exchange.taken.arrive()
        self.place.next()

    def run(self) -> Steps:
        if self.group == 1:
            self.pass_turn()
        while (number := (yield from self.take())) >= 0:
            place, parity = self.block.q_place(self.slot)
            yield from self.block.q_full[place].wait(parity)
            assert self.block.q[place] == number
            tiles = len(self.block.items[number].tiles)
            self.is_dead = False
            for tile in range(self.group, tiles, 2):
                name = (number, tile)
                yield from self.first_tile(name) if tile == self.group else self.next_tile(name)
            self.block.q_empty[place].arrive()
            if self.group < tiles:
                yield from self.last_values()
            yield from self.end_item(number, tiles)
            self.block.work_empty[self.slot.stage].arrive()
            self.slot.next()
            self.block.events += 1


def before(place: Place) -> Place:
    """The position before."""
    if place.stage:
        return Place(place.stages, place.stage - 1, place.parity)
    return Place(place.stages, place.stages - 1, place.parity ^ 1)
