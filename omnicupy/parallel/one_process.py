"""All ranks of a plan in one process, on NumPy arrays: what the others do with several processes, without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy import api
from omnicupy.call import check_backward
from omnicupy.call.arrays import narrow, widen
from omnicupy.masks.arguments import flag
from omnicupy.parallel import arrays as arrays_of_ranks
from omnicupy.parallel import check
from omnicupy.parallel.plan import Plan

Array = NDArray[Any]
Arrays = Sequence[Array]
NAMES = ("q", "k", "v")


def attention_of_ranks(
    q: Arrays,
    k: Arrays,
    v: Arrays,
    plan: Plan,
    *,
    mask: int | Sequence[int] = 0,
    scale: float | None = None,
    sink_logits: Array | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Any:
    """`omnicupy.attention` of several ranks in one process: lists with a NumPy array a rank, as `plan.shard` cuts.

    q: (batch, q_heads, rows of the rank, head_dim) each.  k, v: (batch, kv_heads, keys of the rank, head_dim).
    mask: which of the plan's masks; a list names one for each batch element.  sink_logits: (q_heads,), of all ranks.
    scale, softcap: as in `omnicupy.attention`.
    Returns a list of out, or (list of out, list of lse). A rank without rows gives arrays without rows. What
    `omnicupy.attention` promises holds for all ranks together, NaN that nobody sees included.
    Raises TypeError or ValueError for lists that are not the plan's, and what `omnicupy.attention` raises.
    """
    return_lse = flag("attention_of_ranks", "return_lse", return_lse)
    _checked(plan, (q, k, v), mask)
    outs, lses = [], []
    for rank in range(plan.ranks):
        masks = plan.locals(rank, mask)
        if masks:
            keys, values = (_gathered(plan, rank, one, mask) for one in (k, v))
            how: dict[str, Any] = {"scale": scale, "sink_logits": sink_logits, "softcap": softcap}
            out, lse = api.attention(q[rank], keys, values, _given(masks), return_lse=True, **how)
        else:
            out, lse = _of_no_keys(q[rank], v[rank].shape[3])
        outs.append(out)
        lses.append(lse)
    return (outs, lses) if return_lse else outs


def attention_backward_of_ranks(
    dout: Arrays,
    q: Arrays,
    k: Arrays,
    v: Arrays,
    out: Arrays,
    lse: Arrays,
    *,
    plan: Plan,
    mask: int | Sequence[int] = 0,
    scale: float | None = None,
    dlse: Arrays | None = None,
    wanted: Sequence[str] = NAMES,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> tuple[Any, ...]:
    """`omnicupy.attention_backward` of several ranks in one process; lists as in `attention_of_ranks`.

    dout, out, lse, dlse: of each rank's rows; the rest as in `omnicupy.attention_backward`.
    Returns lists of dq, dk and dv, None for what is not in `wanted`. Each rank's part of dk and dv has the dtype of k
    and v; the owner of a key adds them in float32 (float64 for float64 arrays): its own, then the others by rank. Where
    `wanted` names sink_logits, a list of dsink_logits comes fourth: of each rank's rows, to be added.
    Raises TypeError or ValueError for lists that are not the plan's, and what `omnicupy.attention_backward` raises.
    """
    _checked(plan, (q, k, v), mask)
    _check_results(plan, q, v, {"dout": dout, "out": out, "lse": lse, "dlse": dlse})
    check_backward.wanted_of(wanted, sink_logits)
    dq: list[Array] = []
    parts: list[list[Array | None]] = []
    sinks: list[Array] = []
    for rank in range(plan.ranks):
        masks = plan.locals(rank, mask)
        if not masks:
            dq.append(np.zeros_like(q[rank]))
            parts.append([None, None])
            if sink_logits is not None:
                sinks.append(np.zeros_like(sink_logits))
            continue
        keys, values = (_gathered(plan, rank, one, mask) for one in (k, v))
        found = api.attention_backward(
            *(dout[rank], q[rank], keys, values, out[rank], lse[rank], _given(masks)),
            scale=scale,
            dlse=None if dlse is None else dlse[rank],
            wanted=wanted,
            sink_logits=sink_logits,
            softcap=softcap,
        )
        dq.append(found[0])
        parts.append(list(found[1:3]))
        sinks += found[3:]
    asked = [name in wanted for name in NAMES]
    sums = [
        [_summed(plan, rank, [part[side] for part in parts], like, mask) for rank in range(plan.ranks)]
        if asked[side + 1]
        else None
        for side, like in enumerate((k, v))
    ]
    found = (dq if asked[0] else None), sums[0], sums[1]
    return (*found, sinks) if "sink_logits" in wanted else found


def _checked(plan: Plan, arrays: tuple[Arrays, Arrays, Arrays], mask: int | Sequence[int]) -> None:
    check.of_group(plan, 0, getattr(plan, "ranks", 0))
    for name, given in zip(NAMES, arrays, strict=True):
        _check_list(plan, name, given)
    first = [one[0] for one in arrays]
    for rank in range(plan.ranks):
        mine = [one[rank] for one in arrays]
        check.of_rank(plan, rank, (mine[0], mine[1], mine[2]), mask)
        for name, array, like in zip(NAMES, mine, first, strict=True):
            found, wanted = ((*one.shape[:2], one.shape[3], one.dtype) for one in (array, like))
            if found != wanted:
                raise ValueError(
                    f"{name} must have one batch, one number of heads, one width and one dtype on all ranks, got "
                    f"{like.dtype} {like.shape} on rank 0 and {array.dtype} {array.shape} on rank {rank}"
                )


def _check_list(plan: Plan, name: str, given: Any) -> None:
    if not arrays_of_ranks.is_list(given):
        raise TypeError(
            f"{name} must be a list with an array for each of {plan.ranks} ranks, got {type(given).__name__}"
        )
    if len(given) != plan.ranks:
        raise ValueError(
            f"{name} must be a list with an array for each of {plan.ranks} ranks, got {len(given)}; a plan for "
            "other ranks is another plan"
        )


def _check_results(plan: Plan, q: Arrays, v: Arrays, given: dict[str, Any]) -> None:
    """dout, out, lse and dlse are lists of arrays of each rank's rows."""
    for name, arrays in given.items():
        if name == "dlse" and arrays is None:
            continue
        _check_list(plan, name, arrays)
        for rank in range(plan.ranks):
            wanted = q[rank].shape[:3] if name in ("lse", "dlse") else (*q[rank].shape[:3], v[rank].shape[3])
            found = arrays_of_ranks.shape_of(arrays[rank])
            if found != wanted:
                raise ValueError(
                    f"{name} must have the shape {wanted} on rank {rank}, that of its rows, got "
                    f"{found or type(arrays[rank]).__name__}"
                )


