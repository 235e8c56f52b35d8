"""What a rank's arrays must be for a plan; each message names the argument and the rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnicupy.errors import UnsupportedError
from omnicupy.parallel.plan import Plan


def of_group(plan: Plan, rank: int, size: int) -> None:
    """Raises TypeError for what is no plan, ValueError for a plan of other ranks than the group has."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"plan must be a Plan, got {type(plan).__name__}; make it with omnicupy.parallel.plan(mask, ranks)"
        )
    if plan.ranks != size:
        raise ValueError(
            f"plan must be one for the {size} ranks of the group, got one for {plan.ranks} on rank {rank}; make it "
            f"with plan(mask, {size})"
        )


def of_rank(plan: Plan, rank: int, arrays: tuple[Any, Any, Any], mask: int | Sequence[int]) -> None:
    """Raises TypeError or ValueError where q, k and v of a rank are not its shards under the plan, UnsupportedError
    where v has another width than k.

    Dtypes, devices and layouts are looked at by the call that runs on them.
    """
    for name, array in zip("qkv", arrays, strict=True):
        if not hasattr(array, "shape") or len(array.shape) != 4:
            shape = tuple(array.shape) if hasattr(array, "shape") else type(array).__name__
            raise ValueError(
                f"{name} must have shape (batch, heads, tokens of this rank, head_dim), got {shape} on rank {rank}"
            )
    q, k, v = (tuple(array.shape) for array in arrays)
    for name, found, owners, what in (("q", q, plan.rows, "rows"), ("k", k, plan.keys, "keys")):
        if found[2] != (count := int(owners.counts[rank])):
            raise ValueError(
                f"{name} must have the {count} {what} of rank {rank} under this plan, got shape {found}; shard it with "
                "plan.shard, or make the plan for these lengths"
            )
    if k[:3] == v[:3] and k[3] != v[3]:
        raise UnsupportedError(
            f"k and v must be equally wide across ranks, which exchange them in one piece, got {k[3]} and {v[3]} "
            f"columns on rank {rank}; pad the narrower with zero columns, and pass scale"
        )
    if k != v or q[0] != k[0] or q[3] != k[3]:
        raise ValueError(
            f"k and v must have one shape, and the batch and head_dim of q, got q {q}, k {k}, v {v} on rank {rank}"
        )
    if not k[1] or q[1] % k[1]:
        raise ValueError(f"q must have a multiple of the heads of k, got q {q} and k {k} on rank {rank}")
    heads = plan.setting.heads
    if plan.checks_heads and (q[1], k[1], q[3]) != (heads.q_heads, heads.kv_heads, heads.head_dim):
        raise ValueError(
            f"q, k and v must have the heads that the plan was made for, ({heads.q_heads}, {heads.kv_heads}, "
            f"{heads.head_dim}), got ({q[1]}, {k[1]}, {q[3]}) on rank {rank}; "
            "make the plan with these, or with heads=None"
        )
    if isinstance(mask, (list, tuple)) and len(mask) != q[0]:
        raise ValueError(
            f"mask must be a place in the plan's masks, or one for each of {q[0]} batch elements, got {len(mask)}"
        )
