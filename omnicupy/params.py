"""The launch ABI: each kernel's parameter struct as a NumPy dtype, the fields of kernels/omni/params.cuh."""

from __future__ import annotations

import numpy as np

_POINTERS = (
    "q",
    "k",
    "v",
    "out",
    "lse",
    "row_offsets",
    "entries",
    "pieces",
    "order",
    "bit_tiles",
    "spans",
    "dead",
)
_STRIDES = ("q_strides", "k_strides", "v_strides", "out_strides")
_FLOATS = ("scale", "scale_log2")
_INTS = (
    *("q_len", "k_len", "head_dim", "batch", "q_heads", "group", "q_blocks", "mask_batch", "diagonal"),
    *("n_spans", "k_padded", "section"),
)


def _attn_params() -> np.dtype[np.void]:
    """AttnParams: pointers first, then 64-bit, then 32-bit fields, so that C adds no padding inside."""
    return np.dtype(
        [
            *((name, "<u8") for name in _POINTERS),
            *((name, "<i8", (3,)) for name in _STRIDES),
            *((name, "<f4") for name in _FLOATS),
            *((name, "<i4") for name in _INTS),
        ],
        align=True,
    )


ATTN_PARAMS = _attn_params()

# The struct that each kernel kind takes, by value, as its only argument.
PARAMS: dict[str, np.dtype[np.void]] = {"naive": ATTN_PARAMS, "sm80": ATTN_PARAMS}


def params_bytes(kernel: str) -> int:
    """Size of the parameter struct of a kernel kind, in bytes; the entry file compares it with its own."""
    return PARAMS[kernel].itemsize
