"""What a plan should take: the slowest rank's exchange, launch and work, by the speeds of a machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.parallel import check_numbers
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.runs import Real, Whole

ELEMENT_BYTES = 2

Moved: TypeAlias = Real | tuple[Real, Real]  # sent and received


@dataclass(frozen=True)
class Speeds:
    """What a prediction takes for granted.

    flops: of a rank, a second.  near, far: bytes a second that a rank receives or sends inside its node and across
    nodes.  near_s, far_s: seconds of an exchange beside its bytes.  launch_s: seconds of a launch.
    split_s: seconds that one more launch costs.  copied: bytes a second that a copy reads and writes.

    near and near_s fit the exchange alone of `bench parallel` on two H200 GPUs of one host (NCCL; packing and copies
    included): 0.067 ms for 0.1 MB, 0.117 ms for 10 MB, 0.434 ms for 67 MB, 0.617 ms for 101 MB. Two GPUs do not tell of
    networks: far is their nominal speed, and far_s is near_s and 20 us more.

    Raises TypeError for what is no number, ValueError for speeds that are not positive and seconds below 0.
    """

    flops: float = 600e12
    near: float = 180e9
    far: float = 50e9
    near_s: float = 65e-6
    far_s: float = 85e-6
    launch_s: float = 5e-6
    split_s: float = 10e-6
    copied: float = 3e12

    def __post_init__(self) -> None:
        for one in fields(self):
            value = check_numbers.number("Speeds", one.name, getattr(self, one.name))
            if not (value >= 0 if one.name.endswith("_s") else value > 0):  # not for NaN
                raise ValueError(
                    f"Speeds: {one.name} must be above 0 (a time 0 or more), got {value}; leave it out for the default"
                )


@dataclass(frozen=True)
class Heads:
    """Query heads, heads of keys and values, and columns of each."""

    q_heads: int
    kv_heads: int
    head_dim: int

    @property
    def key_bytes(self) -> int:
        """Of K and V of one token, in 16-bit numbers."""
        return 2 * self.kv_heads * self.head_dim * ELEMENT_BYTES


@dataclass(frozen=True)
class Setting:
    """ranks, in nodes of `node` each, with these speeds, for a model with these heads."""

    ranks: int
    node: int
    heads: Heads
    speeds: Speeds

    def work_s(self, pairs: Real) -> Real:
        """Seconds of the products of so many allowed pairs."""
        return pairs * (4.0 * self.heads.q_heads * self.heads.head_dim / self.speeds.flops)

    def exchange_s(self, sent: NDArray[np.float64] | Whole) -> Real:
        """Seconds that each rank's exchange takes. sent: keys from each rank to each other one."""
        return self.moved_s(*near_and_far(sent, self.node))

    def flows_s(self, flows: Flows) -> Real:
        """Seconds that each rank's exchange of these keys takes."""
        return self.moved_s(*flows.near_and_far(self.node))

    def near_s(self, keys: tuple[Real, Real]) -> Real:
        """Seconds of exchanges inside a node. keys: that ranks send, and that they receive."""
        moved = self.heads.key_bytes * np.maximum(*keys) / self.speeds.near
        found: Real = np.where(moved > 0, self.speeds.near_s, 0.0) + moved
        return found

    def moved_s(self, near: Moved, far: Moved) -> Real:
        """Seconds of exchanges. near, far: keys that ranks send, and that they receive, in a node and across nodes."""
        speeds = self.speeds
        near_s = self.heads.key_bytes * np.maximum(*near) / speeds.near
        far_s = self.heads.key_bytes * np.maximum(*far) / speeds.far
        wait = np.where(far_s > 0, speeds.far_s, np.where(near_s > 0, speeds.near_s, 0.0))
        found: Real = wait + np.maximum(near_s, far_s)
        return found

    def rank_s(self, pairs: Real, exchange_s: Real | float) -> Real:
        """Seconds of each rank: the exchange, then one launch on own and received keys."""
        return self.speeds.launch_s + exchange_s + self.work_s(pairs)

    def alone_s(self, pairs: float) -> float:
        """Seconds of the whole problem on one rank."""
        return self.speeds.launch_s + float(self.work_s(np.array(pairs)))


@dataclass(frozen=True, eq=False)
class Flows:
    """Keys that go from one rank to another one, in any number of parts: source, target and keys of each part."""

    source: Whole
    target: Whole
    keys: Whole
    ranks: int

    def near_and_far(self, node: int) -> tuple[Real, Real]:
        """Keys that each rank sends and receives, (2, ranks): inside its node, and across nodes."""
        if self.ranks <= node:
            return self._sums(self.keys), np.zeros((2, self.ranks))
        near = np.where(self.source // node == self.target // node, self.keys, 0)
        return self._sums(near), self._sums(self.keys - near)

    def _sums(self, keys: Whole) -> Real:
        return np.array([np.bincount(side, keys, self.ranks) for side in (self.source, self.target)])


def near_and_far(sent: NDArray[np.float64] | Whole, node: int) -> tuple[Real, Real]:
    """Keys that each rank sends and receives, (2, ranks): inside its node, and across nodes."""
    of_node = np.arange(len(sent)) // node
    inside = of_node[:, None] == of_node[None, :]
    near, far = np.where(inside, sent, 0), np.where(inside, 0, sent)
    return np.stack([near.sum(1), near.sum(0)]), np.stack([far.sum(1), far.sum(0)])


def pairs_of(work_before: tuple[Whole | Real, Real], rows: Owners) -> Real:
    """Allowed pairs of each rank's rows. work_before: places, and the pairs of the rows before each."""
    at = np.interp(rows.edges, *work_before)
    found: Real = np.bincount(rows.owner, at[1:] - at[:-1], rows.ranks).astype(np.float64)
    return found
