"""Which kernel reads keys and values in pages: "sm90" by the copy engine, whose boxes have to fill the pages, "sm80"
pages of any size, on every device.
"""

from __future__ import annotations

from dataclasses import replace

from omnicupy.choose.classes import OTHER_PAGES, PAGES, WHOLE
from omnicupy.jit.paged_spec import in_boxes
from omnicupy.jit.spec import AttnSpec


def by_boxes(page_size: int | None) -> bool:
    """May kernel "sm90" serve pages of so many keys? None: keys are not in pages."""
    return page_size is None or in_boxes(page_size)


def kind_of(page_size: int | None) -> str:
    """The kind of cache that has pages of so many keys, None for one without, as tuned choices have it."""
    if page_size is None:
        return WHOLE
    return PAGES if in_boxes(page_size) else OTHER_PAGES


def fitted(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place where it reads pages: more warps where looking up pages takes registers that
    the tile does not leave.
    """
    if spec.kernel == "sm80" and (spec.br, spec.bc, spec.warps) == (128, 64, 4) and spec.head_dim >= 80:
        return replace(spec, warps=8)
    return spec