def _given(masks: tuple[Any, ...]) -> Any:
    return masks[0] if len(masks) == 1 else list(masks)


def _gathered(plan: Plan, rank: int, shards: Arrays, mask: int | Sequence[int]) -> Array:
    """The rank's own keys, then those that others send it."""
    received = [shards[source][:, :, plan.exchange(source, mask).send[rank]] for source in range(plan.ranks)]
    return np.concatenate([shards[rank], *received], axis=2)


def _summed(
    plan: Plan, rank: int, parts: list[Array | None], like: Arrays, mask: int | Sequence[int]
) -> Array:
    """The gradient of a rank's keys: its own part, then those of the other ranks in their order."""
    own = like[rank]
    total = np.zeros(own.shape, np.float64 if own.dtype == np.float64 else np.float32)
    mine = parts[rank]
    with np.errstate(all="ignore"):  # NaN and infinity are the caller's
        if mine is not None:
            total += widen(mine[:, :, : own.shape[2]], total.dtype)
        for target, part in enumerate(parts):
            if target != rank and part is not None:
                trip = plan.exchange(target, mask)
                before = trip.own + sum(trip.received[:rank])
                slot = part[:, :, before : before + trip.received[rank]]
                total[:, :, plan.exchange(rank, mask).send[target]] += widen(slot, total.dtype)
        return total if total.dtype == own.dtype else narrow(total, own.dtype)


def _of_no_keys(q: Array, columns: int) -> tuple[Array, Array]:
    """What rows that see nothing get."""
    dtype = np.float64 if q.dtype == np.float64 else np.float32
    return np.zeros((*q.shape[:3], columns), q.dtype), np.full(q.shape[:3], -np.inf, dtype)
