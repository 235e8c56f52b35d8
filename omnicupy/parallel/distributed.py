"""attention of several ranks on torch tensors: one exchange of keys and values, then one launch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
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
    """What the exchange of a call needs of its plan."""

    def __init__(self, trip: Exchange, ranks: Ranks, found: dict[Any, Any], limit: float) -> None:
        self.trip, self.ranks, self.limit, self._found = trip, ranks, limit, found

    def places(self, device: Any) -> tuple[Any, ...]:
        """The places of the keys that each rank is sent, on this device."""
        return self._kept("places", device, lambda: self.trip.send)

    def touched(self, device: Any) -> tuple[Any, ...]:
        """The places of the keys that any rank is sent, ascending; then for each rank where among them its own are."""

        def made() -> list[Any]:
            every = np.unique(np.concatenate(self.trip.send))
            return [every, *(np.searchsorted(every, one) for one in self.trip.send)]

        return self._kept("touched", device, made)

    def _kept(self, name: str, device: Any, made: Callable[[], Sequence[Any]]) -> tuple[Any, ...]:
        key = (name, id(self.trip), device)
        if key not in self._found:
            self._found[key] = tuple(torch.from_numpy(one).to(device) for one in made())
        found: tuple[Any, ...] = self._found[key]
        return found

    def there(self, given: Any, width: int) -> Any:
        """Foreign keys, by owner. given: the keys sent, by target, `width` elements a key, one after the other."""
        return self._moved(given, self.trip.received, self.trip.sent, width)

    def back(self, given: Any, width: int) -> Any:
        """What comes back of own keys, by who had them. given: of foreign keys, by owner."""
        return self._moved(given, self.trip.sent, self.trip.received, width)

    def _moved(self, given: Any, received: Sequence[int], sent: Sequence[int], width: int) -> Any:
        out = given.new_empty(sum(received) * width)
        # As bytes: every backend moves those, whatever the dtype.
        sizes = [[count * width * given.element_size() for count in one] for one in (received, sent)]
        self.ranks.exchange(out.view(torch.uint8), given.view(torch.uint8), (sizes[0], sizes[1]), self.limit)
        return out


def _pieces(flat: Any, counts: Sequence[int], shape: tuple[int, int, int, int]) -> list[Any]:
    """For each rank its part of a flat buffer as (arrays, batch, heads, keys, head_dim); each lies in one piece.

    shape: arrays, batch, heads, head_dim.
    """
    *outer, head_dim = shape
    width = math.prod(shape)
    parts = flat.split([count * width for count in counts])
    return [part.view(*outer, count, head_dim) for part, count in zip(parts, counts, strict=True)]


class _Exchanged(torch.autograd.Function):  # type: ignore[misc]  # no types where torch is missing
    """Own keys and values followed by those of other ranks; gradients take the way back."""

    @staticmethod
    def forward(ctx: Any, k: Any, v: Any, trip: _Trip) -> Any:
        batch, heads, _, head_dim = k.shape
        shape = (2, batch, heads, head_dim)
        width = math.prod(shape)
        given = k.new_empty(sum(trip.trip.sent) * width)
        for part, places in zip(_pieces(given, trip.trip.sent, shape), trip.places(k.device), strict=True):
            for side, one in enumerate((k, v)):
                if len(places):
                    torch.index_select(one, 2, places, out=part[side])
        received = _pieces(trip.there(given, width), trip.trip.received, shape)
        ctx.trip = trip
        keys, values = (
            torch.cat([one, *(part[side] for part in received if part.numel())], 2)
            for side, one in enumerate((k, v))
        )
        return keys, values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of own keys: this rank's part, then those of other ranks in their order, in float32."""
        trip: _Trip = ctx.trip
        wanted = [side for side in (0, 1) if ctx.needs_input_grad[side]]
        if not wanted:
            return None, None, None
        batch, heads, _, head_dim = grads[wanted[0]].shape
        shape = (len(wanted), batch, heads, head_dim)
        width, own = math.prod(shape), trip.trip.own
        given = grads[wanted[0]].new_empty(sum(trip.trip.received) * width)
        before = own
        for part in _pieces(given, trip.trip.received, shape):
            for at, side in enumerate(wanted):
                part[at].copy_(grads[side][:, :, before : before + part.shape[3]])
            before += part.shape[3]
        returned = _pieces(trip.back(given, width), trip.trip.sent, shape)
        found: list[Any] = [None, None]
        for at, side in enumerate(wanted):
            parts = [part[at] for part in returned]
            found[side] = _with_parts(grads[side][:, :, :own], parts, trip.touched(given.device))
        return *found, None


def _with_parts(grad: Any, parts: Sequence[Any], touched: tuple[Any, ...]) -> Any:
    """A gradient of own keys with the parts of other ranks added in their order; only the keys that any had are read.

    touched: as `_Trip.touched`.
    """
    every, *places = touched
    out = grad.clone(memory_format=torch.contiguous_format)
    if not len(every):
        return out
    total = grad.index_select(2, every).to(torch.promote_types(grad.dtype, torch.float32))
    for part, of_rank in zip(parts, places, strict=True):
        if len(of_rank) == len(every):
            total += part
        elif len(of_rank):
            # Each place comes once: an addition whose order does not matter.
            total.index_add_(2, of_rank, part.to(total.dtype))
    return out.index_copy_(2, every, total.to(grad.dtype))


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
