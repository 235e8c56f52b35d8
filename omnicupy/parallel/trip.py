"""The exchange of a call on torch tensors: what a rank packs, enqueues and adds up, with few operations on the device.

Buffers have shape (keys, batch, heads, columns), the columns of k beside those of v, which may be of another width: a
peer's part is one piece, whichever heads travel, and what comes is received in its place behind the own keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from omnicupy.parallel.exchange import Exchange
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.ranks import Pending, Ranks
from omnicupy.parallel.seen import Whole

WIDE = 8  # bytes that a copy moves at once where it can

Heads: TypeAlias = slice
Places: TypeAlias = Any  # slice or index tensor


class Trip:
    """What the exchanges of a call need of its plan.

    hides: enqueue on a stream of the collectives' own, so that the exchange runs beside what follows.
    """

    def __init__(
        self, plan: Plan, ranks: Ranks, mask: int | Sequence[int], limit: float, hides: bool = True
    ) -> None:
        self.exchange: Exchange = plan.exchange(ranks.rank, mask)
        self.ranks, self.limit, self.hides, self._found = ranks, limit, hides, plan._found
        self.own, self.coming = self.exchange.own, sum(self.exchange.received)

    def there(self, arrays: Sequence[Any], heads: Heads, own: int = 0) -> tuple[Any, Pending]:
        """Enqueue the exchange of these heads of k and v. own: keys that the buffer has room for in front.

        Returns the buffer, (own + keys that come, batch, heads, columns of both), and what to wait for before it is
        read.
        """
        given = _new(arrays, heads, sum(self.exchange.sent))
        every = self._places(arrays[0].device)
        for part, one in zip(parts_of(given, widths_of(arrays)), arrays, strict=True):
            if given.shape[0]:
                _gather(part, _by_key(one[:, heads]), every)
        buffer = _new(arrays, heads, own + self.coming)
        return buffer, self._moved(
            buffer[own:], given, self.exchange.received, self.exchange.sent, self.hides
        )

    def back(self, grads: Sequence[Any], before: int, hides: bool = False) -> tuple[Any, Pending]:
        """Enqueue the way back of gradients of received keys, which lie behind `before` own ones. hides: beside what
        follows, where anything does.

        Returns the buffer of what comes back of own keys, by who had them, and what to wait for before it is read.
        """
        every = slice(None)
        given = _new(grads, every, self.coming)
        for part, one in zip(parts_of(given, widths_of(grads)), grads, strict=True):
            if self.coming:
                _copy(part, _by_key(one)[before:])
        buffer = _new(grads, every, sum(self.exchange.sent))
        hides = hides and self.hides
        return buffer, self._moved(buffer, given, self.exchange.sent, self.exchange.received, hides)

    def add(self, grad: Any, returned: Any) -> None:
        """In place: the parts of other ranks, in their order. returned: (keys that came back, batch, heads, columns).

        Sums are float32, and rounded once.
        """
        if not returned.shape[0]:
            return
        total, parts = _by_key(grad), returned
        if self._apart():  # each place comes once, and one addition in the dtype of k rounds once, too
            places = self._places(grad.device)
            if isinstance(places, slice):
                total[places].add_(parts)
            else:
                total.index_copy_(0, places, total.index_select(0, places).add_(parts))
            return
        every, *of_ranks = self._touched(grad.device)
        sums = total.index_select(0, every).to(torch.promote_types(grad.dtype, torch.float32))
        for part, places in zip(parts.split(list(self.exchange.sent)), of_ranks, strict=True):
            if len(places):
                # Each place comes once: an addition whose order does not matter.
                sums.index_add_(0, places, part.to(sums.dtype))
        total.index_copy_(0, every, sums.to(grad.dtype))

    def _apart(self) -> bool:
        """Whether no key is sent to two ranks."""
        key = ("apart", id(self.exchange))
        if key not in self._found:
            every = np.concatenate(self.exchange.send)
            self._found[key] = len(np.unique(every)) == len(every)
        return bool(self._found[key])

    def _places(self, device: Any) -> Places:
        """The places of the keys that are sent, by target: a slice where they are one run, else on this device."""

        def made() -> Places:
            every = np.concatenate(self.exchange.send)
            if len(every) and (np.diff(every) == 1).all():
                return slice(int(every[0]), int(every[-1]) + 1)
            return _on(device, every)

        return self._kept("places", device, made)

    def _touched(self, device: Any) -> tuple[Any, ...]:
        """The places of the keys that any rank is sent, ascending; then for each rank where among them its own are."""

        def made() -> tuple[Any, ...]:
            every = np.unique(np.concatenate(self.exchange.send))
            return tuple(
                _on(device, one)
                for one in (every, *(np.searchsorted(every, one) for one in self.exchange.send))
            )

        found: tuple[Any, ...] = self._kept("touched", device, made)
        return found

    def _kept(self, name: str, device: Any, made: Callable[[], Any]) -> Any:
        key = (name, id(self.exchange), device)
        if key not in self._found:
            self._found[key] = made()
        return self._found[key]

    def _moved(
        self, out: Any, given: Any, received: Sequence[int], sent: Sequence[int], hides: bool
    ) -> Pending:
        # As bytes: every backend moves those, whatever the dtype.
        width = given.shape[1] * given.shape[2] * given.shape[3] * given.element_size()
        sizes = [[count * width for count in one] for one in (received, sent)]
        flat = [one.reshape(-1).view(torch.uint8) for one in (out, given)]
        return self.ranks.exchange(flat[0], flat[1], (sizes[0], sizes[1]), self.limit, hides=hides)


def own_copied(buffer: Any, arrays: Sequence[Any], heads: Heads, low: int, high: int) -> None:
    """Own keys [low, high) of these heads into the front of a buffer."""
    for part, one in zip(parts_of(buffer[: high - low], widths_of(arrays)), arrays, strict=True):
        if low < high:
            _copy(part, _by_key(one[:, heads, low:high]))


def widths_of(arrays: Sequence[Any]) -> list[int]:
    """Columns of each."""
    return [one.shape[3] for one in arrays]


def parts_of(buffer: Any, widths: Sequence[int]) -> Sequence[Any]:
    """The arrays of a buffer that are so wide, (keys, batch, heads, columns) each; views."""
    found: Sequence[Any] = buffer.split_with_sizes(widths, 3)
    return found


def sides(buffer: Any, widths: Sequence[int]) -> list[Any]:
    """The same, (batch, heads, keys, columns) each."""
    return [one.permute(1, 2, 0, 3) for one in parts_of(buffer, widths)]


def joined(own: Sequence[Any], groups: Sequence[Heads], received: Sequence[Any]) -> list[Any]:
    """Own k and v, then what was received, of each group of heads; where nothing was, as they are."""
    if not received[0].shape[0]:
        return list(own)
    every, count = slice(None), own[0].shape[2]
    buffer = _new(own, every, count + received[0].shape[0])
    own_copied(buffer, own, every, 0, count)
    for heads, part in zip(groups, received, strict=True):
        _copy(buffer[count:, :, heads], part)
    return sides(buffer, widths_of(own))


def _new(arrays: Sequence[Any], heads: Heads, keys: int) -> Any:
    """A buffer for these heads of the arrays."""
    batch, every = arrays[0].shape[:2]
    columns = sum(widths_of(arrays))
    count = every if heads == slice(None) else len(range(every)[heads])
    return arrays[0].new_empty((keys, batch, count, columns))


def _by_key(array: Any) -> Any:
    """(batch, heads, keys, columns) with keys in front."""
    return array.permute(2, 0, 1, 3)


def _gather(out: Any, given: Any, places: Places) -> None:
    if isinstance(places, slice):
        _copy(out, given[places])
        return
    out, given = _wide(out, given)
    torch.index_select(given, 0, places, out=out)


def _copy(out: Any, given: Any) -> None:
    out, given = _wide(out, given)
    out.copy_(given)


def _wide(*tensors: Any) -> Sequence[Any]:
    """The same bytes as larger numbers, where all allow it: a copy of strided 16-bit numbers moves 2 bytes at once."""
    ratio = WIDE // tensors[0].element_size()
    if ratio == 1:
        return tensors
    odd = 0  # bits of every offset and step that is not a multiple of `ratio`, a power of two
    for one in tensors:
        keys, batch, heads, last = one.stride()
        if last != 1:
            return tensors
        odd |= one.storage_offset() | one.shape[3] | keys | batch | heads
    return tensors if odd & (ratio - 1) else [one.view(torch.int64) for one in tensors]


def _on(device: Any, places: Whole) -> Any:
    return torch.from_numpy(places).to(device)
