"""Producer and consumers of the Hopper kernels of the backward pass, as processes that random schedules interleave.

A transcription of kernels/omni/sm90/backward/: what each waits for and gives back, and what is in the buffers. A
consumer warp is a process. Whoever changes the order there changes it here first. Forms: "keys" (key_loop.cuh, a
warpgroup with dK and dV of its own keys), "roles" (ValueRole and KeyRole there) and "dq" (query_loop.cuh).
"""

from __future__ import annotations

from typing import Any, ClassVar

from sm90_backward_block import WARPS, KeyShared, Launch, QueryShared, Shared
from sm90_backward_producer import KeyProducer, QueryProducer
from sm90_block import Barrier, Name, Place, Steps

LONGEST_QUIET = 20000  # turns without an event after which everybody waits for ever


class Consumer:
    """A warp of a warpgroup, through all items of its block. owned_full, owned_empty: barriers of what an item owns."""

    owned: ClassVar[str]

    def __init__(self, shared: Any, group: int, warp: int) -> None:
        self.shared, self.launch = shared, shared.launch
        self.group, self.warp = group, warp
        self.ring, self.slot = Place(self.launch.stages), Place(2)
        self.number = -1
        self.seen = self.launch.seen.setdefault((shared.number, group, warp), [])

    def give_back(self, name: str, barrier: Barrier) -> None:
        if self.launch.early != name:
            barrier.arrive()

    def give_back_early(self, name: str, barrier: Barrier) -> None:
        """What a faulty kernel would do: as soon as it is there."""
        if self.launch.early == name:
            barrier.arrive()

    def run(self) -> Steps:
        shared = self.shared
        full, empty = getattr(shared, f"{self.owned}_full"), getattr(shared, f"{self.owned}_empty")
        while True:
            stage = self.slot.stage
            yield from shared.work_full[stage].wait(self.slot.parity)
            self.number = shared.work[stage]
            if self.number < 0:
                yield from self.end()
                return
            self.give_back_early("work_empty", shared.work_empty[stage])
            yield from full.wait(self.launch.parity(self.slot))
            self.give_back_early("owned", empty)
            self.check_owned()
            yield from self.owned_came()
            for tile in range(len(self.launch.items[self.number].tiles)):
                yield from self.tile((self.number, tile))
                self.launch.events += 1
                yield from shared.some_time()
                self.check_owned()
            yield from self.finish()
            self.check_owned()
            self.give_back("owned", empty)
            yield from shared.some_time()
            assert shared.work[stage] == self.number  # rows are stored by it
            self.give_back("work_empty", shared.work_empty[stage])
            self.slot.next()
            self.launch.events += 1

    def check_owned(self) -> None:
        raise NotImplementedError

    def owned_came(self) -> Steps:
        """What may begin ahead of the first tile."""
        yield from ()

    def tile(self, name: Name) -> Steps:
        raise NotImplementedError

    def finish(self) -> Steps:
        """What owned buffers are still needed for after the last tile."""
        yield from ()

    def end(self) -> Steps:
        """No work is left."""
        yield from ()


class KeyConsumer(Consumer):
    shared: KeyShared
    owned = "kv"
    tiles = 0  # so far

    def check_owned(self) -> None:
        assert self.shared.k[0] == self.shared.v[0] == self.number

    def wait_for_q(self) -> Steps:
        stage = self.ring.stage
        yield from self.shared.q_full[stage].wait(self.ring.parity)
        self.give_back_early("q_empty", self.shared.q_empty[stage])

    def wait_for_dout(self) -> Steps:
        stage = self.ring.stage
        yield from self.shared.dout_full[stage].wait(self.ring.parity)
        self.give_back_early("dout_empty", self.shared.dout_empty[stage])

    def reads(self, name: Name, *buffers: list[Any]) -> Steps:
        """A product or a pass over registers that reads buffers of the tile until its end."""
        for buffer in buffers:
            assert buffer[self.ring.stage] == name
        yield from self.shared.some_time()
        for buffer in buffers:
            assert buffer[self.ring.stage] == name
        self.check_owned()

    def step(self, name: Name) -> None:
        self.ring.next()
        self.tiles += 1
        self.seen.append(name)


