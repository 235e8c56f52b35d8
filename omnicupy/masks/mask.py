"""Mask: what a caller builds once and passes to every attention call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, NoReturn

import numpy as np

from omnicupy.masks import bits as masks_bits
from omnicupy.masks import intervals as masks_intervals
from omnicupy.masks import segments as segment_lists
from omnicupy.masks import text, tile_algebra
from omnicupy.masks.arguments import flag, integer, length, tile
from omnicupy.masks.bits import ByteArray
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.cut import cut
from omnicupy.masks.handles import handle_for
from omnicupy.masks.key_cut import cut_by_keys
from omnicupy.masks.pairs import PairSet, Segment
from omnicupy.masks.picture import checked_file, plot
from omnicupy.masks.segments import Document
from omnicupy.masks.stats import MaskStats, stats_of
from omnicupy.masks.transpose import KeyBlocks


class Mask(PairSet):
    """Which of `k_len` keys each of `q_len` query rows may see; independent of dtype, heads and kernels.

    Immutable; equal and hashed by content; combined by `&`, `|` and `~`; pickles and copies without its
    caches. Build one with `full`, `causal`, `segments`, `documents`, `sliding_window`, `sink`, `prefix`,
    `ranges`, `intervals`, `from_dense`, `from_predicate`, `from_tiles` or `random`. `print(mask)` draws it, `shape`
    is (q_len, k_len), `pairs` how many are allowed, and `to_dense()` makes booleans (q_len, k_len) of them.
    """

    __slots__ = ("_blocks", "_device", "handle")

    handle: int  # names this object where only numbers pass; a copy has another, and none is used twice
    _blocks: dict[tuple[Any, int, int], Any]  # by what cuts and the tile
    _device: dict[Any, Any]  # device copies, kept by omnicupy.gpu and freed with the mask

    def __init__(self, shape: tuple[int, int], **content: Any) -> None:
        super().__init__(shape, **content)
        self._store(_blocks={}, _device={}, handle=handle_for(self))

    def __bool__(self) -> NoReturn:
        raise ValueError(
            "the truth value of a mask is not defined; combine masks by &, | and ~, not and, or, not"
        )

    def __repr__(self) -> str:
        form = (
            "tiles"
            if self.tiles is not None
            else "bits"
            if self.intervals is None
            else f"intervals={len(self.intervals[0])}"
        )
        return f"<Mask {self.shape[0]}x{self.shape[1]} pairs={self.pairs} {form} diagonal={self.diagonal}>"

    def __str__(self) -> str:
        """The mask drawn as text."""
        return text.text(self)

    def __and__(self, other: Mask) -> Mask:
        """Pairs that both masks allow. Raises ValueError when the shapes differ, TypeError for what is no mask."""
        notes = self._combined("&", other)
        if self.tiles is not None or other.tiles is not None:
            return Mask(self.shape, tiles=tile_algebra.intersection(self, other), **notes)
        if self.intervals is None or other.intervals is None:
            return from_bits(self.packed_bits() & other.packed_bits(), self.shape, **notes)
        return Mask(
            self.shape, intervals=masks_intervals.intersection(self.intervals, other.intervals), **notes
        )

    def __or__(self, other: Mask) -> Mask:
        """Pairs that either mask allows. Raises ValueError when the shapes differ, TypeError for what is no mask."""
        notes = self._combined("|", other)
        if self.tiles is not None or other.tiles is not None:
            if (lists := tile_algebra.union(self, other)) is not None:
                return Mask(self.shape, tiles=lists, **notes)
            return self._without_tiles(**notes) | other._without_tiles()
        if self.intervals is None or other.intervals is None:
            return from_bits(self.packed_bits() | other.packed_bits(), self.shape, **notes)
        return Mask(self.shape, intervals=masks_intervals.union(self.intervals, other.intervals), **notes)

    def __rand__(self, other: object) -> NoReturn:
        self._refuse("&", other)

    def __ror__(self, other: object) -> NoReturn:
        self._refuse("|", other)

    def __invert__(self) -> Mask:
        """Pairs that the mask does not allow."""
        notes: dict[str, Any] = {"diagonal": self.diagonal}
        if self.tiles is not None:
            lists = tile_algebra.complement(self.tiles)
            return ~self._without_tiles(**notes) if lists is None else Mask(self.shape, tiles=lists, **notes)
        if self.intervals is not None:
            return Mask(
                self.shape, intervals=masks_intervals.complement(self.intervals, self.shape[0]), **notes
            )
        assert self.bits is not None
        return from_bits(masks_bits.inverted(self.bits, self.shape[1]), self.shape, **notes)

    def _without_tiles(self, **notes: Any) -> Mask:
        """The same pairs as intervals or bits."""
        short, bits = (self.intervals, self.bits) if self.tiles is None else tile_algebra.other_form(self)
        return Mask(self.shape, intervals=short, bits=bits, **notes)

    def _combined(self, sign: str, other: object) -> dict[str, Any]:
        """What a combination inherits: the first diagonal other than 0, the first segments that are known."""
        if not isinstance(other, Mask):
            self._refuse(sign, other)
        if self.shape != other.shape:
            raise ValueError(
                f"mask {sign} mask: both must have one shape (q_len, k_len), got {self.shape} and "
                f"{other.shape}; slice the larger one"
            )
        return {"diagonal": self.diagonal or other.diagonal, "segments": self.segments or other.segments}

    def _refuse(self, sign: str, other: object) -> NoReturn:
        raise TypeError(
            f"mask {sign} mask: both must be masks, got {type(other).__name__}; a boolean array becomes one "
            "with from_dense"
        )

    def rows(self, start: int, stop: int, keys: int | None = None) -> Mask:
        """Query rows [start, stop) against the first `keys` keys (None: all of them), as for a KV cache.

        The new mask has shape (stop - start, keys). Raises ValueError when the rows or the keys do not exist.
        """
        q_len, k_len = self.shape
        start, stop = integer("rows", "start", start), integer("rows", "stop", stop)
        keys = k_len if keys is None else integer("rows", "keys", keys)
        if not 0 <= start < stop <= q_len:
            raise ValueError(
                f"rows: start and stop must satisfy 0 <= start < stop <= {q_len}, got {start} and {stop}; "
                "name rows of the mask"
            )
        if not 1 <= keys <= k_len:
            raise ValueError(
                f"rows: keys must be from 1 to {k_len}, got {keys}; build the mask with more keys"
            )
        return self._crop((start, stop), (0, keys))

    def __getitem__(self, index: tuple[slice, slice]) -> Mask:
        """mask[a:b, c:d]: query rows [a, b) against keys [c, d), renumbered from 0; bounds as in NumPy.

        Raises TypeError for anything but two slices of step 1, ValueError for an empty result.
        """
        if not (
            isinstance(index, tuple) and len(index) == 2 and all(isinstance(part, slice) for part in index)
        ):
            raise TypeError(
                f"mask[...]: expected two slices, as in mask[a:b, c:d], got {index!r}; write them out"
            )
        try:
            q0, q1, q_step = index[0].indices(self.shape[0])
            k0, k1, k_step = index[1].indices(self.shape[1])
        except TypeError:
            raise TypeError(f"mask[...]: bounds must be integers, got {index}; pass whole numbers") from None
        if q_step != 1 or k_step != 1:
            raise ValueError(
                f"mask[...]: slices must have step 1, got steps {q_step} and {k_step}; drop the steps"
            )
        if q0 >= q1 or k0 >= k1:
            raise ValueError(
                f"mask[...]: slices must hold at least one row and one key of {self.shape}, got "
                f"rows [{q0}, {q1}) and keys [{k0}, {k1}); widen them"
            )
        return self._crop((q0, q1), (k0, k1))

    def _crop(self, rows: tuple[int, int], keys: tuple[int, int]) -> Mask:
        (q0, q1), (k0, k1) = rows, keys
        shape = (q1 - q0, k1 - k0)
        notes: dict[str, Any] = {
            "diagonal": self.diagonal + q0 - k0,
            "segments": tuple(
                (kind, max(first, k0) - k0, min(stop, k1) - k0, document)
                for kind, first, stop, document in self.segments
                if first < k1 and stop > k0
            ),
        }
        if self.intervals is not None:
            growing = self.growing and rows == keys and q0 == 0  # its first tokens
            return Mask(
                shape, intervals=masks_intervals.crop(self.intervals, rows, keys), growing=growing, **notes
            )
        if self.tiles is not None:
            return Mask(shape, tiles=self.tiles.crop(rows, keys), **notes)
        bits = masks_bits.from_rows(lambda a, b: self.dense(q0 + a, q0 + b, k0, k1), *shape)
        return from_bits(bits, shape, **notes)

    def extend(self, added: Mask | Document | Sequence[Document], *, new_document: bool = False) -> Mask:
        """The mask with tokens appended, equal to the one built whole; this one stays as it is.

        added: segments, as `segments` takes them, for a mask that `segments`, `documents`, `causal` or a
        preset made of segments alone: mask.extend([("text", 12), ("image", 64)]). They continue the last
        document, or start a new one (new_document); of a list of documents the first continues. Without tokens
        they add nothing. Or a mask of the new rows against all keys, old ones first, of shape (new rows, old keys
        + new keys), for any mask; the old rows do not see the new keys: whole == whole.rows(0, a,
        b).extend(whole.rows(a, q_len)) where no row before a sees a key from b on.

        Raises TypeError or ValueError for other lists, for segments where the mask is not made of segments
        (windows, for one, do not say what further rows see) and for a mask with fewer keys.
        """
        new_document = flag("extend", "new_document", new_document)
        if isinstance(added, Mask):
            return self._with_rows(added, new_document)
        new = segment_lists.checked("extend", "added", added)
        if not len(new.kinds):
            return self
        k_len = self.shape[1]
        old = segment_lists.of_segments(self.segments or [(segment_lists.TEXT, 0, k_len, 0)])
        # A window that is wider than the mask leaves the same pairs, but not the same further rows; more segments than
        # are described leave none here.
        if (
            not self.growing
            or old.tokens != k_len
            or Mask(self.shape, intervals=segment_lists.spans(old)[0]) != self
        ):
            raise ValueError(
                f"extend: segments continue only a mask made of at most {segment_lists.MAX_DRAWN} segments and "
                f"nothing else, got {self!r}; append a mask of the new rows against all keys instead"
            )
        pairs, described = segment_lists.spans(segment_lists.joined(old, new, new_document))
        total = pairs[0].shape[1]
        notes: dict[str, Any] = {"segments": described, "growing": bool(described)}
        return Mask((total, total), intervals=pairs, diagonal=self.diagonal, **notes)

    def _with_rows(self, rows: Mask, new_document: bool) -> Mask:
        q_len, k_len = self.shape
        shape = (length("extend", "the rows of both masks", q_len + rows.shape[0]), rows.shape[1])
        if new_document:
            raise ValueError(
                "extend: new_document goes with segments, got it with a mask; the mask's rows say what they see"
            )
        if rows.shape[1] < k_len:
            raise ValueError(
                f"extend: a mask of new rows must have the {k_len} keys of this mask or more, got shape "
                f"{rows.shape}; build it against all keys, old ones first"
            )
        notes: dict[str, Any] = {"diagonal": self.diagonal, "segments": rows.segments or self.segments}
        if self.intervals is not None and rows.intervals is not None:
            return Mask(
                shape, intervals=masks_intervals.stacked(self.intervals, rows.intervals, q_len), **notes
            )
        bits = np.zeros((shape[0], -(-shape[1] // 8)), np.uint8)
        old = self.packed_bits()
        bits[:q_len, : old.shape[1]] = old
        bits[q_len:] = rows.packed_bits()
        return from_bits(bits, shape, **notes)

    def blocks(self, br: int, bc: int) -> BlockMask:
        """The mask cut into tiles of br query rows (any number) and bc keys (a multiple of 32); cached.

        Raises ValueError for other tile sizes.
        """
        found: BlockMask = self._cut(cut, br, bc)
        return found

    def key_blocks(self, br: int, bc: int) -> KeyBlocks:
        """As `blocks`, by blocks of keys, as gradients walk them: a ValueError unless br is a multiple of 32, too."""
        found: KeyBlocks = self._cut(cut_by_keys, br, bc)
        return found

    def _cut(self, how: Callable[[PairSet, int, int], Any], br: int, bc: int) -> Any:
        found = self._blocks.get((how, br, bc)) if type(br) is type(bc) is int else None
        if found is None:
            br, bc = tile("br", br, 1, "query rows"), tile("bc", bc, 32, "keys")
            # the block mask holds the pairs, not this object: no cycle, so the caches die with the mask
            notes: dict[str, Any] = {"diagonal": self.diagonal, "live": self.live}
            pairs = PairSet(self.shape, intervals=self.intervals, bits=self.bits, tiles=self.tiles, **notes)
            found = self._blocks.setdefault((how, br, bc), how(pairs, br, bc))
        return found

    def stats(self, br: int = 128, bc: int = 128) -> MaskStats:
        """Pairs, density, tiles by kind and waste of the mask cut at (br, bc); print it."""
        return stats_of(self.blocks(br, bc), self.pairs)

    def plot(self, path: str | PathLike[str], *, br: int = 128, bc: int = 128) -> None:
        """Save a picture (the suffix of `path` names the format) of segments and tile kinds at (br, bc).

        Raises, before anything is cut or drawn, ImportError without matplotlib, TypeError and ValueError for a path
        that cannot be written.
        """
        target = checked_file(path)
        plot(self.blocks(br, bc), self.segments, target)


def from_bits(
    bits: ByteArray, shape: tuple[int, int], *, diagonal: int = 0, segments: tuple[Segment, ...] = ()
) -> Mask:
    """The mask of packed bits (see bits.py; they are taken over), held as intervals where those are short."""
    short = masks_bits.short_intervals_of(bits, shape[1])
    kept = bits if short is None else None
    return Mask(shape, intervals=short, bits=kept, diagonal=diagonal, segments=segments)
