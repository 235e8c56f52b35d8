"""Exact attention for irregular, interleaved masks, on CuPy and NumPy arrays.

    import cupy as cp, omnicupy as oc
    mask = oc.segments([("text", 120), ("image", 729), ("text", 90)])
    out = oc.attention(q, k, v, mask)

Importing needs no GPU, reads no file and imports no CuPy.
"""

from omnicupy import presets
from omnicupy.api import attention, prepare
from omnicupy.blockmask import BlockMask
from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.layouts import (
    causal,
    documents,
    from_dense,
    from_predicate,
    full,
    intervals,
    prefix,
    random,
    ranges,
    segments,
    sink,
    sliding_window,
)
from omnicupy.masks import Mask
from omnicupy.spec import AttnSpec

__version__ = "0.1.0"

__all__ = [
    "AttnSpec",
    "BlockMask",
    "CompileError",
    "Mask",
    "UnsupportedError",
    "attention",
    "causal",
    "documents",
    "from_dense",
    "from_predicate",
    "full",
    "intervals",
    "prefix",
    "prepare",
    "presets",
    "random",
    "ranges",
    "segments",
    "sink",
    "sliding_window",
]
