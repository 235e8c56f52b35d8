"""The Hopper kernel that makes all gradients with a warpgroup of its own for dQ
(kernels/omni/sm90/backward/fused_apart.cuh), as a form of the model in sm90_backward_model.py: "apart".
"""

from __future__ import annotations

from typing import Any

import sm90_backward_model as model
from sm90_backward_block import SHARED, WARPS, Launch
from sm90_backward_producer import KeyProducer
from sm90_block import Name, Place, Steps
from sm90_fused_model import END, FusedShared

RING, BUFFERS = 3, 2  # of dS, and of dQ on its way


class ApartShared(FusedShared):
    """As where warpgroups take turns at dQ, but for the places of dS and of dQ on its way, and what comes with dS."""

    def __init__(self, launch: Launch, number: int) -> None:
        super().__init__(launch, number)
        size = RING + launch.more_ring
        self.is_staged = True
        self.ds = [[[None] * WARPS for _ in range(launch.groups)] for _ in range(size)]
        self.ds_full = [self.barrier("ds_full", self.readers) for _ in range(size)]
        self.ds_empty = [self.barrier("ds_empty", WARPS) for _ in range(size)]
        self.ds_additions: list[Any] = [None] * size
        self.sums = [[None] * WARPS for _ in range(BUFFERS)]
        self.sums_at = [None] * BUFFERS
        self.sums_full = [self.barrier("sums_full", WARPS) for _ in range(BUFFERS)]
        self.sums_empty = [self.barrier("sums_empty", 1) for _ in range(BUFFERS)]

    def helpers(self) -> list[Steps]:
        return [self._add(buffer) for buffer in range(BUFFERS)]


class ScoreLoop(model.KeyLoop):
    shared: ApartShared

    def __init__(self, shared: ApartShared, group: int, warp: int) -> None:
        super().__init__(shared, group, warp)
        self.ds_ring = Place(len(shared.ds))

    def hand_over(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ds_ring.stage
        yield from shared.ds_empty[stage].wait(self.ds_ring.parity ^ 1)
        shared.ds[stage][self.group][self.warp] = name
        if (self.group, self.warp) == (0, 0):
            shared.ds_additions[stage] = name
        shared.ds_full[stage].arrive()
        self.ds_ring.next()


class QueryGradientLoop(model.Consumer):
    shared: ApartShared
    owned = "kv"

    def __init__(self, shared: ApartShared, group: int, warp: int) -> None:
        super().__init__(shared, group, warp)
        self.ds_ring, self.buffers = Place(len(shared.ds)), Place(BUFFERS)

    def check_owned(self) -> None:
        assert self.shared.k[0] == self.number

    def tile(self, name: Name) -> Steps:
        shared, stage = self.shared, self.ds_ring.stage
        yield from shared.ds_full[stage].wait(self.ds_ring.parity)
        self.give_back_early("ds_empty", shared.ds_empty[stage])
        addition = shared.ds_additions[stage]
        yield from self.wait_for_buffer()
        self.announce(addition)
        for _ in range(2):  # the product reads what all warps have left, until its end
            assert shared.ds[stage] == [[name] * WARPS] * self.launch.groups
            yield from shared.some_time()
        assert shared.ds[stage] == [[name] * WARPS] * self.launch.groups
        self.give_back("ds_empty", shared.ds_empty[stage])
        self.ds_ring.next()
        assert shared.sums[self.buffers.stage][self.warp] is None
        shared.sums[self.buffers.stage][self.warp] = name
        self.hand_on()
        self.seen.append(name)

    def end(self) -> Steps:
        for _ in range(BUFFERS):
            yield from self.wait_for_buffer()
            self.announce(END)
            self.hand_on()

    def wait_for_buffer(self) -> Steps:
        yield from self.shared.sums_empty[self.buffers.stage].wait(self.buffers.parity ^ 1)

    def announce(self, addition: Any) -> None:
        if self.warp == 0:
            self.shared.sums_at[self.buffers.stage] = addition

    def hand_on(self) -> None:
        self.shared.sums_full[self.buffers.stage].arrive()
        self.buffers.next()


SHARED["apart"] = ApartShared
model.PRODUCERS["apart"] = KeyProducer
model.CONSUMERS["apart"] = lambda group: ScoreLoop if group < 2 else QueryGradientLoop
