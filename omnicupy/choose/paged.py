"""Which kernel reads keys and values in pages: "sm90" by the copy engine, whose boxes have to fill the pages, "sm80"
pages of any size, on every device; and of e4m3, for which both copy keys one by one.
"""

from __future__ import annotations

from dataclasses import replace

from omnicupy.jit.fp8_spec import converts
from omnicupy.jit.paged_spec import in_boxes
from omnicupy.jit.spec import AttnSpec


def by_boxes(page_size: int | None) -> bool:
    """May kernel "sm90" serve pages of so many keys? None: keys are not in pages."""
    return page_size is None or in_boxes(page_size)


def for_e4m3(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place where keys and values are e4m3: of "sm90" one with 64 rows, the only ones
    beside which a warpgroup converts.
    """
    if converts(spec):
        return spec
    bc = 128 if max(spec.head_dim, spec.value_dim) <= 128 else 64
    return replace(spec, br=64, bc=bc, stages=2, warps=8)


def fitted(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place where it reads pages: more warps where looking up pages takes registers that
    the tile does not leave.
    """
    if spec.kernel == "sm80" and (spec.br, spec.bc, spec.warps) == (128, 64, 4) and spec.head_dim >= 80:
        return replace(spec, warps=8)
    return spec
