"""Which variant of a kernel reads keys and values in pages, and which one those of e4m3."""

from __future__ import annotations

from dataclasses import replace

from omnicupy.choose.classes import OTHER_PAGES, PAGES, WHOLE
from omnicupy.jit.fp8_spec import converts
from omnicupy.jit.paged_spec import MOST_WARPS, by_boxes
from omnicupy.jit.spec import AttnSpec


def kind_of(page_size: int | None) -> str:
    """The kind of cache that has pages of so many keys, None for one without, as tuned choices have it."""
    if page_size is None:
        return WHOLE
    return PAGES if by_boxes(page_size) else OTHER_PAGES


def for_e4m3(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place where keys and values are e4m3: of "sm90" one with 64 rows, the only ones
    beside which warps convert.
    """
    if not converts(spec):
        bc = 128 if max(spec.head_dim, spec.value_dim) <= 128 else 64
        spec = replace(spec, br=64, bc=bc, stages=2, warps=8)
    return fitted(spec, 1)


def fitted(spec: AttnSpec, page_size: int) -> AttnSpec:
    """The variant that takes a row's place where it reads pages of so many keys: more warps where looking up pages
    takes registers that the tile does not leave, fewer rows where copying key by key does.
    """
    if spec.kernel == "sm80" and (spec.br, spec.bc, spec.warps) == (128, 64, 4) and spec.head_dim >= 80:
        return replace(spec, warps=8)
    if spec.kernel == "sm90" and not by_boxes(page_size) and spec.warps > MOST_WARPS:
        return replace(spec, br=128, warps=MOST_WARPS)
    return spec
