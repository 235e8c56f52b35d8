"""The producers of the Hopper kernels of the backward pass, one thread each: see sm90_backward_model.py."""

from __future__ import annotations

from typing import Any

from sm90_backward_block import KeyShared, QueryShared
from sm90_block import Name, Place, Steps


class Producer:
    """Takes items, loads what they own, then what their tiles need."""

    def __init__(self, shared: Any) -> None:
        self.shared, self.launch = shared, shared.launch
        self.ring, self.slot = Place(self.launch.stages), Place(2)

    def announce(self, number: int) -> Steps:
        shared, stage = self.shared, self.slot.stage
        yield from shared.work_empty[stage].wait(self.slot.parity ^ 1)
        shared.work[stage] = number
        shared.work_full[stage].arrive()

    def run(self) -> Steps:
        number = self.shared.number
        while number < len(self.launch.items):
            yield from self.announce(number)
            yield from self.load(number)
            self.slot.next()
            yield from self.shared.some_time()
            number = self.launch.take()
        yield from self.announce(-1)
        self.launch.end()

    def load(self, number: int) -> Steps:
        """All of an item."""
        yield from self.load_owned(number)
        for tile in range(len(self.launch.items[number].tiles)):
            yield from self.load_tile((number, tile))

    def load_owned(self, number: int) -> Steps:
        raise NotImplementedError

    def load_tile(self, name: Name) -> Steps:
        raise NotImplementedError


class KeyProducer(Producer):
    shared: KeyShared

    def load(self, number: int) -> Steps:
        before_keys = self.launch.stages - 1  # K and V need the place of those of the item before
        for tile in range(len(self.launch.items[number].tiles)):
            yield from self.load_tile((number, tile))
            before_keys -= 1
            if before_keys == 0:
                yield from self.load_owned(number)
        if before_keys > 0:
            yield from self.load_owned(number)

    def load_owned(self, number: int) -> Steps:
        shared = self.shared
        yield from shared.kv_empty.wait(self.launch.parity(self.slot) ^ 1)
        for buffer in (shared.k, shared.v):
            shared.start_copy(buffer, 0, number, shared.kv_full)

    def load_tile(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ring.stage
        yield from shared.q_empty[stage].wait(self.ring.parity ^ 1)
        shared.tiles[stage] = name
        for buffer in (shared.q, shared.rows):
            shared.start_copy(buffer, stage, name, shared.q_full[stage])
        yield from shared.dout_empty[stage].wait(self.ring.parity ^ 1)
        shared.start_copy(shared.dout, stage, name, shared.dout_full[stage])
        self.ring.next()


class QueryProducer(Producer):
    shared: QueryShared

    def __init__(self, shared: QueryShared) -> None:
        super().__init__(shared)
        self.tiles = Place(shared.key_tiles)

    def load_owned(self, number: int) -> Steps:
        shared = self.shared
        yield from shared.q_empty.wait(self.launch.parity(self.slot) ^ 1)
        for buffer in (shared.q, shared.dout):
            shared.start_copy(buffer, 0, number, shared.q_full)

    def load_tile(self, name: Name) -> Steps:
        shared = self.shared
        yield from shared.kv_empty[self.ring.stage].wait(self.ring.parity ^ 1)
        shared.tiles[self.tiles.stage] = name
        shared.spans[self.tiles.stage] = name  # on their way with K, on one barrier
        shared.start_copy(shared.kv, self.ring.stage, ("k", name), shared.kv_full[self.ring.stage])
        self.tiles.next()
        self.ring.next()
        yield from shared.kv_empty[self.ring.stage].wait(self.ring.parity ^ 1)
        shared.start_copy(shared.kv, self.ring.stage, ("v", name), shared.kv_full[self.ring.stage])
        self.ring.next()
