"""attention and its gradients for one rank's arrays, CuPy or NumPy: the exchange, then the launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from omnicupy import api
from omnicupy.call import check_backward
from omnicupy.call.arrays import module_of, narrow, widen
from omnicupy.parallel import check
from omnicupy.parallel.exchange import Exchange
from omnicupy.parallel.plan import Plan

Which = int | Sequence[int]


class Group(Protocol):
    """The ranks of a call, seen from one of them."""

    rank: int
    size: int

    def exchange(self, out: Any, given: Any, sizes: tuple[Sequence[int], Sequence[int]]) -> None:
        """Rows (first axis) of `given` to each rank, and of each rank to `out`. sizes: rows received, rows sent."""

    def agree(self, plan: Plan, call: check.Shared, limit: float) -> None:
        """Raises ValueError where ranks have different plans, or make different calls."""


def attention(
    arrays: tuple[Any, Any, Any], plan: Plan, group: Group, mask: Which, limit: float, options: dict[str, Any]
) -> Any:
    """The rank's out, or (out, lse); arguments as in `omnicupy.parallel.attention`."""
    check.of_group(plan, group.rank, group.size)
    check.of_rank(plan, group.rank, arrays, mask)
    q, k, v = arrays
    group.agree(plan, check.shared((k, v), mask), limit)
    keys, values = _gathered(plan, group, k, v, mask)
    masks = plan.locals(group.rank, mask)
    if masks:
        return api.attention(q, keys, values, masks[0] if len(masks) == 1 else list(masks), **options)
    xp = module_of(q)
    out = xp.zeros((*q.shape[:3], v.shape[3]), q.dtype)
    lse = xp.full(q.shape[:3], -np.inf, np.float64 if q.dtype == np.float64 else np.float32)
    return (out, lse) if options["return_lse"] else out


def attention_backward(
    arrays: tuple[Any, Any, Any],
    results: tuple[Any, Any, Any],
    plan: Plan,
    group: Group,
    mask: Which,
    *,
    limit: float,
    options: dict[str, Any],
) -> tuple[Any, ...]:
    """The rank's dq, dk and dv, and dsink_logits where wanted; None for those that are not.

    results: dout, out and lse.  options: of attention_backward.
    """
    check.of_group(plan, group.rank, group.size)
    check.of_rank(plan, group.rank, arrays, mask)
    # Before anything travels, and on ranks without rows, which would wait for those that raise.
    check_backward.wanted_of(options["wanted"], options.get("sink_logits"))
    q, k, v = arrays
    group.agree(plan, check.shared((k, v), mask), limit)
    dout, out, lse = results
    keys, values = _gathered(plan, group, k, v, mask)
    masks = plan.locals(group.rank, mask)
    wanted = options["wanted"]
    if masks:
        given = masks[0] if len(masks) == 1 else list(masks)
        dq, dk, dv, *of_sink = api.attention_backward(dout, q, keys, values, out, lse, given, **options)
        parts = [dk, dv]
    else:
        xp = module_of(q)
        dq = xp.zeros(q.shape, q.dtype) if "q" in wanted else None
        parts = [
            xp.zeros(one.shape, one.dtype) if name in wanted else None
            for name, one in (("k", keys), ("v", values))
        ]
        of_sink = [xp.zeros_like(options["sink_logits"])] if "sink_logits" in wanted else []
    return dq, *_returned(plan, group, parts, mask), *of_sink


def _gathered(plan: Plan, group: Group, k: Any, v: Any, mask: Which) -> tuple[Any, Any]:
    """Own keys and values followed by those received."""
    if not plan.travels(mask):
        return k, v
    xp, trip = module_of(k), plan.exchange(group.rank, mask)
    places, own = _places(plan, trip, xp)[0], [_bits(one) for one in (k, v)]
    given = xp.concatenate([one.transpose(2, 0, 1, 3)[places] for one in own], axis=3)
    out = xp.empty((sum(trip.received), *given.shape[1:]), given.dtype)
    group.exchange(out, given, (trip.received, trip.sent))
    came = out[..., : k.shape[3]], out[..., k.shape[3] :]
    keys, values = (
        xp.concatenate([one, part.transpose(1, 2, 0, 3)], axis=2).view(k.dtype)
        for one, part in zip(own, came, strict=True)
    )
    return keys, values


def _returned(plan: Plan, group: Group, parts: Sequence[Any], mask: Which) -> list[Any]:
    """Gradients of own keys: this rank's part, then those of other ranks in their order."""
    made = [side for side, one in enumerate(parts) if one is not None]
    if not made or not plan.travels(mask):
        return list(parts)
    dtype, trip = parts[made[0]].dtype, plan.exchange(group.rank, mask)
    xp = module_of(parts[made[0]])
    rows = xp.concatenate([_bits(parts[side]).transpose(2, 0, 1, 3) for side in made], axis=3)
    given = xp.ascontiguousarray(rows[trip.own :])
    out = xp.empty((sum(trip.sent), *given.shape[1:]), given.dtype)
    group.exchange(out, given, (trip.sent, trip.received))
    total = widen(rows[: trip.own].view(dtype), np.float64 if dtype == np.float64 else np.float32, xp)
    with np.errstate(all="ignore"):  # NaN and infinity are the caller's
        _add(total, out.view(dtype), _places(plan, trip, xp)[1])
        if total.dtype != dtype:
            total = narrow(total, dtype)
    found: list[Any] = [None, None]
    first = 0
    for side in made:
        stop = first + parts[side].shape[3]
        found[side] = xp.ascontiguousarray(_bits(total)[..., first:stop].transpose(1, 2, 0, 3)).view(dtype)
        first = stop
    return found


def _add(total: Any, returned: Any, of_ranks: Sequence[Any]) -> None:
    """In place: the rows that came back, rank by rank; each place comes once from a rank."""
    before, xp = 0, module_of(total)
    for places in of_ranks:
        count = len(places)
        if count:
            total[places] += widen(returned[before : before + count], total.dtype, xp)
        before += count


def _places(plan: Plan, trip: Exchange, xp: Any) -> tuple[Any, tuple[Any, ...]]:
    """The places of the keys that are sent, all and those of each rank, on the current device; kept with the plan."""
    device = None if xp is np else xp.cuda.Device().id
    key = ("arrays", id(trip), device)
    if key not in plan._found:
        parts = (np.concatenate(trip.send), *trip.send)
        every, *of_ranks = parts if xp is np else [xp.asarray(one) for one in parts]
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()  # calls on other streams read them, too
        plan._found[key] = every, tuple(of_ranks)
    found: tuple[Any, tuple[Any, ...]] = plan._found[key]
    return found


def _bits(array: Any) -> Any:
    """16-bit numbers as integers: moving these is the same in every version of an array library."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array
