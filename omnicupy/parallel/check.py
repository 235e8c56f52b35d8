"""What a rank's arrays must be for a plan; each message names the argument and the rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from omnicupy.parallel import arrays as arrays_of_ranks
from omnicupy.parallel.plan import Plan

SHOWN = 8  # ranks that a message names
AUTO, GROUP, PEER = EXCHANGES = ("auto", "group", "peer")  # how keys travel, as `attention` takes it


class Shared(NamedTuple):
    """What decides the exchanges of a call beside the plan, so it is the same on every rank.

    masks: of the plan, each once.  columns: of k and v.  groups: heads of keys in each exchange of the forward
    pass.  exchange: which one was asked for.
    """

    masks: tuple[int, ...]
    batch: int
    columns: tuple[int, int]
    dtype: str
    groups: tuple[int, ...]
    exchange: str = AUTO

    def __str__(self) -> str:
        asked = "" if self.exchange == AUTO else f', exchange="{self.exchange}"'
        return (
            f"mask {', '.join(map(str, self.masks))}, batch {self.batch}, {self.columns[0]} and {self.columns[1]} "
            f"columns of {self.dtype}, heads {'+'.join(map(str, self.groups))}{asked}"
        )


def shared(arrays: tuple[Any, Any], mask: int | Sequence[int], groups: Sequence[int] = ()) -> Shared:
    """Of a call with these k and v. groups: () for all heads in one exchange."""
    k, v = arrays
    which = tuple(sorted(set(mask))) if isinstance(mask, (list, tuple)) else (mask,)
    dtype = str(k.dtype).removeprefix("torch.")
    sizes = tuple(groups) or (int(k.shape[1]),)
    return Shared(which, int(k.shape[0]), (int(k.shape[3]), int(v.shape[3])), dtype, sizes)


def said(plan: Plan, call: Shared) -> str:
    """What ranks compare: the plan's digest, then the call."""
    return f"{plan.digest.hex()} {call}"


def named(ranks: Sequence[int]) -> str:
    """Ranks in a message, the first ones of many."""
    shown = ", ".join(str(one) for one in ranks[:SHOWN]) + (", ..." if len(ranks) > SHOWN else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def difference(found: Sequence[Sequence[str]]) -> str:
    """What to say of ranks that came with other plans or calls than rank 0. found: of each, its plan and its call."""
    others = [rank for rank, one in enumerate(found) if one[0] != found[0][0]]
    if others:
        return (
            f"plan differs between ranks: {named(others)} came with another one than rank 0; make it from the same "
            "masks with the same arguments on every rank"
        )
    others = [rank for rank, one in enumerate(found) if one[1] != found[0][1]]
    return (
        f"the call differs between ranks: rank {others[0]} came with {found[others[0]][1]}; rank 0 with {found[0][1]}; "
        "every rank must make the same calls in the same order"
    )


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
    """Raises TypeError or ValueError where q, k and v of a rank are not its shards under the plan.

    Which dtypes, devices and layouts are served the call says that runs on them.
    """
    for name, array in zip("qkv", arrays, strict=True):
        if len(arrays_of_ranks.shape_of(array) or ()) != 4:
            shape = arrays_of_ranks.shape_of(array) or type(array).__name__
            raise ValueError(
                f"{name} must have shape (batch, heads, tokens of this rank, head_dim), got {shape} on rank {rank}"
            )
    for name, array in zip("kv", arrays[1:], strict=True):  # of both travels one piece
        if array.dtype != arrays[0].dtype:
            asked, came = (str(one.dtype).removeprefix("torch.") for one in (arrays[0], array))
            raise TypeError(f"{name} must have the dtype of q ({asked}), got {came} on rank {rank}; cast it")
    q, k, v = (tuple(array.shape) for array in arrays)
    for name, found, owners, what in (("q", q, plan.rows, "rows"), ("k", k, plan.keys, "keys")):
        if found[2] != (count := int(owners.counts[rank])):
            raise ValueError(
                f"{name} must have the {count} {what} of rank {rank} under this plan, got shape {found}; shard it with "
                "plan.shard, or make the plan for these lengths"
            )
    if k[:3] != v[:3] or q[0] != k[0] or q[3] != k[3]:
        raise ValueError(
            f"k must have the batch and head_dim of q, and v the shape of k, its width aside, got q {q}, k {k}, "
            f"v {v} on rank {rank}"
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
