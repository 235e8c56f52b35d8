"""Keys and values in pages as kernels take them: pools as tensors, and the fields of PageTable."""

from __future__ import annotations

from numbers import Real
from typing import Any

from omnicupy.call import check_fp8
from omnicupy.call.arrays import DeviceArray
from omnicupy.gpu.ranges import Range, byte_range
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.ragged_spec import RaggedSpec
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


def spec_of(spec: AttnSpec, kv: AnyKV, *, ragged: bool = False) -> AttnSpec:
    """The variant of a kernel that reads such caches. Raises UnsupportedError where it has none.

    ragged: sequences have numbers of rows of their own.
    """
    size = size_of(kv)
    if isinstance(spec, FewRowsSpec):
        return spec.for_caches(e4m3=check_fp8.is_fp8(kv), in_pages=size is not None, ragged=ragged)
    if check_fp8.is_fp8(kv):
        return Fp8Spec.of_e4m3(spec, in_pages=size is not None, ragged=ragged)
    found = CachedSpec.of(spec) if size is None else PagedSpec.with_pages(spec, size)
    return RaggedSpec.of(found) if ragged else found


def fields_of(kv: AnyKV) -> dict[str, int]:
    """Fields of the kernel's struct but the table's address; none of a CachedKV."""
    if not isinstance(kv, PagedKV):
        return {}
    pages, size = kv.k_pages.shape[:2]
    return {"page_next": kv.page_table.strides[0] // 4, "pages": pages, "page_size": size}


def scale_fields(kv: AnyKV) -> dict[str, Any]:
    """Fields of KvScales but addresses; those of caches that are no e4m3 are in no struct."""
    found: dict[str, Any] = {}
    for name, scale in (("k", kv.k_scale), ("v", kv.v_scale)):
        steps = () if scale is None or isinstance(scale, Real) else _scale_steps(scale)
        by_axis = {0: (0, 0, 0), 1: (0, *steps, 0), 3: (*steps[:1], *steps[2:], *steps[1:2])}
        found[f"{name}_scale_strides"] = by_axis[len(steps)]
        found[f"{name}_factor"] = 1.0 if scale is None else float(scale) if isinstance(scale, Real) else 0.0
    return found


def scale_ranges(kv: AnyKV) -> tuple[Range | None, Range | None]:
    """The bytes of the scales of keys and of values, counted from their addresses; None for numbers."""
    k, v = (
        None if scale is None or isinstance(scale, Real) else byte_range((scale.shape, scale.strides), 4)
        for scale in (kv.k_scale, kv.v_scale)
    )
    return k, v


def _scale_steps(scale: Any) -> tuple[int, ...]:
    """In elements. Kernels know scales of tokens by a stride above 0, which an axis of length 1 need not have."""
    steps = tuple(step // 4 for step in scale.strides)
    if len(steps) == 3:
        return tuple(1 if length == 1 else step for step, length in zip(steps, scale.shape, strict=True))
    return steps
