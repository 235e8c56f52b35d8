"""Caches that stand in the place of k in a call: keys and values of which only the first ones of a sequence exist."""

from __future__ import annotations

from typing import Any, TypeAlias

from omnicupy.errors import UnsupportedError

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
    """

    __slots__ = ("k", "lengths", "v")

    def __init__(self, k: Any, v: Any, lengths: Any) -> None:
        self.k = k
        self.v = v
        self.lengths = lengths

    def __repr__(self) -> str:
        parts = (f"{name}={_shown(getattr(self, name))}" for name in ("k", "v", "lengths"))
        return f"CachedKV({', '.join(parts)})"


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
    k_scale, v_scale: of fp8 pages, which no kernel reads yet: anything but None raises UnsupportedError.
    """

    __slots__ = ("k_pages", "lengths", "page_table", "v_pages")

    def __init__(
        self,
        k_pages: Any,
        v_pages: Any,
        page_table: Any,
        lengths: Any,
        *,
        k_scale: None = None,
        v_scale: None = None,
    ) -> None:
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None:
                raise UnsupportedError(
                    f"PagedKV: {name} must be None, got {type(scale).__name__}: fp8 pages are not served; keep pages "
                    "of float16 or bfloat16"
                )
        self.k_pages = k_pages
        self.v_pages = v_pages
        self.page_table = page_table
        self.lengths = lengths

    def __repr__(self) -> str:
        names = ("k_pages", "v_pages", "page_table", "lengths")
        return f"PagedKV({', '.join(f'{name}={_shown(getattr(self, name))}' for name in names)})"


AnyKV: TypeAlias = CachedKV | PagedKV
CACHES = (CachedKV, PagedKV)


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


def with_lengths(kv: AnyKV, lengths: Any) -> AnyKV:
    """The same caches with other lengths."""
    if isinstance(kv, PagedKV):
        return PagedKV(kv.k_pages, kv.v_pages, kv.page_table, lengths)
    return CachedKV(kv.k, kv.v, lengths)


def _shown(array: Any) -> str:
    """Dtype and shape of an array; what is none as its type. Reads no element."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return type(array).__name__ if shape is None else f"{dtype}{tuple(shape)}"
