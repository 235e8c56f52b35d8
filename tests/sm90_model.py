"""Producer and consumers of the Hopper kernel, as processes that random schedules can interleave.

A transcription of kernels/omni/sm90/producer.cuh, consumer.cuh and walk.cuh: what each waits for and gives back, and
what is in the buffers meanwhile; a warpgroup is one process. Whoever changes the order there changes it here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sm90_block import Barrier, Block, Name, Place, Steps, Tile

LONGEST_QUIET = 6000  # turns without an event after which everybody waits for ever


class Producer:
    def __init__(self, block: Block) -> None:
        self.block = block
        self.k, self.v, self.slot = Place(block.stages), Place(block.stages), Place(2)

    def copy(self, into: list[Name | None], place: Place, name: Name, full: list[Barrier]) -> Steps:
        into[place.stage] = None
        yield from self.block.some_time()
        into[place.stage] = name
        full[place.stage].arrive()
        place.next()
        self.block.events += 1

    def load_k(self, name: Name) -> Steps:
        yield from self.block.k_empty[self.k.stage].wait(self.k.parity ^ 1)
        yield from self.copy(self.block.k, self.k, name, self.block.k_full)

    def load_v(self, name: Name) -> Steps:
        yield from self.block.v_empty[self.v.stage].wait(self.v.parity ^ 1)
        yield from self.copy(self.block.v, self.v, name, self.block.v_full)

    def announce(self, number: int) -> Steps:
        yield from self.block.work_empty[self.slot.stage].wait(self.slot.parity ^ 1)
        self.block.work[self.slot.stage] = number
        self.block.work_full[self.slot.stage].arrive()
        self.slot.next()

    def run(self) -> Steps:
        block = self.block
        for number, item in enumerate(block.items):
            yield from self.announce(number)
            names = [(number, tile) for tile in range(len(item.tiles))]
            for name in names[:1]:
                yield from self.load_k(name)
            yield from block.q_empty.wait(
                self.slot.stage
            )  # of the slot before: the other one, and its parity flipped
            block.q = -1
            yield from block.some_time()
            block.q = number
            block.q_full.arrive()
            for before, name in pairwise(names):
                yield from self.load_k(name)
                yield from self.load_v(before)
            for name in names[-1:]:
                yield from self.load_v(name)
        yield from self.announce(-1)


class Consumer:
    def __init__(self, block: Block, group: int) -> None:
        self.block, self.group = block, group
        self.ring, self.before, self.slot = Place(block.stages), Place(block.stages), Place(2)
        self.name_before: Name = (-1, -1)
        self.is_dead = False

    def tile(self, name: Name) -> Tile:
        return self.block.items[name[0]].tiles[name[1]]

    def keys(self, name: Name) -> Steps:
        yield from self.block.k_full[self.ring.stage].wait(self.ring.parity)
        assert self.block.k[self.ring.stage] == name

    def values(self) -> Steps:
        yield from self.block.v_full[self.before.stage].wait(self.before.parity)
        assert self.block.v[self.before.stage] == self.name_before

    def zero_dead(self) -> Steps:
        if self.is_dead:
            yield from self.values()
            yield from self.block.dead.sync()

    def skip(self, name: Name, any_before: bool) -> Iterator[None]:
        """Returns whether it skipped."""
        if any_before and self.ring.stage == self.before.stage:
            return False
        yield from self.keys(name)
        if not self.tile(name).skips >> self.group & 1:
            return False
        self.block.k_empty[self.ring.stage].arrive()
        yield from self.block.v_full[self.ring.stage].wait(self.ring.parity)
        self.block.v_empty[self.ring.stage].arrive()
        self.ring.next()
        self.block.events += 1
        return True

    def scored(self, name: Name, is_last: bool) -> Steps:
        """Scores are there: K, and after the last ones Q, go back."""
        yield from self.block.some_time()
        assert self.block.k[self.ring.stage] == name
        assert self.block.q == name[0]
        if is_last:
            self.block.q_empty.arrive()
        self.is_dead = self.tile(name).dead
        self.block.k_empty[self.ring.stage].arrive()

    def added(self) -> Steps:
        """Values are added: V goes back."""
        yield from self.block.some_time()
        assert self.block.v[self.before.stage] == self.name_before
        self.block.v_empty[self.before.stage].arrive()

    def step(self, name: Name) -> None:
        self.before, self.name_before = self.ring.copy(), name
        self.ring.next()
        self.block.seen[self.group].append(name)
        self.block.events += 1

    def first_tile(self, name: Name, is_last: bool) -> Steps:
        yield from self.keys(name)
        yield from self.scored(name, is_last)
        self.step(name)

    def next_tile(self, name: Name, in_turn: bool, is_last: bool) -> Steps:
        yield from self.zero_dead()
        yield from self.keys(name)
        turns = in_turn and self.block.groups > 1
        if turns:
            yield from self.block.turn[self.group].sync()
        yield from self.values()
        if turns:
            self.block.turn[(self.group + 1) % self.block.groups].arrive()
        yield from self.scored(name, is_last)
        yield from self.added()
        self.step(name)

    def cross_tile(self, name: Name, is_last: bool) -> Steps:
        yield from self.keys(name)
        yield from self.values()
        yield from self.added()
        yield from self.scored(name, is_last)
        self.step(name)

    def last_values(self) -> Steps:
        yield from self.zero_dead()
        yield from self.values()
        yield from self.added()
        self.is_dead = False

    def take(self, at: Place) -> Iterator[None]:
        """Returns the number of the item in a slot, -1 at the end."""
        yield from self.block.work_full[at.stage].wait(at.parity)
        return self.block.work[at.stage]

    def open(self, at: Place, number: int, any_before: bool) -> Iterator[None]:
        """Returns the first tile that the warpgroup looks at."""
        item = self.block.items[number]
        yield from self.block.q_full.wait(at.stage)
        assert self.block.q == number
        for tile in range(len(item.tiles)):
            if tile < item.common or not (yield from self.skip((number, tile), any_before)):
                return tile
        return len(item.tiles)

    def further_tiles(self, number: int, first: int) -> Steps:
        item = self.block.items[number]
        for tile in range(first + 1, len(item.tiles)):
            is_last = self.block.crossing and tile + 1 == len(item.tiles)
            if tile >= item.common and (yield from self.skip((number, tile), True)):
                if is_last:
                    self.block.q_empty.arrive()
            else:
                yield from self.next_tile((number, tile), tile < item.common, is_last)

    def close(self) -> None:
        self.block.work_empty[self.slot.stage].arrive()
        self.slot.next()
        self.block.events += 1

    def run(self) -> Steps:
        if self.block.groups > 1 and self.group == self.block.groups - 1:
            self.block.turn[0].arrive()
        yield from self.run_crossing() if self.block.crossing else self.run_apart()

    def run_apart(self) -> Steps:
        while (number := (yield from self.take(self.slot))) >= 0:
            first = yield from self.open(self.slot, number, False)
            any_tile = first < len(self.block.items[number].tiles)
            if any_tile:
                yield from self.first_tile((number, first), False)
                yield from self.further_tiles(number, first)
            self.block.q_empty.arrive()
            if any_tile:
                yield from self.last_values()
            self.close()

    def run_crossing(self) -> Steps:
        first = -1
        while (number := (yield from self.take(self.slot))) >= 0:
            if first < 0:
                first = yield from self.open(self.slot, number, False)
            if first < len(self.block.items[number].tiles):
                yield from self.first_tile((number, first), first + 1 == len(self.block.items[number].tiles))
                while True:
                    yield from self.further_tiles(number, first)
                    first = -1
                    yield from self.zero_dead()
                    self.is_dead = False
                    following = self.slot.copy()
                    following.next()
                    number = yield from self.take(following)
                    if number < 0:
                        break
                    first = yield from self.open(following, number, True)
                    count = len(self.block.items[number].tiles)
                    if first == count:
                        break
                    yield from self.cross_tile((number, first), first + 1 == count)
                    self.close()
                yield from self.last_values()
            else:
                first = -1
                self.block.q_empty.arrive()
            self.close()


def play(block: Block) -> None:
    """Everybody takes steps in random order until all are done."""
    running = {"producer": Producer(block).run()}
    running |= {f"group {group}": Consumer(block, group).run() for group in range(block.groups)}
    quiet, events = 0, 0
    while running:
        name = block.draw.choice(list(running))
        for _ in range(block.draw.choice((1, 1, 5, 40))):  # some are far ahead of others
            if next(running[name], running) is running:
                del running[name]
                break
        quiet = 0 if block.events != events else quiet + 1
        events = block.events
        assert quiet < LONGEST_QUIET, f"{sorted(running)} wait for ever: {block}"
