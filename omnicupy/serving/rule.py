"""cached(): which keys of a cache the newest tokens of its sequences see, as a rule that needs no lengths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits as masks_bits
from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks.arguments import at_least_one, count, length
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.mask import Mask, from_bits

MAX_KEPT = 256  # masks of lengths that a rule keeps; the oldest goes first

Positions = NDArray[np.int64]


class CachedRule:
    """What `cached` returns: its arguments. Immutable; equal and hashed by content.

    window: keys a row sees up to its own, None for all.  sink: first keys that are always seen.  tail: None for causal,
    or a tuple of masks, one for all sequences or one for each.
    """

    __slots__ = ("_hash", "_kept", "sink", "tail", "window")

    window: int | None
    sink: int
    tail: tuple[Mask, ...] | None
    _hash: int | None
    _kept: OrderedDict[Any, Any]  # whose oldest entry goes in one step, whatever other threads do

    def __init__(self, window: int | None, sink: int, tail: tuple[Mask, ...] | None) -> None:
        content: dict[str, Any] = {"window": window, "sink": sink, "tail": tail, "_hash": None}
        content["_kept"] = OrderedDict()
        for name, value in content.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be set: rules are immutable; call cached anew")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} cannot be deleted: rules are immutable; call cached anew")

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedRule, (self.window, self.sink, self.tail)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CachedRule):
            return NotImplemented
        return (self.window, self.sink, self.tail) == (other.window, other.sink, other.tail)

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash((self.window, self.sink, self.tail)))
        return self._hash or 0

    def __repr__(self) -> str:
        tail = self.tail if self.tail is None or len(self.tail) > 1 else self.tail[0]
        shown = list(tail) if isinstance(tail, tuple) else tail
        return f"cached(window={self.window}, sink={self.sink}, tail={shown!r})"

    def mask(self, keys: int, q_len: int, k_len: int | None = None, *, sequence: int = 0) -> Mask:
        """The ordinary Mask (q_len, k_len) of a sequence with so many keys: for `print`, `plot`, `explain` and tests.

        keys: its length, 0 for an empty one.  q_len: rows, those of the last keys.  k_len: the cache's capacity; None
        is `keys`, at least 1.  sequence: which one, where tail is a list.
        Raises TypeError for what is no integer, ValueError for lengths out of range and a tail of another size.
        """
        where = "cached().mask"
        held = count(where, "keys", keys, hint="give the sequence's length")
        rows = length(where, "q_len", q_len)
        columns = length(where, *(("keys", max(1, held)) if k_len is None else ("k_len", k_len)))
        if held > columns:
            raise ValueError(
                f"{where}: keys must be at most k_len ({columns}), got {held}; give the capacity as k_len"
            )
        which = count(where, "sequence", sequence)
        if self.tail is not None and len(self.tail) > 1 and which >= len(self.tail):
            raise ValueError(
                f"{where}: sequence must be below {len(self.tail)}, the masks of tail, got {which}"
            )
        self.check_tail(where, rows)
        return _mask_at(self, self.tail_of(which), rows, held, np.arange(columns, dtype=np.int64))

    def check_tail(self, where: str, q_len: int) -> None:
        """Raises ValueError unless the masks of tail have the shape of the rows."""
        for i, one in enumerate(self.tail or ()):
            if one.shape != (q_len, q_len):
                name = "tail" if len(self.tail or ()) == 1 else f"tail[{i}]"
                raise ValueError(
                    f"{where}: {name} must have the shape (q tokens, q tokens) = {(q_len, q_len)}, got {one.shape}; "
                    "it says which of the new keys the new rows see"
                )

    def tail_of(self, sequence: int) -> Mask | None:
        """The tail of one sequence, None for causal."""
        if self.tail is None:
            return None
        return self.tail[0] if len(self.tail) == 1 else self.tail[sequence]

    def seen_keys(self, keys: int, q_len: int) -> tuple[int, int]:
        """(sink, first): a sequence of `keys` keys is seen by some row at keys [0, sink) and [first, keys) at most."""
        first = 0 if self.window is None else max(0, max(keys - q_len, 0) - self.window + 1)
        return (0, 0) if first <= self.sink else (self.sink, first)

    def seen_mask(self, keys: int, q_len: int, sequence: int) -> Mask:
        """The Mask of a sequence against the keys of `seen_keys` alone, one behind the other. keys: at least 1.

        Kept: behind a window the same one serves every length, and what it costs follows the window.
        """
        sink, first = self.seen_keys(keys, q_len)
        which = 0 if self.tail is None or len(self.tail) == 1 else sequence
        key = (which, q_len, keys if first == 0 else None)
        found = self._kept.get(key)
        if found is None:
            positions = np.concatenate([np.arange(sink), np.arange(first, keys)])
            found = _mask_at(self, self.tail_of(which), q_len, keys, positions)
            while len(self._kept) >= MAX_KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = found
        return found


def cached(window: int | None = None, sink: int = 0, tail: Mask | Sequence[Mask] | None = None) -> CachedRule:
    """Which keys of a `CachedKV` the rows of q see: the rows are the last q_len tokens of each sequence.

    Row i of a sequence with L keys is the token at position p = L - q_len + i. A key before L - q_len, the history, is
    seen where k > p - window or k < sink. The last q_len keys are the rows' own:
    window: how many keys up to its own a row sees, as models count it; None is all.
    sink: so many first keys are seen in spite of the window. (Not to be mixed up with `oc.sink`, a mask, or with
        logits of sinks, which are scores.)
    tail: None is causal, and window and sink then hold for these keys too: with them the rule is an ordinary sliding
        window. A Mask (q_len, q_len) decides alone which of the last q_len keys a row sees, whatever the window: images
        in a chunk, trees of drafts; a list has one Mask for each sequence.

    Where a sequence has fewer keys than rows (L < q_len), the first q_len - L rows have no token: they see nothing, and
    get out = 0 and lse = -inf.

    Returns a rule, to be passed as `mask`; cached(...).mask(L, q_len) is the ordinary Mask for one length. The same
    arguments give equal rules, and keeping one saves time with a tail.
    Raises TypeError for values of other types, ValueError for a window below 1, a sink below 0, an empty list and masks
    of other shapes than (n, n).
    """
    width = None if window is None else at_least_one("cached", "window", window)
    first = count("cached", "sink", sink)
    if tail is None:
        return _plain(width, first)
    masks = (tail,) if isinstance(tail, Mask) else tail
    if not isinstance(masks, (list, tuple)):
        raise TypeError(
            f"cached: tail must be a Mask, a list of one Mask per sequence, or None (causal), got {type(tail).__name__}"
        )
    if not masks:
        raise ValueError(
            "cached: tail must hold one Mask per sequence, got an empty list; pass None for causal"
        )
    for i, one in enumerate(masks):
        name = "tail" if isinstance(tail, Mask) else f"tail[{i}]"
        if not isinstance(one, Mask):
            raise TypeError(
                f"cached: {name} must be a Mask, got {type(one).__name__}; build one with oc.causal(n)"
            )
        if one.shape[0] != one.shape[1] or one.shape != masks[0].shape:
            raise ValueError(
                f"cached: {name} must be square, of one size for all sequences, got {one.shape}; it says which of the "
                "last n keys the n rows see"
            )
    return CachedRule(width, first, tuple(masks))


_PLAIN: dict[tuple[int | None, int], CachedRule] = {}


def _plain(window: int | None, sink: int) -> CachedRule:
    """The rule without a tail: one object for equal arguments, so that its masks are made once."""
    if len(_PLAIN) >= MAX_KEPT:
        _PLAIN.clear()
    return _PLAIN.setdefault((window, sink), CachedRule(window, sink, None))


def _within(rule: CachedRule, keys: int) -> tuple[int | None, int]:
    """Window and sink, None and 0 where the window hides none of so many keys: however large, they fit int64 then."""
    return (None, 0) if rule.window is None or rule.window >= keys else (rule.window, min(rule.sink, keys))


def _mask_at(rule: CachedRule, tail: Mask | None, rows: int, keys: int, positions: Positions) -> Mask:
    """The mask of `rows` rows against the keys at these positions, ascending, of a sequence of `keys` keys."""
    history = keys - rows
    shape = (rows, len(positions))
    if tail is not None and tail.intervals is None:

        def dense(first: int, stop: int) -> BoolArray:
            return _dense(rule, tail, keys, positions, np.arange(first, stop))

        return from_bits(masks_bits.from_rows(dense, *shape), shape)
    start = np.full(shape[1], max(0, -history), np.int64)  # rows before have no token
    stop = np.full(shape[1], rows, np.int64)
    window, sink = _within(rule, keys)
    if window is not None:
        inside = np.minimum(positions - history + window, rows)
        stop = np.where(positions < sink, rows, inside)
    if tail is None:
        start = np.maximum(start, positions - history)
    start, stop = start[None], stop[None]
    own = (positions >= history) & (positions < keys)
    if tail is not None:
        assert tail.intervals is not None
        lows, highs = tail.intervals
        start = np.repeat(start, len(lows), axis=0)
        stop = np.repeat(stop, len(lows), axis=0)
        start[1:], stop[1:] = 0, 0
        start[:, own] = np.maximum(lows[:, positions[own] - history], max(0, -history))
        stop[:, own] = highs[:, positions[own] - history]
    nothing = (start >= stop) | (positions >= keys)
    start[nothing], stop[nothing] = 0, 0
    pairs = masks_intervals.canonical(start.astype(np.int32), stop.astype(np.int32))
    shift = int(positions[-1]) + 1 - shape[1]  # of the last keys
    return Mask(shape, intervals=pairs, diagonal=history - shift)


def _dense(rule: CachedRule, tail: Mask, keys: int, positions: Positions, rows: Positions) -> BoolArray:
    """Rows of a mask whose tail is not held as intervals, as booleans (rows, positions)."""
    history = keys - tail.shape[0]
    at = (history + rows)[:, None]
    seen = np.repeat((positions < history)[None], len(rows), axis=0)
    window, sink = _within(rule, keys)
    if window is not None:
        seen &= (positions > at - window) | (positions < sink)
    own = np.flatnonzero((positions >= history) & (positions < keys))
    if len(own):
        of_tail = tail.dense(int(rows[0]), int(rows[-1]) + 1, 0, tail.shape[1])
        seen[:, own] = of_tail[:, positions[own] - history]
    return seen & (at >= 0)
