"""attention of several ranks on torch tensors: one exchange of keys and values, then one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from omnicupy.parallel import check
from omnicupy.parallel.exchange import Exchange
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.ranks import Ranks, ranks_of
from omnicupy.torch import tensors
from omnicupy.torch.call import attention as attention_of_tensors

Which = int | Sequence[int]


# In one piece outside of torch.compile, which would break its graph at each step that it cannot trace.
@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def attention(
    arrays: tuple[Any, Any, Any], plan: Plan, group: Any, mask: Which, limit: float, options: dict[str, Any]
) -> Any:
    """The call on tensors; arguments as in `omnicupy.parallel.attention`."""
    tensors.check(*arrays, None)
    ranks = ranks_of(group)
    check.of_group(plan, ranks.rank, ranks.size)
    check.of_rank(plan, ranks.rank, arrays, mask)
    ranks.agree(plan, limit)
    q, k, v = tensors.autocast(*arrays)
    trip = plan.exchange(ranks.rank, mask)
    if plan.travels(mask):
        k, v = _Exchanged.apply(k, v, _Trip(trip, ranks, plan._found, limit))
    masks = plan.locals(ranks.rank, mask)
    if masks:
        return attention_of_tensors(q, k, v, masks[0] if len(masks) == 1 else list(masks), **options)
    out, lse = _OfNoKeys.apply(q, k, v)
    return (out, lse) if options["return_lse"] else out


class _Trip:
    """What the exchange of a call needs of its plan. places: of the keys sent, by target, on a device."""

    def __init__(self, trip: Exchange, ranks: Ranks, found: dict[Any, Any], limit: float) -> None:
        self.trip, self.ranks, self.limit, self._found = trip, ranks, limit, found

    def places(self, device: Any) -> tuple[Any, ...]:
        """The places of the keys that each rank is sent, on this device."""
        key = ("places", id(self.trip), device)
        if key not in self._found:
            self._found[key] = tuple(torch.from_numpy(one).to(device) for one in self.trip.send)
        found: tuple[Any, ...] = self._found[key]
        return found

    def there(self, given: Any) -> Any:
        """Rows of foreign keys, by owner. given: the rows sent, by target."""
        return self._moved(given, self.trip.received, self.trip.sent)

    def back(self, given: Any) -> Any:
        """Rows of own keys that come back, by who had them. given: rows of foreign keys, by owner."""
        return self._moved(given, self.trip.sent, self.trip.received)

    def _moved(self, given: Any, received: Sequence[int], sent: Sequence[int]) -> Any:
        out = given.new_empty((sum(received), *given.shape[1:]))
        # As bytes: every backend moves those, whatever the dtype.
        rows = [one.reshape(len(one), _width(one)).view(torch.uint8) for one in (out, given)]
        self.ranks.exchange(rows[0], rows[1], (received, sent), self.limit)
        return out


def _width(rows: Any) -> int:
    """Elements of a row, also where there is none."""
    return int(torch.Size(rows.shape[1:]).numel())


class _Exchanged(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
    """Own keys and values followed by those of other ranks; gradients take the way back."""

    @staticmethod
    def forward(ctx: Any, k: Any, v: Any, trip: _Trip) -> Any:
        places = torch.cat(trip.places(k.device))
        given = torch.stack([one.permute(2, 0, 1, 3).index_select(0, places) for one in (k, v)], 1)
        received = trip.there(given)
        ctx.trip = trip
        keys, values = (
            torch.cat([one, received[:, side].permute(1, 2, 0, 3)], 2) for side, one in enumerate((k, v))
        )
        return keys, values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of own keys: this rank's part, then those of other ranks in their order, in float32."""
        trip: _Trip = ctx.trip
        own = trip.trip.own
        wanted = [side for side in (0, 1) if ctx.needs_input_grad[side]]
        if not wanted:
            return None, None, None
        parts = torch.stack([grads[side].permute(2, 0, 1, 3) for side in wanted], 1)
        returned = trip.back(parts[own:].contiguous())
        total = parts[:own].to(torch.promote_types(parts.dtype, torch.float32))
        before = 0
        for places in trip.places(parts.device):
            count = len(places)
            if count:
                # Each place comes once: an addition whose order does not matter.
                total.index_add_(0, places, returned[before : before + count].to(total.dtype))
            before += count
        total = total.to(parts.dtype)
        found: list[Any] = [None, None]
        for at, side in enumerate(wanted):
            found[side] = total[:, at].permute(1, 2, 0, 3).contiguous()
        return *found, None


class _OfNoKeys(torch.autograd.Function):  # type: ignore[misc]
    """What rows that see nothing get. A part of the graph all the same: the way back of other ranks' keys is in it."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        ctx.save_for_backward(q, k, v)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, *grads: Any) -> Any:
        """Nothing for q, k and v."""
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.zeros_like(one) if asked else None for one, asked in pairs)
