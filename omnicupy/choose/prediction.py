"""The cost model: what a call should take, from the tiles of its mask and a few measured speeds of the device.

A work item (one block of query rows of one head) costs a time for each pair of its tiles, more for the pairs of
CAUSAL and PARTIAL ones, and a fixed time of its own. Work items go to the multiprocessors in the kernel's order,
each to the one that is free first. Beside that, q, k, v and the result pass between memory and an empty cache. Both
and the launch make the call's time. The speeds are data (`ceilings.json`), fitted by tools/explain/fitting.py; none
belongs to a workload.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.problem import Problem
from omnicupy.choose.ceilings import Ceiling, Device, FloatArray, TileCost
from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.block_mask import CAUSAL, PARTIAL, BlockMask
from omnicupy.masks.mask import Mask
from omnicupy.schedule.grid import Grid
from omnicupy.schedule.order import ordered, shares
from omnicupy.schedule.parts import Schedule, entry_costs, schedule, tiles_before

# What a work item is charged for, in this order: pairs of all tiles, of PARTIAL ones, of CAUSAL ones, those that a
# warpgroup skips, itself.
TERMS = ("tiles", "partial", "causal", "skipped", "items")
ELEMENT_BYTES = 2
NORM_POWER = 3  # power in which the times of multiprocessors and memory add up (docs/design.md)
REGISTERS = 65536  # of one multiprocessor
REGISTERS_A_THREAD = 256  # the sm80 kernel's accumulators leave it no fewer


@dataclass(frozen=True)
class Work:
    """The work items of a call. charges: (parts of block rows, 5), how much of each of TERMS a part has.

    order: part of each work item, in the order in which the kernel takes them.  slots: thread blocks that run
    at once.  resident: those of one multiprocessor, which share its speed.  megabytes: of q, k, v and the result.
    """

    charges: FloatArray
    order: NDArray[np.int64]
    slots: int
    resident: int = 1
    megabytes: float = 0.0

    @cached_property
    def total(self) -> FloatArray:
        """All work items' charges, (5,)."""
        total: FloatArray = np.bincount(self.order, minlength=len(self.charges)) @ self.charges
        return total


@dataclass(frozen=True)
class Prediction:
    """What a call should take. parts_us: by TERMS, "imbalance" (the last multiprocessor after the mean one), "launch"
    and "memory" (what it adds); they add up to it.  balance: mean load over the greatest, 1 where all finish together.
    """

    us: float
    parts_us: dict[str, float]
    balance: float
    slots: int
    items: int


def work_of(spec: AttnSpec, problem: Problem, blocks: BlockMask, device: Device) -> Work:
    """The work items of a call whose batch elements share one mask, cut as `spec` asks.

    Raises UnsupportedError for kernels whose work items the model does not describe.
    """
    if spec.kernel not in ("sm80", "sm90"):
        raise UnsupportedError(f"the cost model describes kernels 'sm80' and 'sm90', got {spec.kernel!r}")
    blocks = ordered(blocks)
    whole = spec.rows * spec.bc
    pairs = whole * blocks.tiles * (shares(blocks) if spec.kernel == "sm90" else 1.0)
    kinds = (pairs * (blocks.kinds == kind) for kind in (PARTIAL, CAUSAL))
    each = np.stack([pairs, *kinds, whole * blocks.tiles - pairs])
    grid = Grid.of(spec, problem, 1, sm_count=device.sm_count, l2_bytes=device.l2_bytes)
    parts = schedule(blocks.row_offsets, entry_costs(blocks), grid.workers, blocks.tiles)
    before = tiles_before(blocks.tiles)
    of_parts = [_within(before, amounts, parts) for amounts in each]
    charges = np.column_stack([*of_parts, np.ones(len(parts.rows))])
    section = grid.section(len(parts.rows))
    tiers = np.split(np.arange(len(parts.rows)), parts.tiers[:-1])
    order = np.concatenate([in_sections(tier, grid.workers.heads, section) for tier in tiers if len(tier)])
    resident, megabytes = _resident(spec), operand_bytes(problem) / 1e6
    items = np.tile(order, spec.value_pieces)
    return Work(charges, items, resident * device.sm_count, resident, megabytes)


