"""The cost model of the backward pass: what its kernels should take, from the lists that they walk.

A pass is a launch that prepares, the kernels that walk tiles, and a launch that converts dQ where one kernel makes all
gradients. What the first and the last one take is what they read and write. Where a warp of the kernel between them
does their work, that kernel takes longer by what this warp reads and writes. The kernels between them take work items
(a part of a block of keys, or of queries, of one head) in the order of their lists, each multiprocessor the next one
when it is free; the kernel of dQ takes its items behind those of dK and dV, on multiprocessors that these leave. A work
item costs a time for each pair of its tiles, more for those of CAUSAL and PARTIAL ones, and a fixed time of its own.
The speeds are data (`ceilings.json`), fitted by tools/explain/backward_fitting.py; none belongs to a workload.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.check_backward import GRADIENTS
from omnicupy.call.problem import Problem
from omnicupy.choose.backward_ceilings import BackwardCeilings, KernelCeiling
from omnicupy.choose.backward_traffic import may_prepare, traffic
from omnicupy.choose.backward_waits import Waits, waited_share
from omnicupy.choose.ceilings import Device, FloatArray
from omnicupy.choose.prediction import beside_memory, in_sections
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_kernel import MAKES_ALL, BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.masks.block_mask import CAUSAL, KIND, PARTIAL
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import BackwardGrid, lists_of, makes_all_part
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.order import GROUP_ROWS, SKIP_SHIFT
from omnicupy.schedule.ordered_lists import OrderedLists

# What a work item is charged for, in this order: pairs of all tiles, of PARTIAL ones, of CAUSAL ones, those that a
# warpgroup skips, itself, and itself where it is a part of a split block.
TERMS = ("tiles", "partial", "causal", "skipped", "items", "merges")


@dataclass(frozen=True)
class KernelWork:
    """The work items of one kernel. kernel: with its part and tile.  charges: (parts, 6), how much of each of TERMS a
    part has.

    order: part of each work item, in the order in which the kernel takes them.  waits: of a kernel that adds in one
    order, the share by which its waits lengthen it.
    """

    kernel: BackwardKernel
    charges: FloatArray
    order: NDArray[np.int64]
    waits: float = 0.0

    @property
    def owned(self) -> int:
        """Tokens that a thread block owns."""
        return self.kernel.br if self.kernel.part == "dq" else self.kernel.bc

    @property
    def total(self) -> FloatArray:
        """All work items' charges, (6,)."""
        found: FloatArray = np.bincount(self.order, minlength=len(self.charges)) @ self.charges
        return found


@dataclass(frozen=True)
class PassWork:
    """What a backward pass works on. kernels: those that walk tiles, in the order of their launches.  slots:
    multiprocessors.

    pairs: allowed ones, of all query heads.  The rest: as of backward_traffic.Traffic.
    """

    kernels: tuple[KernelWork, ...]
    slots: int
    pairs: int
    prepared: float
    converted: float
    beside: float
    megabytes: float

    @property
    def items(self) -> int:
        """Work items of all kernels."""
        return sum(len(one.order) for one in self.kernels)


@dataclass(frozen=True)
class PassPrediction:
    """What a backward pass should take. parts_us: by TERMS, of the mean multiprocessor, "waits" for the order of
    additions, "imbalance" (the last multiprocessor after the mean one), "beside" (lse2, delta and dQ made inside),
    "prepare", "convert", "launch" and "memory" (what it adds); they add up to it.

    kernels_us: what each kernel keeps the mean multiprocessor busy.  balance: mean load over the greatest.
    bound_us: the longer one of two times that no schedule can beat: that of the allowed pairs alone at the rate of FULL
    tiles, and that of memory.
    """

    us: float
    parts_us: dict[str, float]
    kernels_us: dict[str, float]
    balance: float
    slots: int
    items: int
    bound_us: float


