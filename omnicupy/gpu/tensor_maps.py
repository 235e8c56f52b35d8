"""Tensor maps: the 128-byte descriptors by which Hopper's copy engine reads tiles of q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from omnicupy.errors import UnsupportedError
from omnicupy.gpu import bindings

PANEL = 64  # columns of one box: 128 bytes, the span of the 128-byte swizzle
_STRIDE_LIMIT = 2**40  # of a tensor map, in bytes


def can_map(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Can a tensor map hold this (batch, head, token, column) tensor? strides in bytes, multiples of 16.

    No map holds a zero or negative stride, but an axis of length 1 has none that matters.
    """
    return all(
        length == 1 or 0 < stride < _STRIDE_LIMIT
        for length, stride in zip(shape[:3], strides[:3], strict=True)
    )


@lru_cache(maxsize=1024)
def tensor_map(
    pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, box: tuple[int, int]
) -> bytes:
    """The map of a (batch, head, token, column) tensor, for boxes of 64 columns by box = (tokens, heads).

    pointer: device address, a multiple of 16.  strides: in bytes, such that `can_map` holds.  dtype: "float16" or
    "bfloat16".  box: 1 to 256 each.  Columns and tokens past the tensor's end read as zeros. Returns 128 bytes.
    Raises UnsupportedError where cuda-bindings or the driver cannot make one.
    """
    driver = bindings.driver()
    batch, heads, tokens, columns = shape
    kinds = driver.CUtensorMapDataType
    kind = (
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        if dtype == "bfloat16"
        else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    )
    # An axis of length 1 is never stepped along; any legal stride stands for it.
    legal = [16 if length == 1 else stride for length, stride in zip(shape[:3], strides[:3], strict=True)]
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    error, made = driver.cuTensorMapEncodeTiled(
        kind,
        4,
        pointer,
        [u64(columns), u64(tokens), u64(heads), u64(batch)],
        [u64(legal[2]), u64(legal[1]), u64(legal[0])],
        [u32(PANEL), u32(box[0]), u32(box[1]), u32(1)],
        [u32(1)] * 4,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(error) != 0:
        raise UnsupportedError(
            f"no tensor map for shape {shape}, strides {strides} (bytes), {dtype}: the driver says {error.name}; "
            "pass config=AttnSpec(kernel='sm80', ...)"
        )
    return b"".join(int(word).to_bytes(8, "little") for word in made.opaque)
