"""A launch of the Hopper kernels of the backward pass, as a model: thread blocks, their barriers and buffers.

kernels/omni/sm90/backward/key_smem.cuh and query_smem.cuh in the words of sm90_block.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sm90_block import Barrier, Item, Name, Place, Steps

WARPS = 2  # of a group that are told apart; the kernels have four


class Shared:
    """What both kernels have: work slots, and a barrier's end for each arrival of every consumer warp.

    Buffers hold the names of what was copied into them, None while it comes.
    """

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch, self.number = launch, number
        self.readers = launch.groups * WARPS
        self.item_readers = self.readers + launch.more_groups * WARPS
        self.work = [-1, -1]
        self.work_full = [self.barrier("work_full", 1) for _ in range(2)]
        self.work_empty = [self.barrier("work_empty", self.item_readers) for _ in range(2)]
        self.copies: list[Steps] = []  # under way, finished in any order

    def barrier(self, name: str, count: int) -> Barrier:
        lost = self.launch.lost if name == self.launch.lost_at else None
        return Barrier(count) if lost is None else Leaky(count, drop=lost)

    def ring(self, name: str, count: int) -> list[Barrier]:
        return [self.barrier(name, count) for _ in range(self.launch.stages)]

    def helpers(self) -> list[Steps]:
        """Other threads of the block."""
        return []

    def some_time(self) -> Steps:
        for _ in range(self.launch.draw.randint(0, 3)):
            yield

    def start_copy(self, into: list[Any], stage: int, name: Any, full: Barrier) -> None:
        """One that the copy engine does meanwhile."""
        into[stage] = None
        self.copies.append(self._copy(into, stage, name, full))

    def _copy(self, into: list[Any], stage: int, name: Any, full: Barrier) -> Steps:
        yield from self.some_time()
        assert into[stage] is None
        into[stage] = name
        full.arrive()
        self.launch.events += 1


@dataclass
class Leaky(Barrier):
    """A barrier that loses one arrival. drop: which, counted from 1."""

    drop: int = 1

    def arrive(self) -> None:
        self.drop -= 1
        if self.drop != 0:
            super().arrive()


class KeyShared(Shared):
    """Of the kernel that makes dK and dV. K and V stay for an item; Q and dO of tile t use stage t % stages."""

    def __init__(self, launch: Launch, number: int) -> None:
        super().__init__(launch, number)
        n = launch.stages
        self.kv_full, self.kv_empty = self.barrier("kv_full", 2), self.barrier("kv_empty", self.item_readers)
        self.q_full, self.q_empty = (
            self.ring("q_full", 2),
            self.ring("q_empty", self.readers),
        )  # Q; lse2 and delta
        self.dout_full, self.dout_empty = self.ring("dout_full", 1), self.ring("dout_empty", self.readers)
        self.weights_full, self.weights_empty = (
            self.barrier(name, WARPS) for name in ("weights_full", "weights_empty")
        )
        self.k: list[Any] = [None]
        self.v: list[Any] = [None]
        self.q: list[Any] = [None] * n
        self.rows: list[Any] = [None] * n  # lse2 and delta
        self.dout: list[Any] = [None] * n
        self.tiles: list[Any] = [None] * n
        self.weights: list[Name | None] = [None] * WARPS


class QueryShared(Shared):
    """Of the kernel that makes dQ. Q and dO stay for an item; K and V of the tiles take turns in one ring of slots."""

    def __init__(self, launch: Launch, number: int) -> None:
        super().__init__(launch, number)
        n = launch.stages
        self.key_tiles = (n + 1) // 2 + launch.more_key_tiles
        self.q_full, self.q_empty = self.barrier("q_full", 2), self.barrier("q_empty", self.readers)
        self.kv_full, self.kv_empty = self.ring("kv_full", 1), self.ring("kv_empty", self.readers)
        self.q: list[Any] = [None]
        self.dout: list[Any] = [None]
        self.kv: list[Any] = [None] * n
        self.tiles: list[Any] = [None] * self.key_tiles
        self.spans: list[Any] = [None] * self.key_tiles


@dataclass
class Launch:
    """items: of all thread blocks, which take them by a counter.  blocks: how many.  form: as sm90_backward_model.py.

    lost_at, lost: a barrier that loses an arrival in each place, and which one.  early: a barrier on which consumers
    arrive before they have read.  more_key_tiles, more_ring: places for spans and for dS, more than the kernels have.
    """

    form: str
    groups: int
    stages: int
    blocks: int
    items: list[Item]
    draw: random.Random
    lost_at: str = ""
    lost: int = 1
    early: str = ""
    more_key_tiles: int = 0
    more_ring: int = 0
    events: int = 0
    counter: list[int] = field(default_factory=lambda: [0, 0])
    seen: dict[tuple[int, int, int], list[Name]] = field(default_factory=dict)  # by block, group, warp

    @property
    def more_groups(self) -> int:
        """Warpgroups that work on the items, and own no keys or queries."""
        return int(self.form == "apart")

    def shared(self) -> list[Shared]:
        return [SHARED[self.form](self, number) for number in range(self.blocks)]

    def take(self) -> int:
        """The next item; the first ones are those of the blocks' own numbers."""
        self.counter[0] += 1
        return self.counter[0] - 1 + self.blocks

    def end(self) -> None:
        """A block has handed out all; the last one leaves the counters as it found them."""
        self.counter[1] += 1
        if self.counter[1] == self.blocks:
            self.counter = [0, 0]

    def parity(self, slot: Place) -> int:
        """Of barriers that an item has once: items take turns at two slots."""
        return slot.stage


# By form.
SHARED: dict[str, Callable[[Launch, int], Shared]] = {
    "keys": KeyShared,
    "roles": KeyShared,
    "dq": QueryShared,
}