def keys_part(
    spec: BackwardSpec,
    problem: Problem,
    masks: Sequence[Mask],
    *,
    deterministic: bool,
    wanted: Sequence[str] = GRADIENTS,
) -> str:
    """Which kernel of `spec` makes dK and dV, and dQ too where it makes all: as gpu/backward_planning.py chooses."""
    if not ("q" in wanted and ("k" in wanted or "v" in wanted)):
        return "dkdv"
    return makes_all_part(spec.kernels(), problem, masks, deterministic=deterministic)


def work_of(
    spec: BackwardSpec,
    problem: Problem,
    mask: Mask,
    device: Device,
    *,
    deterministic: bool = True,
    wanted: Sequence[str] = GRADIENTS,
    keys: str = "",
    waits: Waits = waited_share,
) -> PassWork:
    """The work of a backward pass whose batch elements share one mask. wanted: which gradients.  keys: the name of the
    kernel that makes dK and dV, where it is known; "" for that of keys_kernel.  waits: plays a launch in one order.

    Raises UnsupportedError for kernels whose work items the model does not describe.
    """
    if spec.kernel != "sm90":
        raise UnsupportedError(
            f"the cost model of the backward pass describes kernel 'sm90', got {spec.kernel!r}; measure it with "
            "`bench --pass bwd`"
        )
    known = bool(keys)
    keys = keys or keys_part(spec, problem, (mask,), deterministic=deterministic, wanted=wanted)
    makes_all = spec.part(keys).part in MAKES_ALL
    parts = [keys] if makes_all or "k" in wanted or "v" in wanted else []
    if not makes_all and "q" in wanted:
        parts.append("dq")
    kernels = tuple(_kernel_work(spec.part(part), problem, mask, device, known, waits) for part in parts)
    prepares = any(one.kernel.prepares for one in kernels)
    moved = traffic(spec, problem, mask, keys, prepares=prepares, wanted=wanted)
    pairs = mask.pairs * problem.q_heads * problem.batch
    return PassWork(kernels, device.sm_count, pairs, *moved)


def _kernel_work(
    kernel: BackwardKernel, problem: Problem, mask: Mask, device: Device, known: bool, waits: Waits
) -> KernelWork:
    """The work items of one kernel, from the lists that it walks. known: it is known whether it prepares."""
    grid = BackwardGrid(kernel, problem, 1, device.sm_count, device.l2_bytes)
    lists = lists_of(kernel, (mask,), grid.workers)
    if not known and may_prepare(kernel, problem, mask) and grid.prepares_beside(lists):
        kernel = replace(kernel, prepares=True)
    section, heads = lists.section or grid.section(lists.n_parts), grid.workers.heads
    parts = np.arange(lists.n_parts)
    turn, early = (lists.turn_heads, lists.early_heads) if isinstance(lists, OrderedLists) else (heads, 0)
    behind = np.split(parts + lists.n_parts * (early > 0), lists.tiers[:-1])
    tiers = [tier for tier in behind if len(tier)]
    turns = [min(turn, heads - first) for first in range(early, heads, turn)]
    of_turns = [in_sections(tier, width, section) for width in turns for tier in tiers]
    order = np.concatenate([in_sections(parts, early, section), *of_turns] if early else of_turns)
    charges = _charges(lists, kernel, grid.workers.repeats)
    waited = waits(lists, grid.workers, kernel.warpgroups) if kernel.part == "ordered" else 0.0
    return KernelWork(kernel, charges, order, waited)


