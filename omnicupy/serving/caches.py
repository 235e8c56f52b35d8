"""Caches that stand in the place of k in a call: keys and values of which only the first ones of a sequence exist."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from types import NoneType
from typing import Any, TypeAlias

MOST_PAGE = 256  # keys of a page


class CachedKV:
    """Keys and values of sequences that grow in place: `attention(q, CachedKV(k, v, lengths), mask=cached())`.

    k: (batch, kv_heads, capacity, head_dim).  v: the same, or with value_dim columns.  Of one dtype, in any strides
        that `attention` takes.
    lengths: int32 (batch,), contiguous, on the device of k and v. Sequence b has lengths[b] keys, the first ones of its
        capacity; the last q_len of them are those of the rows of q. On a device they are read when the work runs there,
        in a replayed graph at each replay; nothing on the host depends on them.

    Sequences may have numbers of query rows of their own, parts of prompts beside decoding: attention(q, kv, mask=rule,
    rows=starts, max_rows=n), and so for `plan` and `prepare`. q is then (rows of all, q_heads, head_dim), and so is
    out; lse is (q_heads, rows of all). starts: int32 (batch + 1,), contiguous, beside q: where each sequence begins in
    q, and where the last one ends; read as lengths are. max_rows: the most rows that a sequence may have, on the host.
    Rows of no sequence are left as they are, in a new array anything; on a device also those of a sequence with more
    than max_rows, or with bounds that decrease or leave q, which are errors on the host. No tail then, and `split` for
    up to 64 rows a sequence alone.

    What lies past a sequence's length may hold NaN or Inf and reaches nothing. An empty sequence (length 0) gives rows
    of 0 with lse = -inf. A length below 0 or above the capacity is an error where the host knows lengths (NumPy arrays,
    tensors on the CPU), and an empty sequence on a device. The arrays are held as given and checked by the call.

    k_scale, v_scale: of fp8 keys and values. k and v are then e4m3 ("fn": no infinity, NaN is 0x7f and 0xff):
        torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn, or their bytes as uint8, for which both scales must be given.
        An element stands for float(e4m3) * scale, a float32 product, rounded once to the dtype of q: results are those
        of caches that hold these numbers, bit for bit where the same kernel serves. A scale is a number or float32
        array (), of all; (kv_heads,), one a head; or (batch, capacity, kv_heads), one a token and head, in any strides.
        None is 1. On a device arrays of scales are read when the work runs there. NaN in the scale of a token past a
        sequence's length reaches nothing.
    """

    __slots__ = ("k", "k_scale", "lengths", "v", "v_scale")

    def __init__(self, k: Any, v: Any, lengths: Any, *, k_scale: Any = None, v_scale: Any = None) -> None:
        self.k = k
        self.v = v
        self.lengths = lengths
        self.k_scale = k_scale
        self.v_scale = v_scale

    def __repr__(self) -> str:
        return _written(self, ("k", "v", "lengths"))


class PagedKV:
    """Keys and values in pages, and where those of each sequence are: `attention(q, PagedKV(...), mask=cached())`.

    k_pages: (pages, page_size, kv_heads, head_dim); page_size is 1 to 256.  v_pages: the same, or with value_dim
        columns.  Of one dtype, in any strides whose last axis is contiguous, on a device 16-byte aligned: views of what
        engines keep pass without a copy, also with heads ahead of tokens, K and V in one array, or all layers in one.
    page_table: int32 (batch, max_pages), last axis contiguous. Keys i * page_size to (i + 1) * page_size - 1 of
        sequence b are in page page_table[b, i]. Pages may stand in any order, and in several sequences.
    lengths: int32 (batch,), as in a `CachedKV`, up to max_pages * page_size. It and the table are on the device of the
        pages and read when the work runs there, in a replayed graph at each replay.

    Masks, rows and results are those of a CachedKV that holds the same keys one behind the other, bit for bit where the
    same kernel serves. What lies past a sequence's length, in its last page or in the table, reaches nothing. An entry
    inside a length that names no page (-1, or one beyond the pool) hides its keys, and nothing is read for it; where
    the host knows the table (NumPy arrays, tensors on the CPU) that is an error, unless a window hides these keys
    anyway.
    k_scale, v_scale: of fp8 pages, as in a CachedKV; scales of tokens are (pages, page_size, kv_heads).
    """

    __slots__ = ("k_pages", "k_scale", "lengths", "page_table", "v_pages", "v_scale")

    def __init__(
        self,
        k_pages: Any,
        v_pages: Any,
        page_table: Any,
        lengths: Any,
        *,
        k_scale: Any = None,
        v_scale: Any = None,
    ) -> None:
        self.k_pages = k_pages
        self.v_pages = v_pages
        self.page_table = page_table
        self.lengths = lengths
        self.k_scale = k_scale
        self.v_scale = v_scale

    def __repr__(self) -> str:
        return _written(self, ("k_pages", "v_pages", "page_table", "lengths"))


AnyKV: TypeAlias = CachedKV | PagedKV
CACHES = (CachedKV, PagedKV)
_number_types: dict[type, bool] = {NoneType: True}  # which types of scales are numbers


def pools_of(kv: AnyKV) -> tuple[Any, Any, Any]:
    """The arrays that hold keys and values, and the table of pages, None of a CachedKV."""
    if isinstance(kv, PagedKV):
        return kv.k_pages, kv.v_pages, kv.page_table
    return kv.k, kv.v, None


def sizes_of(kv: AnyKV) -> tuple[int, int]:
    """(kv_heads, keys that a sequence may have). Raises AttributeError, TypeError,
    ValueError or IndexError for what is no such array.
    """
    if isinstance(kv, PagedKV):
        _, page_size, heads, _ = kv.k_pages.shape
        return heads, kv.page_table.shape[1] * page_size
    _, heads, capacity, _ = kv.k.shape
    return heads, capacity


def names_of(kv: AnyKV) -> tuple[str, str]:
    """What the arrays of keys and values are called."""
    return ("k_pages", "v_pages") if isinstance(kv, PagedKV) else ("k", "v")


def with_arrays(
    kv: AnyKV, pools: tuple[Any, Any], table: Any, lengths: Any, scales: tuple[Any, Any]
) -> AnyKV:
    """Caches of the same kind of other arrays."""
    k_scale, v_scale = scales
    if isinstance(kv, PagedKV):
        return PagedKV(*pools, table, lengths, k_scale=k_scale, v_scale=v_scale)
    return CachedKV(*pools, lengths, k_scale=k_scale, v_scale=v_scale)


def with_lengths(kv: AnyKV, lengths: Any) -> AnyKV:
    """The same caches with other lengths."""
    k, v, table = pools_of(kv)
    return with_arrays(kv, (k, v), table, lengths, (kv.k_scale, kv.v_scale))


def scales_key(kv: AnyKV, key_of: Callable[[Any], Any]) -> Any:
    """What plans and launches depend on of scales, but for where they lie. key_of: the same of an array."""
    if kv.k_scale is None and kv.v_scale is None:
        return None
    return tuple(
        (type(scale), scale) if _is_number(scale) else key_of(scale)  # True equals 1
        for scale in (kv.k_scale, kv.v_scale)
    )


def scale_addresses(kv: AnyKV, address_of: Callable[[Any], int]) -> tuple[int, int]:
    """Where the scales of keys and of values lie, 0 for numbers. address_of: where an array does."""
    k, v = kv.k_scale, kv.v_scale
    if k is None and v is None:
        return 0, 0
    return (
        0 if _is_number(k) else address_of(k),
        0 if _is_number(v) else address_of(v),
    )


def _is_number(scale: Any) -> bool:
    """A number, or None. Each call asks, and isinstance takes more than twice as long."""
    kind = type(scale)
    found = _number_types.get(kind)
    if found is None:
        found = _number_types[kind] = issubclass(kind, Real)
    return found


def _written(kv: AnyKV, names: tuple[str, ...]) -> str:
    """A call that makes the caches, arrays by dtype and shape; scales where they are given."""
    scales = (name for name in ("k_scale", "v_scale") if getattr(kv, name) is not None)
    parts = (f"{name}={_shown(getattr(kv, name))}" for name in (*names, *scales))
    return f"{type(kv).__name__}({', '.join(parts)})"


def _shown(array: Any) -> str:
    """Dtype and shape of an array; a number as it is, what is none as its type. Reads no element."""
    if isinstance(array, (int, float)):
        return repr(array)
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return f"{dtype}{tuple(shape)}" if isinstance(shape, tuple) else type(array).__name__
