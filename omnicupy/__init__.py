"""Exact attention for irregular, interleaved masks, on CuPy and NumPy arrays.

    import cupy as cp, omnicupy as oc
    mask = oc.segments([("text", 120), ("image", 729), ("text", 90)])
    out = oc.attention(q, k, v, mask)

Importing needs no GPU, reads no file and imports no CuPy.
"""

import sys
from typing import TYPE_CHECKING, NoReturn

from omnicupy import presets
from omnicupy.api import attention, attention_backward, plan, prepare
from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.constructors import (
    causal,
    from_dense,
    from_predicate,
    full,
    intervals,
    prefix,
    ranges,
    sink,
    sliding_window,
)
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import documents, random, segments
from omnicupy.masks.tile_masks import from_tiles
from omnicupy.serving.caches import CachedKV, PagedKV
from omnicupy.serving.rule import CachedRule, cached
from omnicupy.serving.step import CachedStep
from omnicupy.serving_api import append

__version__ = "0.1.0"

# A pickle names a class by its module: by this one, so that no move of a file breaks one.
for _public in (
    *(AttnSpec, BackwardSpec, BlockMask, CachedKV, CachedRule, CachedStep),
    *(CompileError, Mask, PagedKV, TileShape, UnsupportedError),
):
    _public.__module__ = "omnicupy"

_BY_NAME = ("parallel", "torch", "transformers", "vllm")  # packages that need an import of their own


def _missing(name: str) -> NoReturn:
    hint = f"; write import omnicupy.{name}" if name in _BY_NAME else ""
    raise AttributeError(
        f"module 'omnicupy' has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__]
    )


if not TYPE_CHECKING:
    __getattr__ = _missing

__all__ = [
    "AttnSpec",
    "BackwardSpec",
    "BlockMask",
    "CachedKV",
    "CachedRule",
    "CachedStep",
    "CompileError",
    "Mask",
    "PagedKV",
    "TileShape",
    "UnsupportedError",
    "append",
    "attention",
    "attention_backward",
    "cached",
    "causal",
    "documents",
    "from_dense",
    "from_predicate",
    "from_tiles",
    "full",
    "intervals",
    "plan",
    "prefix",
    "prepare",
    "presets",
    "random",
    "ranges",
    "segments",
    "sink",
    "sliding_window",
]
