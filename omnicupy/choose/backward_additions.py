"""Which kernels of a row of backward_table suit a mask, by how many blocks of keys add to a mean sum of dQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omnicupy.call.problem import Problem
from omnicupy.jit.backward_kernel import BackwardKernel, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.finishing import TICKET_PARTS
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import makes_all_part, ordered_part

# Additions to a mean sum of dQ from which on, and below which, two kernels are faster than one that adds to the sums,
# whoever makes dQ of them (docs/tries.md). SHARED: where query heads share one of keys.  NARROW: up to so many columns.
SPLIT_FROM, SPLIT_BELOW, SPLIT_BELOW_SHARED = 1.4, 5.0, 3.9
NARROW, SPLIT_FROM_NARROW = 80, 3.9
# The same where blocks of 192 keys add: in one order, also where the last block pads the keys by more than that share;
# at head_dim 64 in any order, too.
WIDE_BELOW, WIDE_BELOW_PADDED, PADDED, WIDE_BELOW_ANY = 4.0, 7.0, 0.1, 3.0
# And where in any order a row's tile for few additions is faster than its other one: its kernel makes dQ of the sums.
FEW_FROM, FEW_BELOW = 4.0, 6.0
# From which on in one order a row's tile for full masks is faster, whose shorter blocks add more often. Under other
# masks blocks are not alike, and wait longer for each other.
FULL_FROM = 60.0
# Additions to a sum over tiles of a block of keys from which on they follow each other for longer than all else takes:
# few queries on many keys.
CHAINED = 1.5


def suited(
    spec: BackwardSpec,
    problem: Problem,
    masks: Sequence[Mask],
    *,
    deterministic: bool,
    few: TileShape | None = None,
    full: TileShape | None = None,
) -> BackwardSpec:
    """A row's kernels without those that add to dQ where two kernels are faster, and with another tile where that is.
    masks: the distinct ones.  deterministic: of the call; what calls in the other order would get is not asked.  few,
    full: the row's.
    """
    if spec.fused is None or spec.ordered is None:
        return spec
    if spec.part("ordered").may_finish:
        return _without_one_that_finishes(spec, problem, masks)
    if deterministic:
        if _two_are_faster_in_order(spec, problem, masks):
            return replace(spec, ordered=None)
        if full is None or not _are_full(problem, masks):
            return spec
        found = replace(spec, ordered=full)
        part = found.part("ordered")
        many = _additions(part, problem, masks) >= FULL_FROM
        return found if many and ordered_part(part, problem, masks) == "ordered" else spec
    part = spec.part("fused")
    if part.bc >= spec.part("ordered").bc:
        return spec
    additions = _additions(part, problem, masks)  # by shorter blocks than in one order
    if additions < WIDE_BELOW_ANY:
        return replace(spec, fused=None)
    if few is None or not FEW_FROM <= additions < FEW_BELOW:
        return spec
    found = replace(spec, fused=few)
    makes_query_gradients = (
        makes_all_part(found.kernels(), problem, masks, deterministic=False) in TICKET_PARTS
    )
    return found if makes_query_gradients else spec


def _are_full(problem: Problem, masks: Sequence[Mask]) -> bool:
    """Does each mask allow all pairs, of as many queries as keys or more? Fewer have not been measured."""
    pairs = problem.q_len * problem.k_len
    return problem.q_len >= problem.k_len and all(one.pairs == pairs for one in masks)


def _without_one_that_finishes(spec: BackwardSpec, problem: Problem, masks: Sequence[Mask]) -> BackwardSpec:
    """The kernels, where those that add to sums of dQ may make dQ of them: in either order alike for few additions, and
    where few queries see many keys, without the one that adds in one order.
    """
    part = spec.part("ordered")
    additions = _additions(part, problem, masks)
    least = SPLIT_FROM_NARROW if spec.head_dim <= NARROW else SPLIT_FROM
    few = least <= additions < (SPLIT_BELOW if problem.group == 1 else SPLIT_BELOW_SHARED)
    slow = few or _is_chained(part, problem, additions)
    return replace(spec, ordered=None if slow else spec.ordered, fused=None if few else spec.fused)


def _two_are_faster_in_order(spec: BackwardSpec, problem: Problem, masks: Sequence[Mask]) -> bool:
    """Are two kernels faster than the one that adds in one order, by blocks of 192 keys?"""
    part = spec.part("ordered")
    additions = _additions(part, problem, masks)
    padded = -problem.k_len % part.bc > PADDED * problem.k_len
    few = additions < (WIDE_BELOW_PADDED if padded else WIDE_BELOW)
    return few or _is_chained(part, problem, additions)


def _is_chained(part: BackwardKernel, problem: Problem, additions: float) -> bool:
    """Do few queries see so many keys that additions to a sum follow each other for longer than all else takes?"""
    return additions > CHAINED * problem.group * -(-problem.q_len // part.br)


def _additions(part: BackwardKernel, problem: Problem, masks: Sequence[Mask]) -> float:
    """To a mean sum of dQ, of the queries of a tile."""
    sums = -(-problem.q_len // part.br) * len(masks)
    return sum(int(one.key_blocks(part.br, part.bc).tiles.sum()) for one in masks) / max(1, sums)
