"""The exchange of a call on torch tensors: what a rank packs, enqueues and adds up, with few operations on the device.

Buffers have shape (keys, batch, heads, columns), the columns of k beside those of v, which may be of another width: a
peer's part is one piece, whichever heads travel, and what comes is received in its place behind the own keys.

A small call takes no longer than its host takes to enqueue it, so what the shapes and strides of its tensors determine
is looked up, and pieces of tensors are views made in one step each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from omnicupy.parallel.exchange import Exchange
from omnicupy.parallel.peer_trip import PeerPending, PeerTrip
from omnicupy.parallel.places import Places, Run
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.ranks import Pending, Ranks

WIDE = 8  # bytes of a word, which a copy moves at once where it can
MOST_PACKINGS = 64  # kept of one trip

Heads: TypeAlias = slice
Waits: TypeAlias = Pending | PeerPending
EVERY = slice(None)


@dataclass(frozen=True)
class _Piece:
    """Keys [low, high) of some heads of an array (batch, heads, keys, columns), with keys in front: a view in words.

    offset: from the array's first word.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int, int, int]
    offset: int

    def of(self, words: Any) -> Any:
        return words.as_strided(self.shape, self.stride, words.storage_offset() + self.offset)


@dataclass(frozen=True)
class _Packing:
    """How arrays of one shape and layout travel. ratio: their elements in a word; 0 where they do not lie in words, so
    that elements are moved.

    given: pieces that are packed, or of which `places` are.  own: pieces copied in front of what comes.
    widths: columns of each array.  sent, buffer: shapes; both in words.  within: where among the keys copied in front
    those lie that are sent, which are taken from there; None where they are packed on their own.
    """

    ratio: int
    widths: tuple[int, ...]
    given: tuple[_Piece, ...]
    places: Any
    own: tuple[_Piece, ...]
    sent: tuple[int, int, int, int]
    buffer: tuple[int, int, int, int]
    within: Run | None = None

    def words(self, arrays: Sequence[Any]) -> Sequence[Any]:
        return [one.view(torch.int64) for one in arrays] if self.ratio else arrays

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        dtype = torch.int64 if self.ratio else like.dtype
        return torch.empty(shape, dtype=dtype, device=like.device)

    def copy_own(self, words: Sequence[Any], to: Any) -> None:
        """Own keys. to: where they go, the front of a buffer."""
        parts = to.split_with_sizes(self.widths, 3)
        for part, one, piece in zip(parts, words, self.own, strict=True):
            part.copy_(piece.of(one))

    def packed(self, words: Sequence[Any], like: Any) -> Any:
        """A buffer with what is sent."""
        found = self.empty(self.sent, like)
        if not self.sent[0]:
            return found
        parts = found.split_with_sizes(self.widths, 3)
        for part, one, piece in zip(parts, words, self.given, strict=True):
            if self.places is None:
                part.copy_(piece.of(one))
            else:
                torch.index_select(piece.of(one), 0, self.places, out=part)
        return found