def _charges(lists: BlockLists, kernel: BackwardKernel, repeats: int) -> FloatArray:
    """What each part is charged for, (parts, 6). repeats: heads that work on an entry in turn."""
    entries, parts = lists.array("entries"), lists.array("parts")
    tiles = -(-(entries[:, 0] >> 8) // np.int32(kernel.step))
    pairs = float(kernel.br * kernel.bc * repeats) * tiles
    skipped = np.zeros(len(entries))
    if kernel.part == "dq":
        groups = kernel.br // GROUP_ROWS
        flags = entries[:, 0] >> SKIP_SHIFT
        skipped += sum((flags >> group & 1) for group in range(groups)) / groups * pairs
    kinds = entries[:, 0] & KIND
    seen = pairs - skipped
    amounts = np.stack([seen, seen * (kinds == PARTIAL), seen * (kinds == CAUSAL), skipped])
    before = np.concatenate([np.zeros((4, 1)), np.cumsum(amounts, axis=1)], axis=1)
    places = np.append(0, np.cumsum(tiles))
    first = np.minimum(parts[:, 2], len(entries))
    stop = np.searchsorted(places, places[first] + parts[:, 3])  # parts begin and end with entries
    of_parts = (before[:, stop] - before[:, first]).T
    splits = lists.array("splits")[:, 0] >= 0
    found: FloatArray = np.column_stack([of_parts, np.ones(len(parts)), splits])
    return found


def ceilings_of(work: PassWork, ceilings: BackwardCeilings) -> list[KernelCeiling]:
    """The speeds of each kernel of a pass. Raises UnsupportedError for a kernel without any."""
    asked = ((one.kernel, one.owned) for one in work.kernels)
    return [ceilings.at(kernel.kernel, kernel.part, mean_columns(kernel), owned) for kernel, owned in asked]


def mean_columns(kernel: BackwardKernel) -> int:
    """head_dim, or the mean of both widths: so much work a pair is."""
    return (kernel.head_dim + kernel.value_dim) // 2


def assign(work: PassWork, weights_us: Sequence[FloatArray]) -> list[NDArray[np.int64]]:
    """The slot of each work item of each kernel: each goes, in order, to the slot that is free first.

    weights_us: of each kernel, microseconds of each of TERMS.
    """
    free = [(0.0, slot) for slot in range(work.slots)]
    found = []
    for one, weights in zip(work.kernels, weights_us, strict=True):
        costs = (one.charges @ weights)[one.order].tolist()
        slots = np.empty(len(costs), np.int64)
        for item, cost in enumerate(costs):
            time, slot = free[0]
            slots[item] = slot
            heapq.heapreplace(free, (time + cost, slot))
        found.append(slots)
    return found


def loads(work: PassWork, slots: Sequence[NDArray[np.int64]]) -> FloatArray:
    """The charges of each slot, (slots, kernels, 6)."""
    found = np.zeros((work.slots, len(work.kernels), len(TERMS)))
    for place, (one, of) in enumerate(zip(work.kernels, slots, strict=True)):
        for column in range(len(TERMS)):
            found[:, place, column] = np.bincount(of, one.charges[one.order, column], minlength=work.slots)
    return found


def predict(work: PassWork, ceilings: BackwardCeilings) -> PassPrediction:
    """The time of a pass, and what it goes to."""
    speeds = ceilings_of(work, ceilings)
    weights = [one.weights_us for one in speeds]
    charged = loads(work, assign(work, weights))
    times = np.einsum("skt,kt->s", charged, np.array(weights)) if weights else np.zeros(work.slots)
    mean = charged.mean(axis=0)
    of_terms = sum((mean[place] * of for place, of in enumerate(weights)), np.zeros(len(TERMS)))
    parts = dict(zip(TERMS, of_terms.tolist(), strict=True))
    parts["waits"] = max((one.waits for one in work.kernels), default=0.0) * float(times.max())
    parts["imbalance"] = float(times.max() - times.mean())
    parts["beside"] = work.beside * ceilings.beside_us
    parts["prepare"] = work.prepared * ceilings.megabyte_us
    parts["convert"] = work.converted * ceilings.megabyte_us
    parts["launch"] = ceilings.launch_us
    last = float(times.max()) + parts["waits"] + parts["beside"]
    memory = work.megabytes * ceilings.memory_us
    parts["memory"] = beside_memory(last, memory) - last
    names = [one.kernel.part for one in work.kernels]
    of_kernels = dict(zip(names, (float(mean[i] @ of) for i, of in enumerate(weights)), strict=True))
    bare = sum(1e-6 * work.pairs / work.slots * one.pair_ps for one in speeds)
    ends = parts["prepare"] + parts["convert"]
    return PassPrediction(
        sum(parts.values()),
        parts,
        of_kernels,
        float(times.mean() / (times.max() or 1.0)),
        work.slots,
        work.items,
        max(bare, memory) + ends,
    )