def _within(before: NDArray[np.int64], amounts: FloatArray, parts: Schedule) -> FloatArray:
    """What the entries of each part hold of something, (P,). amounts: of each entry, alike in each of its tiles."""
    total = np.append(0.0, np.cumsum(amounts))
    found: FloatArray = np.interp(parts.end, before, total) - np.interp(parts.first, before, total)
    return found


def operand_bytes(problem: Problem) -> int:
    """Of q, k, v and the result together, in the dtypes that kernels have."""
    rows = problem.q_heads * problem.q_len + problem.kv_heads * problem.k_len
    return ELEMENT_BYTES * problem.batch * rows * (problem.head_dim + problem.value_dim)


def in_sections(order: NDArray[np.int64], heads: int, section: int) -> NDArray[np.int64]:
    """The part of each work item: all of a tier for some heads side by side, then for the next ones."""
    widths = [min(section, heads - first) for first in range(0, heads, section)]
    return np.concatenate([np.repeat(order, width) for width in widths])


def assign(work: Work, weights_us: FloatArray) -> NDArray[np.int64]:
    """The slot of each work item: each goes, in order, to the slot that is free first; (items,)."""
    costs = (work.charges @ weights_us)[work.order].tolist()
    free = [(0.0, slot) for slot in range(min(work.slots, len(costs)))]
    found = np.empty(len(costs), np.int64)
    for item, cost in enumerate(costs):
        time, slot = free[0]
        found[item] = slot
        heapq.heapreplace(free, (time + cost, slot))
    return found


def loads(work: Work, slots: NDArray[np.int64]) -> FloatArray:
    """The charges of each slot, (slots, 5), in what a multiprocessor alone would need for them."""
    used = int(slots.max(initial=0)) + 1
    found = np.zeros((used, len(TERMS)))
    for column in range(len(TERMS)):
        found[:, column] = np.bincount(slots, work.charges[work.order, column], minlength=used)
    return found * work.resident


def beside_memory(multiprocessor_us: float, memory_us: float) -> float:
    """How long both take beside each other: the longer one, and more where they are alike and wait for each other."""
    shorter, longer = sorted((multiprocessor_us, memory_us))
    return float(longer * (1 + (shorter / (longer or 1.0)) ** NORM_POWER) ** (1 / NORM_POWER))


def predict(work: Work, ceiling: Ceiling) -> Prediction:
    """The time of a call, and what it goes to."""
    weights = ceiling.weights_us
    times = loads(work, assign(work, weights)) @ weights
    count = min(work.slots, len(work.order))
    mean = work.total * work.resident / count * weights
    parts = dict(zip(TERMS, mean.tolist(), strict=True))
    parts["imbalance"] = float(times.max() - mean.sum())
    parts["launch"] = ceiling.launch_us
    last = float(times.max())
    parts["memory"] = beside_memory(last, work.megabytes * ceiling.megabyte_us) - last
    return Prediction(sum(parts.values()), parts, float(mean.sum() / times.max()), count, len(work.order))


def _resident(spec: AttnSpec) -> int:
    """Thread blocks of a variant that one multiprocessor holds."""
    if spec.kernel == "sm90":
        return spec.blocks
    shared = (SMEM_LIMIT_BYTES[spec.arch] + 1024) // (spec.smem_bytes + 1024)  # each block reserves 1 KiB
    return max(1, min(shared, REGISTERS // (REGISTERS_A_THREAD * spec.threads)))


def tile_us(cost: TileCost, cuts: Sequence[BlockMask], share: float) -> float:
    """What a call takes under a tile that competes, cheaply: tiles by kind, without a schedule.

    cuts: the masks of the call, cut to the tile.  share: heads that a multiprocessor works on, for each mask.
    """
    work = 0.0
    for blocks in cuts:
        partial = int((blocks.kinds == PARTIAL).sum())
        tiles_ps = (int(blocks.tiles.sum()) - partial) * cost.pair_ps + partial * cost.partial_ps
        work += 1e-6 * blocks.br * blocks.bc * tiles_ps + blocks.q_blocks * cost.block_us
    return cost.launch_us + share * work


def least_tile_us(cost: TileCost, masks: Sequence[Mask], share: float) -> float:
    """The same if tiles held nothing but allowed pairs: no cut takes less."""
    work = sum(
        1e-6 * mask.pairs * cost.pair_ps - (-mask.shape[0] // cost.br) * cost.block_us for mask in masks
    )
    return cost.launch_us + share * work
