"""The Hopper kernel that makes all gradients (kernels/omni/sm90/backward/fused_loop.cuh), as a form of the model in
sm90_backward_model.py: "fused". Warpgroups hand dS to each other and make dQ of the tiles in turn. "ahead" is the same
with S^T of the next tile started ahead of that.
"""

from __future__ import annotations

from typing import Any

import sm90_backward_model as model
from sm90_backward_block import SHARED, WARPS, KeyShared, Launch
from sm90_backward_producer import KeyProducer
from sm90_block import Name, Place, Steps

END = "end"


class FusedShared(KeyShared):
    """ds: a ring of dS, a panel a group. sums: with two groups each has one that a thread of its own adds to dQ."""

    def __init__(self, launch: Launch, number: int) -> None:
        super().__init__(launch, number)
        self.lag = 1 if launch.groups == 3 else 0
        self.is_staged = launch.groups == 2
        size = self.lag + 2 + launch.more_ring
        self.ds: list[Any] = [[[None] * WARPS for _ in range(launch.groups)] for _ in range(size)]
        self.ds_full = [self.barrier("ds_full", self.readers) for _ in range(size)]
        self.ds_empty = [self.barrier("ds_empty", WARPS) for _ in range(size)]
        self.sums: list[Any] = [[None] * WARPS for _ in range(launch.groups)]
        self.sums_at: list[Any] = [None] * launch.groups
        self.sums_full = [self.barrier("sums_full", WARPS) for _ in range(launch.groups)]
        self.sums_empty = [self.barrier("sums_empty", 1) for _ in range(launch.groups)]
        self.added: list[tuple[Name, int]] = []  # to dQ: a tile, a warp's share of it

    def helpers(self) -> list[Steps]:
        return [self._add(group) for group in range(self.launch.groups)] if self.is_staged else []

    def _add(self, group: int) -> Steps:
        parity = 0
        while True:
            yield from self.sums_full[group].wait(parity)
            name = self.sums_at[group]
            if name == END:
                return
            assert self.sums[group] == [name] * WARPS
            yield from self.some_time()
            assert self.sums[group] == [name] * WARPS
            self.added += [(name, warp) for warp in range(WARPS)]
            self.sums[group] = [None] * WARPS
            self.sums_empty[group].arrive()
            self.launch.events += 1
            parity ^= 1


class FusedLoop(model.KeyLoop):
    shared: FusedShared

    def __init__(self, shared: FusedShared, group: int, warp: int) -> None:
        super().__init__(shared, group, warp)
        self.ds_ring, self.done = Place(len(shared.ds)), 0
        self.places: list[Name] = []  # of this item's tiles

    def hand_over(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ds_ring.stage
        yield from shared.ds_empty[stage].wait(self.ds_ring.parity ^ 1)
        shared.ds[stage][self.group][self.warp] = name
        shared.ds_full[stage].arrive()

    def tile(self, name: Name) -> Steps:
        if name[1] == 0:
            self.places = []
        self.places.append(name)
        yield from super().tile(name)  # counts self.tiles on
        self.ds_ring.next()
        yield from self.begin_next(name[1] + 1)
        if len(self.places) > self.shared.lag:
            yield from self.make_query_gradient(self.shared.lag + 1)

    def begin_next(self, tile: int) -> Steps:
        yield from ()

    def finish(self) -> Steps:
        tiles = len(self.launch.items[self.number].tiles)
        for late in range(self.shared.lag, 0, -1):
            if late <= tiles:
                yield from self.make_query_gradient(late)

    def make_query_gradient(self, late: int) -> Steps:
        shared, number = self.shared, self.tiles - late
        if number % self.launch.groups != self.group:
            return
        name, at = self.places[-late], self._before(late)
        yield from shared.ds_full[at.stage].wait(at.parity)
        self.give_back_early("ds_empty", shared.ds_empty[at.stage])
        if shared.is_staged:
            yield from shared.sums_empty[self.group].wait((number // self.launch.groups & 1) ^ 1)
            if self.warp == 0:
                shared.sums_at[self.group] = name
        for _ in range(2):  # a product reads what all warps have left, until its end
            assert shared.ds[at.stage] == [[name] * WARPS] * self.launch.groups
            yield from shared.some_time()
        assert shared.ds[at.stage] == [[name] * WARPS] * self.launch.groups
        self.check_owned()  # and K
        self.give_back("ds_empty", shared.ds_empty[at.stage])
        if not shared.is_staged:
            shared.added.append((name, self.warp))
            return
        assert shared.sums[self.group][self.warp] is None
        shared.sums[self.group][self.warp] = name
        shared.sums_full[self.group].arrive()

    def end(self) -> Steps:
        shared = self.shared
        if not shared.is_staged:
            return
        turn, used = self.tiles % self.launch.groups, self.tiles // self.launch.groups
        parity = (used & 1) ^ (turn > self.group)
        yield from shared.sums_empty[self.group].wait(parity ^ 1)
        if self.warp == 0:
            shared.sums_at[self.group] = END
        shared.sums_full[self.group].arrive()

    def _before(self, late: int) -> Place:
        """Where the tile `late` tiles ago lies in the ring, with its parity."""
        size = len(self.shared.ds)
        count = self.tiles - late
        return Place(size, count % size, count // size & 1)


class AheadLoop(FusedLoop):
    def owned_came(self) -> Steps:
        yield from self.begin_next(0)

    def begin(self) -> Steps:
        yield from ()

    def begin_next(self, tile: int) -> Steps:
        if tile < len(self.launch.items[self.number].tiles):
            yield from self.wait_for_q()


SHARED["fused"] = SHARED["ahead"] = FusedShared
model.PRODUCERS["fused"] = model.PRODUCERS["ahead"] = KeyProducer
model.CONSUMERS["fused"] = lambda group: FusedLoop
model.CONSUMERS["ahead"] = lambda group: AheadLoop
