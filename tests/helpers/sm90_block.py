"""The barriers and buffers of one thread block of the Hopper kernel (kernels/omni/sm90/ring.cuh), as a model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from entry_walk import EntryWalk

from omnicupy.masks.block_mask import FULL
from omnicupy.schedule.order import LAST

Steps = Iterator[None]
Name = tuple[int, int]  # item, tile


@dataclass
class Barrier:
    """An mbarrier: its phase ends with `count` arrivals; waiting is for the end of a phase, by its parity."""

    count: int
    left: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        self.left = self.count

    def arrive(self) -> None:
        assert self.left > 0
        self.left -= 1
        if not self.left:
            self.phase, self.left = self.phase + 1, self.count

    def wait(self, parity: int) -> Steps:
        while self.phase & 1 == parity:
            yield


class Named(Barrier):
    """A barrier for `count` warpgroups: who arrives may stay until all have."""

    def sync(self) -> Steps:
        before = self.phase
        self.arrive()
        while self.phase == before:
            yield


@dataclass
class Place:
    """RingIndex of ring.cuh."""

    stages: int
    stage: int = 0
    parity: int = 0

    def next(self) -> None:
        self.stage += 1
        if self.stage == self.stages:
            self.stage, self.parity = 0, self.parity ^ 1

    def copy(self) -> Place:
        return Place(self.stages, self.stage, self.parity)


@dataclass(frozen=True)
class Tile:
    """skips: a bit for each warpgroup.  dead: it holds dead keys."""

    skips: int = 0
    dead: bool = False


@dataclass(frozen=True)
class Item:
    """runs: how many tiles each entry holds; one each where it is empty."""

    tiles: tuple[Tile, ...]
    runs: tuple[int, ...] = ()

    def walk(self) -> EntryWalk:
        """The walk over the numbers of the tiles, as over keys of tiles one key wide."""
        runs = self.runs or (1,) * len(self.tiles)
        assert sum(runs) == len(self.tiles)
        words = [
            [FULL | count << 8, -1, first]
            for first, count in zip(accumulate(runs, initial=0), runs, strict=False)
        ]
        if words:
            words[-1][0] |= LAST
        return EntryWalk(np.array(words).reshape(-1, 3), 0, len(self.tiles), 1)

    @property
    def unskipped(self) -> int:
        """Tiles at the start that nobody skips."""
        return next((i for i, tile in enumerate(self.tiles) if tile.skips), len(self.tiles))


@dataclass
class Block:
    """Shared memory of one thread block. Buffers hold the names of what was copied into them, None while it comes."""

    groups: int
    stages: int
    items: list[Item]
    q_slots: int
    scheduler: bool
    draw: random.Random
    events: int = 0
    seen: list[list[Name]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, g = self.stages, self.groups
        self.k_full, self.v_full = [Barrier(1) for _ in range(n)], [Barrier(1) for _ in range(n)]
        self.k_empty, self.v_empty = [Barrier(g) for _ in range(n)], [Barrier(g) for _ in range(n)]
        self.q_full = [Barrier(1) for _ in range(self.q_slots)]
        self.q_empty = [Barrier(g) for _ in range(self.q_slots)]
        self.work_full, self.work_empty = [Barrier(1), Barrier(1)], [Barrier(g), Barrier(g)]
        self.work_wanted = Barrier(1)
        self.turn, self.dead = [Named(2) for _ in range(g)], Named(g)
        self.k: list[Name | None] = [None] * n
        self.v: list[Name | None] = [None] * n
        self.q: list[int | str | None] = [None] * self.q_slots
        self.work, self.walks = [-1, -1], [-1, -1]
        self.cleared = [0] * n  # groups that have zeroed their dead rows of V
        self.copies: list[Steps] = []  # under way, finished in any order
        self.seen = [[] for _ in range(g)]

    def q_place(self, slot: Place) -> tuple[int, int]:
        """Where the Q of the item in a slot lies, and its parity."""
        return (slot.stage, slot.parity) if self.q_slots == 2 else (0, slot.stage)

    def some_time(self) -> Steps:
        for _ in range(self.draw.randint(0, 3)):
            yield
