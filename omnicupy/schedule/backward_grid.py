"""Thread blocks of the launches of a backward pass, and sections of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.masks.mask import Mask
from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.block_lists import BlockLists, block_lists
from omnicupy.schedule.grid import MAX_GRID_X, MOST_PARTIAL_BYTES
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.ordered_lists import MOST_SHARERS, OrderedLists, ordered_lists
from omnicupy.schedule.parts import Workers
from omnicupy.schedule.ranks import MOST_RANKS, OrderedWorkers
from omnicupy.schedule.ticket_lists import ticket_lists

# Sums of dQ in float32 that are added to in one order. More than the first take too much memory: the kernel makes dQ of
# them itself, and they share places in the second.
MOST_UNSHARED_BYTES, MOST_SUMS_BYTES = 1 << 30, 128 << 20
# Additions to a mean sum. With fewer than the first the thread that adds last waits for the sum, and a warp makes dQ of
# it. Up to the second a warp makes dQ in the background. Beyond that zeroing and converting sums takes no more time
# than that warp's reads cost the others (docs/tries.md).
FEW_ADDITIONS, MANY_ADDITIONS = 4, 40
# With up to so many the kernel that makes dQ in the background makes lse2 and delta, too. A launch ahead of longer work
# takes less than 3% of the time.
PREPARING_ADDITIONS = 18
# A launch does so, too, where the warp would be late by more than this share of the work with what a head wants that
# begins at once. Making what a tile wants takes the warp as long as so many tiles take.
LATE_ROWS_SHARE, ROWS_TILES = 1 / 8, 4
# Tiles of queries a multiprocessor that are ready before any work begins, at least (rows_ahead.cuh).
ROWS_FIRST = 4
# The warp keeps up with them where a mean sum has at least so many additions, and with up to so many sums a
# multiprocessor, of which the first ones are the most.
KEPT_UP, SUMS_READY = 9, 16


def key_lists_of(kernel: BackwardKernel) -> Callable[[Sequence[KeyBlocks], Workers], BlockLists]:
    """What packs the lists that a kernel walks whose part is not "dq"."""
    if kernel.part == "ordered":
        return ordered_lists
    return ticket_lists if kernel.finishes else key_lists


def lists_of(kernel: BackwardKernel, masks: Sequence[Mask], workers: Workers) -> BlockLists:
    """The lists that a kernel walks, of masks cut at its tile."""
    tile = kernel.br, kernel.bc
    if kernel.part == "dq":
        return block_lists([mask.blocks(*tile) for mask in masks], workers)
    return key_lists_of(kernel)([mask.key_blocks(*tile) for mask in masks], workers)


def makes_all_part(
    parts: Mapping[str, BackwardKernel], problem: Problem, masks: Sequence[Mask], *, deterministic: bool
) -> str:
    """Which kernel of a pass makes all gradients; "dkdv": two do. parts: its kernels.  masks: the distinct ones."""
    fused, ordered = parts.get("fused"), parts.get("ordered")
    if deterministic:
        return "dkdv" if ordered is None else ordered_part(ordered, problem, masks)
    return "dkdv" if fused is None else any_order_part(fused, problem, masks, ordered)


def ordered_part(part: BackwardKernel, problem: Problem, masks: Sequence[Mask]) -> str:
    """Which kernel makes all gradients in one order: "ordered", or "finishing" or "background", which make dQ of the
    sums, too. "dkdv" for two kernels: where a mask has so many tiles that their ranks would fill memory, or where sums
    have to share places and those of the query heads of one head of keys alone would fill memory, or too many would
    share one. A kernel without a warp for that is "ordered" whatever its sums take.

    part: "ordered".  masks: the distinct ones.
    """
    tiles = _tiles_of(part, masks)
    if tiles > MOST_RANKS:
        return "dkdv"
    if not part.may_finish:
        return "ordered"
    of_mask = -(-problem.q_len // part.br)
    of_head = problem.group * len(masks) * of_mask  # sums
    heads = problem.kv_heads * problem.batch // len(masks)
    at_a_time = MOST_SUMS_BYTES // (of_head * part.sum_bytes)  # heads
    may_share = at_a_time > 0 and -(-heads // at_a_time) <= MOST_SHARERS
    if _unshared_bytes(part, problem) > MOST_UNSHARED_BYTES:
        return "finishing" if may_share else "dkdv"
    sums = of_mask * len(masks)
    if tiles < FEW_ADDITIONS * sums and may_share:
        return "finishing"
    return "background" if tiles < MANY_ADDITIONS * sums else "ordered"


def any_order_part(
    part: BackwardKernel, problem: Problem, masks: Sequence[Mask], ordered: BackwardKernel | None = None
) -> str:
    """Which kernel makes all gradients in any order: "fused"; "tickets", which makes dQ of the sums, too; or where sums
    have few additions "finishing": one order is an order, and no other kernel is as fast there. part: "fused".  masks:
    the distinct ones.  ordered: the kernel of one order, where there is one.
    """
    if not part.may_finish or _unshared_bytes(part, problem) > MOST_UNSHARED_BYTES:
        return "fused"
    tiles, sums = _tiles_of(part, masks), -(-problem.q_len // part.br) * len(masks)
    if tiles < FEW_ADDITIONS * sums:
        in_order = ordered is not None and ordered_part(ordered, problem, masks) == "finishing"
        return "finishing" if in_order else "fused"
    return "tickets" if tiles < MANY_ADDITIONS * sums and tiles <= MOST_RANKS else "fused"


def _tiles_of(part: BackwardKernel, masks: Sequence[Mask]) -> int:
    return sum(int(mask.key_blocks(part.br, part.bc).tiles.sum()) for mask in masks)


def _unshared_bytes(part: BackwardKernel, problem: Problem) -> int:
    """Of sums of dQ with places of their own."""
    return problem.batch * problem.q_heads * padded_rows(problem.q_len) // part.br * part.sum_bytes


@dataclass(frozen=True)
class BackwardGrid:
    """How the work of one kernel of a backward pass is laid over a device.

    masks: how many there are, 1 or one a batch element.
    """

    kernel: BackwardKernel
    problem: Problem
    masks: int
    sm_count: int
    l2_bytes: int

    @property
    def heads(self) -> int:
        """Heads of a batch element that a part of the mask is worked on for: of keys, or of queries."""
        return self.problem.q_heads if self.kernel.part == "dq" else self.problem.kv_heads

    @property
    def workers(self) -> Workers:
        """Who works on each block of queries or keys."""
        heads = self.heads * self.problem.batch
        if self.kernel.part == "dq":
            return Workers(heads // self.masks, self.sm_count)
        # Only the Hopper kernel may split blocks of keys, as far as the merge may use memory.
        slots = MOST_PARTIAL_BYTES // (heads * self._slot_bytes) if self.kernel.kernel == "sm90" else 0
        found = Workers(heads // self.masks, self.sm_count, slots, self.problem.group)
        if self.kernel.part != "ordered":
            makes_all = self.kernel.part == "fused" and self.kernel.kernel == "sm90"
            return replace(found, side_by_side=self._heads_in_l2) if makes_all else found
        ordered = {"ordered_sums": True, "side_by_side": self._heads_in_l2, "kept": self._kept}
        most = {"at_once": MOST_SUMS_BYTES, "background": MOST_UNSHARED_BYTES}.get(self.kernel.finishes, 0)
        places = most // self.kernel.sum_bytes
        background = self.kernel.finishes == "background"
        return OrderedWorkers(**vars(found) | ordered, places=places, background=background)

    @property
    def _heads_in_l2(self) -> int:
        """Heads of keys whose Q and dO fit half of the L2 cache, at least one."""
        problem = self.problem
        head_bytes = 2 * (problem.head_dim + problem.value_dim) * problem.q_len * problem.group
        return max(1, self.l2_bytes // 2 // (self.masks * head_bytes))

    @property
    def _kept(self) -> int:
        """Tiles of Q, dO and sums of dQ that fit half of the L2 cache; 0 where the kernel cannot go head by head."""
        if self.kernel.warps != 12:
            return 0
        problem = self.problem
        row_bytes = 4 * self.kernel.head_dim + 2 * (problem.head_dim + problem.value_dim)
        return self.l2_bytes // 2 // (self.kernel.br * row_bytes)

    def sum_fields(self, lists: BlockLists) -> dict[str, int]:
        """Fields of the struct of the kernel that makes dQ of sums: which number each sum has, and how many places of
        sums there are; `places` of any that makes all gradients.

        The heads of a section have numbers that follow each other. So where each batch element has a mask of its own,
        and the section holds heads of all of them, its number counts less than that of the head.
        """
        problem, finishes = self.problem, bool(self.kernel.finishes)
        rows = problem.q_len if finishes else padded_rows(problem.q_len)
        of_head = -(-rows // self.kernel.br)
        of_group = of_head * problem.group
        kv_sums, batch_sums = of_group, of_group * problem.kv_heads
        if finishes and self.masks > 1:
            kv_sums, batch_sums = of_group * self.masks, of_group
        turn_heads = lists.turn_heads if isinstance(lists, OrderedLists) and finishes else self.workers.heads
        return {
            "head_sums": of_head,
            "kv_sums": kv_sums,
            "batch_sums": batch_sums,
            "places": of_group * self.masks * turn_heads,
        }

    def prepares_beside(self, lists: BlockLists) -> bool:
        """Of the kernel that makes dQ in the background: is most of lse2 and delta made beside its work, if it makes
        them? Those of the heads that are worked on first come before (rows_ahead.cuh). Where these are more than half,
        a launch ahead is as good, and where sums have many additions. It is better where tiers make many more heads
        begin at once.
        """
        sums, fields = self.sum_fields(lists), lists.struct_fields
        head_sums, group = sums["head_sums"], self.problem.group
        tiles = fields["head_ranks"] or lists.shapes["ranks"][0] // (2 if fields["early_heads"] else 1)
        if tiles > PREPARING_ADDITIONS * head_sums * self.masks:
            return False
        section, heads = lists.section or self.section(lists.n_parts), self.workers.heads
        if not self._keeps_up(section, tiles / (head_sums * self.masks), sums["places"]):
            return False
        first = section * self.masks * head_sums * (1 if fields["head_ranks"] else group)
        if 2 * first > sums["places"]:
            return False
        parts = lists.n_parts if fields["early_heads"] else next(filter(None, lists.tiers), 1)
        last = min(heads, -(-self.sm_count // parts)) - 1  # of the heads that begin at once
        before = last // section * section * self.masks * head_sums * group  # tiles of queries before its own
        late = before - max(first, ROWS_FIRST * self.sm_count)
        return ROWS_TILES * late <= LATE_ROWS_SHARE * tiles * group * heads

    def _keeps_up(self, section: int, additions: float, sums: int) -> bool:
        """Does the warp that makes dQ keep up with lse2 and delta, too? Not where sums have few additions, but for few
        sums, of which most are ready before any work begins; nor where query heads share one of keys and several of
        these are side by side, as most rows are wanted before the warp comes to them.
        """
        if self.problem.group == 1 and sums <= SUMS_READY * self.sm_count:
            return True
        return additions >= KEPT_UP and (self.problem.group == 1 or section == 1)

    @property
    def _slot_bytes(self) -> int:
        """What one part of a split block of keys leaves: dK and dV in float32, either in room for the wider one."""
        return 2 * 4 * self.kernel.bc * self.kernel.widest

    def partials(self, n_slots: int, n_split_rows: int) -> tuple[int, int]:
        """Bytes of unfinished dK and dV, and counters of parts that have arrived, where blocks of keys are split.

        n_slots: parts of split blocks.  n_split_rows: split blocks.
        """
        heads = self.heads * self.problem.batch
        return heads * n_slots * self._slot_bytes, heads * n_split_rows * 2 * (self.kernel.bc // 16)

    def work_items(self, parts: int) -> int:
        """Parts, under all masks, times the heads that work on each."""
        return parts * self.workers.heads

    def thread_blocks(self, parts: int, copies_keys: bool = False) -> tuple[int, int, int]:
        """The grid of a launch. Raises UnsupportedError when there are more than a launch may have.

        parts: of the lists, under all masks.  copies_keys: the launch that prepares copies k or v.
        """
        kernel, problem = self.kernel, self.problem
        if kernel.part == "prepare":
            rows = kernel.prepared_rows
            blocks = problem.batch * problem.q_heads * -(-padded_rows(problem.q_len) // rows)
            if copies_keys:
                blocks += problem.batch * problem.kv_heads * -(-problem.k_len // rows)
        elif kernel.part == "sinks":
            blocks = problem.q_heads
        elif kernel.part == "convert":
            blocks = problem.batch * problem.q_heads * -(-problem.q_len // kernel.br)
        elif kernel.kernel == "naive":
            tokens = problem.k_len if kernel.part == "dkdv" else problem.q_len
            blocks = problem.batch * self.heads * tokens
        else:
            blocks = self.work_items(parts)
        if blocks > MAX_GRID_X:
            raise UnsupportedError(
                f"attention_backward: {blocks} thread blocks exceed a launch's {MAX_GRID_X}; split the batch"
            )
        if kernel.params == "bwd_sm90":
            return min(blocks, self.sm_count), 1, 1
        return blocks, kernel.column_blocks, 1

    def section(self, parts: int) -> int:
        """Heads worked on side by side: as many as give each multiprocessor a part.

        Never more than have in half of the L2 what their parts read again and again: K and V for dQ, of whole groups of
        query heads; Q and dO for dK and dV.
        """
        problem = self.problem
        enough = max(1, round(self.sm_count / max(1, parts)))
        heads = self.workers.heads
        if self.kernel.part != "dq":
            return min(heads, enough, self._heads_in_l2)
        row_bytes, group = 2 * (problem.head_dim + problem.value_dim), problem.group
        fit = self.l2_bytes // 2 // (self.masks * row_bytes * problem.k_len)
        return min(heads, group * max(1, min(-(-enough // group), fit)))
