"""The cost model: what a call should take, from the tiles of its mask and a few measured speeds of the device.

A work item (one block of query rows of one head) costs a time for each pair of its tiles, more for the pairs of
CAUSAL and PARTIAL ones, and a fixed time of its own. Work items go to the multiprocessors in the kernel's order,
each to the one that is free first. Beside that, q, k, v and the result pass between memory and an empty cache. Both
and the launch make the call's time. The speeds are data (`ceilings.json`), one set for each kernel and head_dim, fitted
by bench/fitting.py; none belongs to a workload.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.blockmask import CAUSAL, PARTIAL, BlockMask
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.launch import section_of
from omnicupy.order import ordered, shares
from omnicupy.packing import entry_costs
from omnicupy.plan import crew_of, in_tiles
from omnicupy.schedule import schedule
from omnicupy.spec import SMEM_LIMIT_BYTES, AttnSpec

FloatArray = NDArray[np.float64]

SCHEMA = 4
FILE = Path(__file__).with_name("ceilings.json")
# What a work item is charged for, in this order: pairs of all tiles, of PARTIAL ones, of CAUSAL ones, those that a
# warpgroup skips, itself.
PARTS = ("tiles", "partial", "causal", "skipped", "items")
FITTED = ("pair_ps", "partial_ps", "causal_ps", "skipped_ps", "item_us", "launch_us", "megabyte_us")
ELEMENT_BYTES = 2
OVERLAP = 3  # power in which the times of multiprocessors and memory add up (docs/design.md)
REGISTERS = 65536  # of one multiprocessor
REGISTERS_A_THREAD = 256  # the sm80 kernel's accumulators leave it no fewer


@dataclass(frozen=True)
class Ceiling:
    """The speeds of a kernel at a head_dim (the kernel's) and a number of query rows in a tile, on one multiprocessor.

    pair_ps: picoseconds a pair of a full tile.  partial_ps, causal_ps: what a pair of such a tile takes longer.
    skipped_ps: what a pair takes whose warpgroup gives the tile back unread; such a pair counts for nothing else.
    item_us: microseconds a work item takes beside its tiles.  launch_us: of each call.  megabyte_us: of a megabyte of
    q, k, v and the result in memory.
    """

    kernel: str
    head_dim: int
    br: int
    pair_ps: float
    partial_ps: float
    causal_ps: float
    skipped_ps: float
    item_us: float
    launch_us: float
    megabyte_us: float

    def full_tflops(self, sm_count: int) -> float:
        """The rate of `sm_count` multiprocessors over full tiles alone, in TFLOP/s."""
        return 4 * self.head_dim * sm_count / self.pair_ps

    @property
    def weights_us(self) -> FloatArray:
        """Microseconds of each of PARTS."""
        of_pairs = (self.pair_ps, self.partial_ps, self.causal_ps, self.skipped_ps)
        return np.array([*(1e-6 * one for one in of_pairs), self.item_us])


@dataclass(frozen=True)
class Device:
    """What the model needs to know of a GPU."""

    name: str
    sm_count: int
    l2_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """The speeds of one device. sources: the records that they were fitted on."""

    device: Device
    of: tuple[Ceiling, ...]
    sources: tuple[str, ...] = ()

    def at(self, kernel: str, head_dim: int, br: int) -> Ceiling:
        """The speeds at a head_dim of the kernel, with tiles of `br` rows or the nearest height that was fitted there.

        Between the head_dims that were fitted they are interpolated. Below the least one a pair costs what it costs
        there (the exponentials stay), above the greatest in proportion to head_dim. Raises UnsupportedError for a
        kernel without any.
        """
        of_kernel = [one for one in self.of if one.kernel == kernel]
        if not of_kernel:
            raise UnsupportedError(
                f"no ceilings of kernel {kernel!r} on {self.device.name} are known; fit them from a benchmark record"
            )
        dims_of = {one.br: [other.head_dim for other in of_kernel if other.br == one.br] for one in of_kernel}
        height = min(
            dims_of,
            key=lambda known: (
                not min(dims_of[known]) <= head_dim <= max(dims_of[known]),
                abs(known - br),
                known,
            ),
        )
        found = sorted((one for one in of_kernel if one.br == height), key=lambda one: one.head_dim)
        dims = [one.head_dim for one in found]
        values = np.array([[getattr(one, name) for name in FITTED] for one in found])
        columns = (float(np.interp(head_dim, dims, column)) for column in values.T)
        picked = dict(zip(FITTED, columns, strict=True))
        for name in ("pair_ps", "item_us"):
            picked[name] *= max(1.0, head_dim / dims[-1])
        picked["item_us"] *= br / height
        return Ceiling(kernel, head_dim, height, **picked)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "device": asdict(self.device),
            "sources": list(self.sources),
            "ceilings": [
                {
                    name: float(f"{value:.5g}") if name in FITTED else value
                    for name, value in asdict(one).items()
                }
                for one in self.of
            ],
        }


def load(path: Path = FILE) -> list[Ceilings]:
    """The ceilings of every device in a file. Raises ValueError for a file that holds none, OSError."""
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        return [
            Ceilings(
                Device(**one["device"]),
                tuple(Ceiling(**ceiling) for ceiling in one["ceilings"]),
                tuple(one["sources"]),
            )
            for one in content["devices"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no ceilings ({error}); fit them anew") from error


def save(ceilings: Ceilings, path: Path = FILE) -> None:
    """Put the ceilings of a device into a file, before those of others and in place of older ones of its own."""
    others = [one for one in load(path) if one.device.name != ceilings.device.name] if path.exists() else []
    content = {"schema": SCHEMA, "devices": [one.as_json() for one in (ceilings, *others)]}
    path.write_text(json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Work:
    """The work items of a call. charges: (parts of block rows, 5), how much of each of PARTS a part has.

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
    """What a call should take. parts_us: by PARTS, "imbalance" (the last multiprocessor after the mean one), "launch"
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
    pairs = whole * (shares(blocks) if spec.kernel == "sm90" else np.ones(len(blocks.kinds)))
    kinds = (pairs * (blocks.kinds == kind) for kind in (PARTIAL, CAUSAL))
    each = np.stack([pairs, *kinds, whole - pairs], axis=1)
    total = np.concatenate([np.zeros((1, 4)), np.cumsum(each, axis=0)])
    crew, tiled = crew_of(spec, problem, 1, device.sm_count), in_tiles(spec, problem)
    parts = schedule(blocks.row_offsets, entry_costs(blocks), crew)
    charges = np.column_stack([total[parts.end] - total[parts.first], np.ones(len(parts.rows))])
    section = section_of(tiled, 1, len(parts.rows), device.sm_count, device.l2_bytes)
    tiers = np.split(np.arange(len(parts.rows)), parts.tiers[:-1])
    order = np.concatenate([_in_sections(tier, crew.heads, section) for tier in tiers if len(tier)])
    resident, megabytes = _resident(spec), operand_bytes(problem) / 1e6
    items = np.tile(order, spec.value_pieces)
    return Work(charges, items, resident * device.sm_count, resident, megabytes)


def operand_bytes(problem: Problem) -> int:
    """Of q, k, v and the result together, in the dtypes that kernels have."""
    rows = problem.q_heads * problem.q_len + problem.kv_heads * problem.k_len
    return 2 * ELEMENT_BYTES * problem.batch * rows * problem.head_dim


def _in_sections(order: NDArray[np.int64], heads: int, section: int) -> NDArray[np.int64]:
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
    found = np.zeros((used, len(PARTS)))
    for column in range(len(PARTS)):
        found[:, column] = np.bincount(slots, work.charges[work.order, column], minlength=used)
    return found * work.resident


def beside_memory(multiprocessor_us: float, memory_us: float) -> float:
    """How long both take beside each other: the longer one, and more where they are alike and wait for each other."""
    shorter, longer = sorted((multiprocessor_us, memory_us))
    return float(longer * (1 + (shorter / (longer or 1.0)) ** OVERLAP) ** (1 / OVERLAP))


def predict(work: Work, ceiling: Ceiling) -> Prediction:
    """The time of a call, and what it goes to."""
    weights = ceiling.weights_us
    times = loads(work, assign(work, weights)) @ weights
    count = min(work.slots, len(work.order))
    mean = work.total * work.resident / count * weights
    parts = dict(zip(PARTS, mean.tolist(), strict=True))
    parts["imbalance"] = float(times.max() - mean.sum())
    parts["launch"] = ceiling.launch_us
    last = float(times.max())
    parts["memory"] = beside_memory(last, work.megabytes * ceiling.megabyte_us) - last
    return Prediction(sum(parts.values()), parts, float(mean.sum() / times.max()), count, len(work.order))


def nearest(devices: Sequence[Ceilings], name: str | None, kernel: str) -> tuple[Ceilings, str]:
    """The ceilings of a device by its name, and "" or a sentence that says whose they are instead.

    kernel: which one they must be of, where those of any device are.
    """
    having = [one for one in devices if any(of.kernel == kernel for of in one.of)] or list(devices)
    for one in having:
        if one.device.name == name:
            return one, ""
    found = having[0]
    asked = f"{name} has not been measured" if name else "there is no GPU here"
    if any(one.device.name == name for one in devices):
        asked = f"kernel {kernel} has not been measured on {name}"
    return found, f"{asked}: these are the ceilings of {found.device.name}"


def _resident(spec: AttnSpec) -> int:
    """Thread blocks of a variant that one multiprocessor holds; the persistent kernel has one."""
    if spec.kernel == "sm90":
        return 1
    shared = (SMEM_LIMIT_BYTES[spec.arch] + 1024) // (spec.smem_bytes + 1024)  # each block reserves 1 KiB
    return max(1, min(shared, REGISTERS // (REGISTERS_A_THREAD * spec.threads)))