class Trip:
    """What the exchanges of calls need of their plan. Kept with the plan, whatever the tensors.

    hides: enqueue on a stream of the collectives' own, so that the exchange runs beside what follows.
    peers: what moves rows in place of the group, where that is so.  overlaps: whether anything runs beside it then.
    """

    def __init__(
        self,
        plan: Plan,
        ranks: Ranks,
        mask: int | Sequence[int],
        *,
        hides: bool = True,
        overlaps: bool = False,
    ) -> None:
        self.peers: PeerTrip | None = None
        self.overlaps = overlaps
        self.exchange: Exchange = plan.exchange(ranks.rank, mask)
        self.ranks, self.hides, self._places = ranks, hides, Places(self.exchange, plan._found)
        self.own, self.coming = self.exchange.own, sum(self.exchange.received)
        self.received, self.sent = list(self.exchange.received), list(self.exchange.sent)
        self._packings: dict[Any, _Packing] = {}

    def there(
        self, arrays: Sequence[Any], heads: Heads, own: tuple[int, int], limit: float
    ) -> tuple[Any, Waits]:
        """Enqueue the exchange of these heads of k and v. own: the own keys [low, high) that are copied in front.

        Returns the buffer, (own + keys that come, batch, heads, columns of both), and what to wait for before it is
        read.
        """
        if self.peers is not None:
            return self.peers.there(arrays, heads, own, self.overlaps, limit)
        k = arrays[0]
        packing = self._packing("there", arrays, heads, own)
        words, within, count = packing.words(arrays), packing.within, own[1] - own[0]
        buffer = packing.empty(packing.buffer, k)
        front, behind = buffer.split_with_sizes((count, self.coming))
        if within is None:
            given = packing.packed(words, k)
        else:
            packing.copy_own(words, front)
            given = front[within] if isinstance(within, slice) else front.index_select(0, within)
        pending = self._moved(behind, given, self.received, self.sent, self.hides, limit)
        if count and within is None:
            packing.copy_own(words, front)
        return (buffer.view(k.dtype) if packing.ratio else buffer), pending

    def back(self, grads: Sequence[Any], hides: bool, limit: float) -> tuple[Any, Waits]:
        """Enqueue the way back of gradients of received keys, which lie behind the own ones. hides: beside what
        follows, where anything does.

        Returns the buffer of what comes back of own keys, by who had them, and what to wait for before it is read.
        """
        if self.peers is not None:
            return self.peers.back(grads, self.own, hides, limit)
        first = grads[0]
        packing = self._packing("back", grads, EVERY, (0, 0))
        given = packing.packed(packing.words(grads), first)
        buffer = packing.empty(packing.buffer, first)
        pending = self._moved(buffer, given, self.sent, self.received, hides and self.hides, limit)
        return (buffer.view(first.dtype) if packing.ratio else buffer), pending

    def add(self, grads: Sequence[Any], returned: Any) -> None:
        """In place: the parts of other ranks, in their order. grads: of own keys, and received ones behind them.
        returned: (keys that came back, batch, heads, columns of all).

        Sums are float32, and rounded once.
        """
        if not returned.numel():
            return
        if self.peers is not None and self.peers.adds(grads):
            self.peers.add(grads, returned)
            return
        for grad, part in zip(grads, parts_of(returned, widths_of(grads)), strict=True):
            self._add(grad, part)

    def _add(self, grad: Any, returned: Any) -> None:
        """The same of one of them."""
        total, parts = grad.permute(2, 0, 1, 3), returned
        # Each place comes once, and one addition in the dtype of k rounds once, too.
        if self._places.are_apart():
            places = self._places.sent(grad.device)
            if isinstance(places, slice):
                total[places].add_(parts)
            else:
                total.index_copy_(0, places, total.index_select(0, places).add_(parts))
            return
        every, *of_ranks = self._places.touched(grad.device)
        sums = total.index_select(0, every).to(torch.promote_types(grad.dtype, torch.float32))
        for part, places in zip(parts.split(self.sent), of_ranks, strict=True):
            if len(places):
                # Each place comes once: an addition whose order does not matter.
                sums.index_add_(0, places, part.to(sums.dtype))
        total.index_copy_(0, every, sums.to(grad.dtype))

    def _packing(self, what: str, arrays: Sequence[Any], heads: Heads, own: tuple[int, int]) -> _Packing:
        """own: as of `there`."""
        odd = 0
        for one in arrays:
            odd |= one.storage_offset()
        layout = [(one.shape, one.stride()) for one in arrays]
        first = arrays[0]
        key = (what, *layout, first.dtype, first.device, heads.start, heads.stop, own, odd % WIDE)
        found = self._packings.get(key)
        if found is None:
            ratio = _ratio(arrays)
            there = what == "there"
            pieces = [_pieces(arrays, heads, bounds, ratio) for bounds in ((0, self.own), own)]
            places = within = None
            if there:
                places = self._places.sent(first.device)
                # One copy less, of what is sent; but the exchange begins behind that of all own keys.
                within = places if own == (0, self.own) and not self.hides else None
                if isinstance(places, slice):
                    pieces[0] = _pieces(arrays, heads, (places.start, places.stop), ratio)
                    places = None
            else:
                pieces[0] = _pieces(arrays, heads, (self.own, self.own + self.coming), ratio)
            widths = tuple(one.shape[3] // (ratio or 1) for one in arrays)
            rest = first.shape[0], len(range(first.shape[1])[heads]), sum(widths)
            leaving, coming = sum(self.sent), self.coming
            shapes = (leaving, own[1] - own[0] + coming) if there else (coming, leaving)
            buffers = [(count, *rest) for count in shapes]
            found = _Packing(ratio, widths, pieces[0], places, pieces[1], buffers[0], buffers[1], within)
            if len(self._packings) == MOST_PACKINGS:
                self._packings.clear()
            self._packings[key] = found
        return found

    def _moved(
        self, out: Any, given: Any, received: list[int], sent: list[int], hides: bool, limit: float
    ) -> Pending:
        if given.dtype != torch.int64:  # as bytes: every backend moves those, whatever the dtype
            out, given = out.view(torch.uint8), given.view(torch.uint8)
        return self.ranks.exchange(out, given, (received, sent), limit, hides=hides)


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
    batch, heads, count = own[0].shape[:3]
    widths = widths_of(own)
    buffer = own[0].new_empty((count + received[0].shape[0], batch, heads, sum(widths)))
    for part, one in zip(parts_of(buffer[:count], widths), own, strict=True):
        _copy(part, one.permute(2, 0, 1, 3))
    for these, part in zip(groups, received, strict=True):
        _copy(buffer[count:, :, these], part)
    return sides(buffer, widths)


def _ratio(arrays: Sequence[Any]) -> int:
    """Elements in a word, where all arrays (batch, heads, keys, columns) lie in words; else 0. A copy of strided 16-bit
    numbers would move 2 bytes at once.
    """
    ratio: int = WIDE // arrays[0].element_size()
    odd = 0  # bits of every offset and step that is not a multiple of `ratio`, a power of two
    for one in arrays:
        *steps, last = one.stride()
        if last != 1 or one.element_size() * ratio != WIDE:
            return 0
        odd |= one.storage_offset() | one.shape[3]
        for step in steps:
            odd |= step
    return 0 if odd & (ratio - 1) else ratio


def _pieces(arrays: Sequence[Any], heads: Heads, keys: tuple[int, int], ratio: int) -> tuple[_Piece, ...]:
    found, (low, high), scale = [], keys, ratio or 1
    for one in arrays:
        batch, every, _, columns = one.shape
        first, stop, _ = heads.indices(every)
        steps = [step // scale for step in one.stride()[:3]]
        shape = high - low, batch, stop - first, columns // scale
        stride = steps[2], steps[0], steps[1], 1 if ratio else one.stride()[3]
        found.append(_Piece(shape, stride, low * steps[2] + first * steps[1]))
    return tuple(found)


def _copy(out: Any, given: Any) -> None:
    if _ratio((out, given)):
        out, given = out.view(torch.int64), given.view(torch.int64)
    out.copy_(given)
