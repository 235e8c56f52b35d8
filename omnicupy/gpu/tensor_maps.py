"""Tensor maps: the 128-byte descriptors by which Hopper's copy engine reads tiles of q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from omnicupy.errors import UnsupportedError
from omnicupy.gpu import bindings
from omnicupy.jit.panels import PANEL

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
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    box: tuple[int, int],
    width: int = PANEL,
) -> bytes:
    """The map of a (batch, head, token, column) tensor, for boxes of `width` columns by box = (tokens, heads).

    pointer: device address, a multiple of 16.  strides: in bytes, such that `can_map` holds.  dtype: "float16" or
    "bfloat16".  box: 1 to 256 each.  width: of a panel, 64, 32 or 16, whose rows are swizzled as a whole.  Columns and
    tokens past the tensor's end read as zeros. Returns 128 bytes.
    Raises UnsupportedError where cuda-bindings or the driver cannot make one.
    """
    batch, heads, tokens, columns = shape
    return _encoded(pointer, (columns, tokens, heads, batch), strides[2::-1], dtype, (width, *box, 1))


@lru_cache(maxsize=1024)
def packed_map(
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    group: int,
    box: tuple[int, int],
) -> bytes:
    """The map of a (batch, head, token, column) tensor whose heads are in groups, for boxes of 64 columns by
    box = (heads of a group, tokens): in a box the heads of a token follow each other.

    Heads past the end of a group read as zeros; the rest as in `tensor_map`.
    """
    batch, heads, tokens, columns = shape
    lengths = (columns, group, tokens, heads // group, batch)
    steps = (strides[1], strides[2], group * strides[1], strides[0])
    return _encoded(pointer, lengths, steps, dtype, (PANEL, *box, 1, 1))


def _encoded(
    pointer: int,
    lengths: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    box: tuple[int, ...],
) -> bytes:
    """The map of a tensor, axes from the columns on. strides: of all axes but that of the columns."""
    driver = bindings.driver()
    swizzles = driver.CUtensorMapSwizzle
    swizzle = {
        PANEL: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
        32: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
        16: swizzles.CU_TENSOR_MAP_SWIZZLE_32B,
    }[box[0]]
    kinds = driver.CUtensorMapDataType
    kind = (
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        if dtype == "bfloat16"
        else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    )
    # An axis of length 1 is never stepped along; any legal stride stands for it.
    legal = [16 if length == 1 else stride for length, stride in zip(lengths[1:], strides, strict=True)]
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    error, made = driver.cuTensorMapEncodeTiled(
        kind,
        len(lengths),
        pointer,
        [u64(length) for length in lengths],
        [u64(stride) for stride in legal],
        [u32(length) for length in box],
        [u32(1)] * len(lengths),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzle,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(error) != 0:
        raise UnsupportedError(
            f"no tensor map for shape {lengths[::-1]}, strides {strides[::-1]} (bytes), {dtype}: the driver says "
            f"{error.name}; pass config=AttnSpec(kernel='sm80', ...)"
        )
    return b"".join(int(word).to_bytes(8, "little") for word in made.opaque)