class KeyLoop(KeyConsumer):
    def tile(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ring.stage
        yield from self.begin()
        yield from self.wait_for_dout()
        yield from self.reads(name, shared.q, shared.dout)
        yield from self.reads(name, shared.rows, shared.tiles)
        yield from self.hand_over(name)
        yield from self.reads(name, shared.q, shared.dout, shared.tiles)
        self.give_back("dout_empty", shared.dout_empty[stage])
        yield from self.reads(name, shared.q)
        self.give_back("q_empty", shared.q_empty[stage])
        self.step(name)

    def begin(self) -> Steps:
        """S^T may be started."""
        yield from self.wait_for_q()

    def hand_over(self, name: Name) -> Steps:
        """dS^T, for who needs more of it than dK."""
        yield from ()


class ValueRole(KeyConsumer):
    def tile(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ring.stage
        yield from self.wait_for_q()
        yield from self.reads(name, shared.q, shared.rows, shared.tiles)
        self.give_back("q_empty", shared.q_empty[stage])
        yield from shared.weights_empty.wait((self.tiles & 1) ^ 1)
        assert shared.weights[self.warp] is None
        shared.weights[self.warp] = name
        shared.weights_full.arrive()
        yield from self.wait_for_dout()
        yield from self.reads(name, shared.dout)
        self.give_back("dout_empty", shared.dout_empty[stage])
        self.step(name)


class KeyRole(KeyConsumer):
    def tile(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ring.stage
        yield from self.wait_for_q()  # delta comes with it
        yield from self.wait_for_dout()
        yield from self.reads(name, shared.dout)
        yield from shared.weights_full.wait(self.tiles & 1)
        self.give_back_early("weights_empty", shared.weights_empty)
        yield from self.reads(name, shared.rows)
        assert shared.weights[self.warp] == name
        shared.weights[self.warp] = None
        self.give_back("weights_empty", shared.weights_empty)
        self.give_back("dout_empty", shared.dout_empty[stage])
        yield from self.reads(name, shared.q)
        self.give_back("q_empty", shared.q_empty[stage])
        self.step(name)


class QueryLoop(Consumer):
    shared: QueryShared
    owned = "q"

    def __init__(self, shared: QueryShared, group: int, warp: int) -> None:
        super().__init__(shared, group, warp)
        self.tiles = Place(shared.key_tiles)

    def check_owned(self) -> None:
        assert self.shared.q[0] == self.shared.dout[0] == self.number

    def wait_for(self, at: Place) -> Steps:
        yield from self.shared.kv_full[at.stage].wait(at.parity)

    def tile(self, name: Name) -> Steps:
        shared, keys = self.shared, self.ring.copy()
        yield from self.wait_for(keys)
        assert shared.tiles[self.tiles.stage] == name
        is_skipped = self.launch.items[name[0]].tiles[name[1]].skips >> self.group & 1
        if is_skipped:
            shared.kv_empty[keys.stage].arrive()
        else:
            self.give_back_early("keys", shared.kv_empty[keys.stage])
        self.ring.next()
        yield from self.wait_for(self.ring)
        if is_skipped:
            shared.kv_empty[self.ring.stage].arrive()
        else:
            self.give_back_early("values", shared.kv_empty[self.ring.stage])
            yield from self.compute(name, keys)
        self.ring.next()
        self.tiles.next()

    def compute(self, name: Name, keys: Place) -> Steps:
        shared = self.shared
        yield from shared.some_time()
        assert shared.tiles[self.tiles.stage] == shared.spans[self.tiles.stage] == name
        assert shared.kv[self.ring.stage] == ("v", name)
        self.give_back("values", shared.kv_empty[self.ring.stage])
        yield from shared.some_time()
        assert shared.kv[keys.stage] == ("k", name)
        self.check_owned()
        self.give_back("keys", shared.kv_empty[keys.stage])
        self.seen.append(name)


# By form: the producer, and the consumer of a warpgroup.
PRODUCERS: dict[str, Any] = {"keys": KeyProducer, "roles": KeyProducer, "dq": QueryProducer}
CONSUMERS: dict[str, Any] = {
    "keys": lambda group: KeyLoop,
    "roles": lambda group: (ValueRole, KeyRole)[group],
    "dq": lambda group: QueryLoop,
}


def _processes(shared: Shared) -> dict[str, Steps]:
    launch = shared.launch
    made = {f"{shared.number} producer": PRODUCERS[launch.form](shared).run()}
    for group in range(launch.groups + launch.more_groups):
        for warp in range(WARPS):
            consumer = CONSUMERS[launch.form](group)(shared, group, warp)
            made[f"{shared.number} group {group} warp {warp}"] = consumer.run()
    for i, helper in enumerate(shared.helpers()):
        made[f"{shared.number} helper {i}"] = helper
    return made


def play(launch: Launch) -> list[Shared]:
    """Everybody takes steps in random order until all are done. Returns the thread blocks."""
    blocks, draw = launch.shared(), launch.draw
    running = {name: steps for block in blocks for name, steps in _processes(block).items()}
    quiet, events = 0, 0
    while running:
        for block in blocks:
            running |= {f"copy {id(copy)}": copy for copy in block.copies}
            block.copies.clear()
        name = draw.choice(list(running))
        for _ in range(draw.choice((1, 1, 5, 40))):  # some are far ahead of others
            if next(running[name], running) is running:
                del running[name]
                break
        quiet = 0 if launch.events != events else quiet + 1
        events = launch.events
        assert quiet < LONGEST_QUIET, f"{sorted(running)} wait for ever"
    return blocks
