"""Producer and consumers of the Hopper kernel, as processes that random schedules can interleave.

A transcription of kernels/omni/sm90/work_list.cuh and forward/producer.cuh, consumer.cuh and loop.cuh: what each waits
for and gives back, and what is in the buffers meanwhile; a warpgroup is one process. Whoever changes the order there
changes it here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sm90_block import Barrier, Block, Name, Place, Steps, Tile

LONGEST_QUIET = 6000  # turns without an event after which everybody waits for ever


class WorkList:
    def __init__(self, block: Block) -> None:
        self.block, self.slot = block, Place(2)

    def announce(self, number: int) -> Steps:
        self.block.walks[self.slot.stage] = number
        yield from self.block.work_empty[self.slot.stage].wait(self.slot.parity ^ 1)
        self.block.work[self.slot.stage] = number
        self.block.work_full[self.slot.stage].arrive()
        self.slot.next()


class Scheduler:
    def __init__(self, block: Block) -> None:
        self.list = WorkList(block)

    def run(self) -> Steps:
        block = self.list.block
        last = Place(2, 1, 1)  # before the first slot
        for number in range(len(block.items)):
            last = self.list.slot.copy()
            yield from self.list.announce(number)
            yield from block.work_wanted.wait(number % 2)
            yield from block.some_time()
        yield from self.list.announce(-1)
        yield from block.work_empty[last.stage].wait(last.parity)  # then the block counts itself as ended


class Producer:
    def __init__(self, block: Block) -> None:
        self.block = block
        self.k, self.v, self.slot = Place(block.stages), Place(block.stages), Place(2)
        self.ask_at = 3 if block.scheduler and block.q_slots == 2 else 2  # tiles before an item's end

    def copy(self, into: list[Any], stage: int, name: Any, full: Barrier) -> Steps:
        """One that the copy engine does meanwhile."""
        yield from self.block.some_time()
        assert into[stage] is None
        into[stage] = name
        full.arrive()
        self.block.events += 1

    def load_k(self, name: Name) -> Steps:
        yield from self.block.k_empty[self.k.stage].wait(self.k.parity ^ 1)
        self.block.k[self.k.stage] = None
        self.block.copies.append(self.copy(self.block.k, self.k.stage, name, self.block.k_full[self.k.stage]))
        self.k.next()

    def load_v(self, name: Name) -> Steps:
        yield from self.block.v_empty[self.v.stage].wait(self.v.parity ^ 1)
        self.block.v[self.v.stage], self.block.cleared[self.v.stage] = None, 0
        self.block.copies.append(self.copy(self.block.v, self.v.stage, name, self.block.v_full[self.v.stage]))
        self.v.next()

    def load_q(self, number: int, slot: Place) -> Steps:
        place, parity = self.block.q_place(slot)
        yield from self.block.q_empty[place].wait(parity ^ 1)
        self.block.q[place] = None
        self.block.copies.append(self.copy(self.block.q, place, number, self.block.q_full[place]))

    def produce(self, number: int, slot: Place, has_q: bool) -> Steps:
        item = self.block.items[number]
        walk, left = item.walk(), len(item.tiles)
        if left <= self.ask_at:
            self.ask()
        name = (number, -1)
        if any_tile := left > 0:
            name = (number, walk.take().first)
            yield from self.load_k(name)
        if not has_q:
            yield from self.load_q(number, slot)
        while (left := left - 1) > 0:
            if left == self.ask_at:
                self.ask()
            before, name = name, (number, walk.take().first)
            yield from self.load_k(name)
            yield from self.load_v(before)
        yield from self.before_last()
        if any_tile:
            yield from self.load_v(name)
        assert not walk.has_next()

    def ask(self) -> None:
        if self.block.scheduler:
            self.block.work_wanted.arrive()

    def before_last(self) -> Steps:
        if self.block.scheduler and self.block.q_slots == 2:
            following = self.slot.copy()
            following.next()
            number = yield from self.item(following)
            if number >= 0:
                yield from self.load_q(number, following)

    def item(self, slot: Place) -> Iterator[None]:
        """Returns the number of the item that the scheduler has put into a slot, -1 at the end."""
        yield from self.block.work_full[slot.stage].wait(slot.parity)
        return self.block.work[slot.stage]

    def run(self) -> Steps:
        yield from self.run_behind() if self.block.scheduler else self.run_alone()

    def run_alone(self) -> Steps:
        words = WorkList(self.block)
        for number in range(len(self.block.items)):
            slot = words.slot.copy()
            yield from words.announce(number)
            yield from self.produce(number, slot, False)
        yield from words.announce(-1)

    def run_behind(self) -> Steps:
        has_q = False
        while (number := (yield from self.item(self.slot))) >= 0:
            assert self.block.walks[self.slot.stage] == number
            yield from self.produce(number, self.slot, has_q)
            self.slot.next()
            has_q = self.block.q_slots == 2


class Consumer:
    def __init__(self, block: Block, group: int) -> None:
        self.block, self.group = block, group
        self.ring, self.value_stage, self.slot = Place(block.stages), Place(block.stages), Place(2)
        self.name_before: Name = (-1, -1)
        self.is_dead = False

    def tile(self, name: Name) -> Tile:
        return self.block.items[name[0]].tiles[name[1]]

    def keys(self, name: Name) -> Steps:
        yield from self.block.k_full[self.ring.stage].wait(self.ring.parity)
        assert self.block.k[self.ring.stage] == name

    def values(self) -> Steps:
        yield from self.block.v_full[self.value_stage.stage].wait(self.value_stage.parity)
        assert self.block.v[self.value_stage.stage] == self.name_before

    def zero_dead(self) -> Steps:
        if self.is_dead:
            yield from self.values()
            yield from self.block.some_time()
            self.block.cleared[self.value_stage.stage] += 1
            yield from self.block.dead.sync()

    def skip(self, name: Name, any_before: bool) -> Iterator[None]:
        """Returns whether it skipped."""
        if any_before and self.ring.stage == self.value_stage.stage:
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

    def scored(self, name: Name) -> Steps:
        """Scores are there: K goes back."""
        yield from self.block.some_time()
        assert self.block.k[self.ring.stage] == name
        assert self.block.q[self.block.q_place(self.slot)[0]] == name[0]
        self.is_dead = self.tile(name).dead
        self.block.k_empty[self.ring.stage].arrive()

    def added(self) -> Steps:
        """Values are added: V goes back."""
        if self.tile(self.name_before).dead:
            assert self.block.cleared[self.value_stage.stage] == self.block.groups
        yield from self.block.some_time()
        assert self.block.v[self.value_stage.stage] == self.name_before
        self.block.v_empty[self.value_stage.stage].arrive()

    def step(self, name: Name) -> None:
        self.value_stage, self.name_before = self.ring.copy(), name
        self.ring.next()
        self.block.seen[self.group].append(name)
        self.block.events += 1

    def first_tile(self, name: Name) -> Steps:
        yield from self.keys(name)
        yield from self.scored(name)
        self.step(name)

    def next_tile(self, name: Name, in_turn: bool) -> Steps:
        yield from self.zero_dead()
        yield from self.keys(name)
        turns = in_turn and self.block.groups > 1
        if turns:
            yield from self.block.turn[self.group].sync()
        yield from self.values()
        if turns:
            self.block.turn[(self.group + 1) % self.block.groups].arrive()
        yield from self.scored(name)
        yield from self.added()
        self.step(name)

    def last_values(self) -> Steps:
        yield from self.zero_dead()
        yield from self.values()
        yield from self.added()

    def take(self) -> Iterator[None]:
        """Returns the number of the item in the slot, -1 at the end."""
        yield from self.block.work_full[self.slot.stage].wait(self.slot.parity)
        return self.block.work[self.slot.stage]

    def tiles_of(self, number: int) -> Iterator[None]:
        """Returns whether the warpgroup looked at any."""
        item = self.block.items[number]
        any_tile = False
        for tile in range(len(item.tiles)):
            name, in_turn = (number, tile), tile < item.unskipped
            if not in_turn and (yield from self.skip(name, any_tile)):
                continue
            yield from self.next_tile(name, in_turn) if any_tile else self.first_tile(name)
            any_tile = True
        return any_tile

    def run(self) -> Steps:
        if self.block.groups > 1 and self.group == self.block.groups - 1:
            self.block.turn[0].arrive()
        while (number := (yield from self.take())) >= 0:
            place, parity = self.block.q_place(self.slot)
            yield from self.block.q_full[place].wait(parity)
            assert self.block.q[place] == number
            any_tile = yield from self.tiles_of(number)
            self.block.q_empty[place].arrive()
            if any_tile:
                yield from self.last_values()
            yield from self.block.some_time()
            assert self.block.work[self.slot.stage] == number
            self.block.work_empty[self.slot.stage].arrive()
            self.slot.next()
            self.block.events += 1


def play(
    block: Block, producers: dict[str, Steps] | None = None, consumers: dict[str, Steps] | None = None
) -> None:
    """Everybody takes steps in random order until all are done. producers, consumers: others than the usual ones."""
    if producers is None:
        producers = {"producer": Producer(block).run()}
        if block.scheduler:
            producers["scheduler"] = Scheduler(block).run()
    if consumers is None:
        consumers = {f"group {group}": Consumer(block, group).run() for group in range(block.groups)}
    running = producers | consumers
    quiet, events = 0, 0
    while running:
        running |= {f"copy {id(copy)}": copy for copy in block.copies}
        block.copies.clear()
        name = block.draw.choice(list(running))
        for _ in range(block.draw.choice((1, 1, 5, 40))):  # some are far ahead of others
            if next(running[name], running) is running:
                del running[name]
                break
        quiet = 0 if block.events != events else quiet + 1
        events = block.events
        assert quiet < LONGEST_QUIET, f"{sorted(running)} wait for ever: {block}"
