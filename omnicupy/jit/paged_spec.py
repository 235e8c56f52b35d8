"""The variants of forward kernels that calls on keys and values in pages run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.spec import AttnSpec

LEAST_BOX, MOST_BOX = 16, 64  # keys of a box: smaller ones cost bandwidth, larger ones bring none


def in_boxes(page_size: int) -> bool:
    """Do the boxes of the copy engine fill such pages? Where not, keys are copied one by one, by kernel "sm80"."""
    return page_size % LEAST_BOX == 0


def box_keys(spec: AttnSpec) -> int:
    """Keys of one box of the tensor maps of k and v."""
    return spec.page if isinstance(spec, PagedSpec) and spec.page else spec.bc


@dataclass(frozen=True, kw_only=True)
class PagedSpec(CachedSpec):
    """The variant of a kernel that reads keys and values by a table of pages.

    page: keys that it copies at once, which lie in one page: of kernel "sm90" the rows of a box, 16, 32 or 64; 1 of the
    others, which serve pages of any size.
    """

    page: int = 1

    @classmethod
    def with_pages(cls, spec: AttnSpec, page_size: int) -> PagedSpec:
        """That of a kernel, for pages of so many keys. Raises UnsupportedError where boxes do not fill them."""
        box = 1
        if spec.kernel == "sm90":
            if not in_boxes(page_size):
                raise UnsupportedError(
                    f"k_pages: kernel 'sm90' reads pages of a multiple of {LEAST_BOX} tokens, got {page_size}; leave "
                    "config out, or pass one of kernel='sm80'"
                )
            box = math.gcd(page_size, spec.bc, MOST_BOX)
        return cls(**{**asdict(spec), "page": box})

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_paged"

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        of_caches = int(self.kernel == "sm90")  # which alone has such a variant
        return {**AttnSpec.defines(self), "OMNI_CACHED": of_caches, "OMNI_PAGE": self.page}
