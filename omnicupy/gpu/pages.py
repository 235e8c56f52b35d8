"""Keys and values in pages as kernels take them: pools as tensors, and the fields of PageTable."""

from __future__ import annotations

from typing import Any

from omnicupy.call.arrays import DeviceArray
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.serving.caches import AnyKV, PagedKV


def tensors_of(kv: AnyKV) -> tuple[Any, Any]:
    """Keys and values: (batch, kv_heads, tokens, head_dim), of a PagedKV (pages, kv_heads, page_size, head_dim)."""
    if isinstance(kv, PagedKV):
        return _heads_first(kv.k_pages), _heads_first(kv.v_pages)
    return kv.k, kv.v


def _heads_first(pages: Any) -> DeviceArray:
    shape, strides = (tuple(of[axis] for axis in (0, 2, 1, 3)) for of in (pages.shape, pages.strides))
    return DeviceArray(pages.dtype, pages.data.ptr, pages.data.device_id, shape, strides)


def size_of(kv: AnyKV) -> int | None:
    """Keys of a page; None where they are not in pages."""
    return int(kv.k_pages.shape[1]) if isinstance(kv, PagedKV) else None


def spec_of(spec: AttnSpec, kv: AnyKV) -> AttnSpec:
    """The variant of a kernel that reads such caches."""
    return PagedSpec.with_pages(spec, kv.k_pages.shape[1]) if isinstance(kv, PagedKV) else CachedSpec.of(spec)


def fields_of(kv: AnyKV) -> dict[str, int]:
    """Fields of the kernel's struct but the table's address; none of a CachedKV."""
    if not isinstance(kv, PagedKV):
        return {}
    pages, size = kv.k_pages.shape[:2]
    return {"page_next": kv.page_table.strides[0] // 4, "pages": pages, "page_size": size}
