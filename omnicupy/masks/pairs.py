"""PairSet: the immutable set of allowed (query, key) pairs behind a mask, in one of three exact forms."""

from __future__ import annotations

from typing import Any, NoReturn, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks import bits as masks_bits
from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks.arguments import integer
from omnicupy.masks.bits import ByteArray
from omnicupy.masks.intervals import BoolArray, Intervals
from omnicupy.masks.tiles import Tiles

Segment: TypeAlias = tuple[str, int, int, int]  # kind, first key, stop key, document


class PairSet:
    """The allowed pairs of `q_len` query rows and `k_len` keys; immutable, equal and hashed by content.

    Exactly one of `intervals`, `bits` and `tiles` is set. Made by the constructors of `omnicupy.masks`, which check
    their arguments; this one trusts its own: canonical intervals, bits that are zero past k_len, `live` if known.
    """

    __array_ufunc__ = None  # operators of NumPy arrays leave masks to the ones below

    __slots__ = (
        "__weakref__",
        "_hash",
        "_live",
        "_pairs",
        "bits",
        "diagonal",
        "growing",
        "intervals",
        "segments",
        "shape",
        "tiles",
    )

    shape: tuple[int, int]  # (q_len, k_len)
    intervals: Intervals | None  # start, stop: int32 (n, k_len), read-only, canonical
    bits: ByteArray | None  # uint8 (q_len, ceil(k_len / 8)), little bit order, read-only
    tiles: Tiles | None
    diagonal: int  # key minus row of the causal diagonal: CAUSAL tiles are those with k <= q + diagonal
    segments: tuple[Segment, ...]  # for pictures; () when unknown or too many to draw
    growing: bool  # made of its segments and nothing else: they say what further rows see
    _hash: int | None
    _live: tuple[int, int] | None
    _pairs: int | None

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        intervals: Intervals | None = None,
        bits: ByteArray | None = None,
        tiles: Tiles | None = None,
        diagonal: int = 0,
        segments: tuple[Segment, ...] = (),
        growing: bool = False,
        live: tuple[int, int] | None = None,
    ) -> None:
        if intervals is not None:
            intervals = (_frozen(intervals[0], np.int32), _frozen(intervals[1], np.int32))
        self._store(shape=shape, diagonal=diagonal, segments=segments, growing=growing)
        self._store(intervals=intervals, tiles=tiles, _hash=None, _live=live, _pairs=None)
        self._store(bits=None if bits is None else _frozen(bits, np.uint8))

    def _store(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be set: masks are immutable; build a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} cannot be deleted: masks are immutable; build a new one")

    def _content(self) -> dict[str, Any]:
        """What the set is made of: the arguments that make an equal one. Caches and device arrays are no part of it."""
        names = ("shape", "intervals", "bits", "diagonal", "segments", "growing")
        tiles = None if self.tiles is None else self.tiles.content()
        return {**{name: getattr(self, name) for name in names}, "tiles": tiles}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._rebuilt, (self._content(),)

    @classmethod
    def _rebuilt(cls, content: dict[str, Any]) -> Self:
        if content.get("tiles") is not None:
            content = {**content, "tiles": Tiles(content["shape"], **content["tiles"])}
        return cls(**content)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PairSet):
            if hasattr(other, "__array__") or hasattr(other, "__dlpack__"):
                raise TypeError(
                    f"mask == array: a mask equals masks alone, got {type(other).__name__}; compare "
                    "mask.to_dense() with it, or from_dense of it with the mask"
                )
            return NotImplemented
        if self is other:
            return True
        if self.shape != other.shape:
            return False
        if self.intervals is not None and other.intervals is not None:
            return all(np.array_equal(a, b) for a, b in zip(self.intervals, other.intervals, strict=True))
        if self.bits is not None and other.bits is not None:
            return np.array_equal(self.bits, other.bits)
        keys = (0, self.shape[1])  # a long interval form against bits
        if not np.array_equal(self.key_counts(), other.key_counts()):
            return False
        parts = masks_bits.chunks(*self.shape)
        return all(np.array_equal(self.dense(*q, *keys), other.dense(*q, *keys)) for q in parts)

    def __hash__(self) -> int:
        if self._hash is None:  # the counts are the same whichever form holds the pairs
            self._store(_hash=hash((self.shape, self.key_counts().tobytes())))
        assert self._hash is not None
        return self._hash

    @property
    def pairs(self) -> int:
        """Number of allowed pairs, exact."""
        if self._pairs is None:
            self._store(_pairs=int(self.key_counts().sum()))
        assert self._pairs is not None
        return self._pairs

    def key_counts(self) -> NDArray[np.int64]:
        """Rows that see each key, int64 (k_len,)."""
        if self.intervals is not None:
            return masks_intervals.key_counts(self.intervals)
        return self.key_counts_of(0, self.shape[0])

    def key_counts_of(self, q0: int, q1: int) -> NDArray[np.int64]:
        """How many of the rows [q0, q1) see each key, int64 (k_len,)."""
        if self.intervals is not None:
            start, stop = self.intervals
            inside = np.maximum(np.minimum(stop, np.int32(q1)) - np.maximum(start, np.int32(q0)), 0)
            counts: NDArray[np.int64] = inside.sum(0, dtype=np.int64)
            return counts
        if self.bits is not None:
            return masks_bits.key_counts(self.bits[q0:q1], self.shape[1])
        assert self.tiles is not None
        return self.tiles.key_counts(q0, q1)

    def dead_keys(self, first: int = 0, stop: int | None = None) -> BoolArray:
        """Boolean (k_len,): keys that no row sees; or of the keys [first, stop) alone."""
        keys = slice(first, stop)
        if self.intervals is not None:
            dead: BoolArray = (
                self.intervals[1][0, keys] == 0
            )  # canonical: unused slots are (0, 0) and come last
            return dead
        if self.bits is None:
            hidden: BoolArray = self.key_counts()[keys] == 0
            return hidden
        seen = np.bitwise_or.reduce(self.bits, axis=0)[None]
        unseen: BoolArray = ~masks_bits.unpacked(seen, (0, 1), (0, self.shape[1]))[0, keys]
        return unseen

    @property
    def live(self) -> tuple[int, int]:
        """Keys [first, stop) outside of which no row sees a key; (0, 0) where none does, all keys of other forms."""
        if self._live is None:
            live = (0, self.shape[1])
            if self.intervals is not None:
                seen = self.intervals[1][0] != 0  # canonical, as in dead_keys
                first = int(seen.argmax())
                live = (first, self.shape[1] - int(seen[::-1].argmax())) if seen[first] else (0, 0)
            self._store(_live=live)
        assert self._live is not None
        return self._live

    def dense(self, q0: int, q1: int, k0: int, k1: int) -> BoolArray:
        """Boolean array (q1 - q0, k1 - k0): rows [q0, q1), keys [k0, k1), at the cost of that block alone."""
        q_len, k_len = self.shape
        q0, q1, k0, k1 = (integer("dense", "each bound", bound) for bound in (q0, q1, k0, k1))
        if not (0 <= q0 <= q1 <= q_len and 0 <= k0 <= k1 <= k_len):
            raise ValueError(
                f"dense: rows [{q0}, {q1}) and keys [{k0}, {k1}) must lie within the mask's {q_len} rows and "
                f"{k_len} keys; clip them"
            )
        if self.intervals is not None:
            return masks_intervals.dense(self.intervals, (q0, q1), (k0, k1))
        if self.bits is not None:
            return masks_bits.unpacked(self.bits, (q0, q1), (k0, k1))
        assert self.tiles is not None
        return self.tiles.dense((q0, q1), (k0, k1))

    def to_dense(self) -> BoolArray:
        """Boolean array (q_len, k_len), True where the row sees the key. Holds all pairs: for small masks."""
        return self.dense(0, self.shape[0], 0, self.shape[1])

    def packed_bits(self) -> ByteArray:
        """The bits of the mask, whichever form it has; uint8 (q_len, ceil(k_len / 8))."""
        if self.bits is not None:
            return self.bits
        return masks_bits.from_rows(lambda q0, q1: self.dense(q0, q1, 0, self.shape[1]), *self.shape)


def _frozen(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """`array` as a C-contiguous, read-only array of `dtype`; copied only where dtype or layout differ."""
    out = np.ascontiguousarray(array, dtype=dtype)
    out.setflags(write=False)
    return out
