"""The variants of forward kernels that calls on keys and values in pages run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.spec import AttnSpec

# Keys of a box of the copy engine. A box costs it as much as one of 8 keys; larger ones than these bring none.
LEAST_BOX, MOST_BOX = 8, 64
PACKED = "attention_fwd_packed.cu"


def by_boxes(page_size: int) -> bool:
    """Do boxes fill such pages? Where not, warps of kernel "sm90" copy them key by key."""
    return page_size % LEAST_BOX == 0


def box_keys(spec: AttnSpec) -> int:
    """Keys of one box of the tensor maps of k and v."""
    return spec.page if isinstance(spec, PagedSpec) and spec.page else spec.bc


@dataclass(frozen=True, kw_only=True)
class PagedSpec(CachedSpec):
    """The variant of a kernel that reads keys and values by a table of pages.

    page: keys that it copies at once, which lie in one page: of kernel "sm90" the rows of a box, 8 to 64, or 1 where no
    box fills the pages; 1 of the others.
    """

    page: int = 1

    @classmethod
    def with_pages(cls, spec: AttnSpec, page_size: int) -> PagedSpec:
        """That of a kernel, for pages of so many keys. Raises UnsupportedError where its tile has no room for them."""
        if spec.kernel != "sm90":
            return cls(**asdict(spec))
        if by_boxes(page_size):
            return cls(**{**asdict(spec), "page": math.gcd(page_size, spec.bc, MOST_BOX)})
        if spec.stages == 1 and (spec.warps == 16 or spec.source == PACKED):
            raise UnsupportedError(
                f"k_pages: kernel 'sm90' reads pages that are no multiple of {LEAST_BOX} tokens by tiles with stages=2 "
                f"and more, got pages of {page_size}, stages={spec.stages} and br={spec.br}; leave config out, or pass "
                "one with stages=2"
            )
        return cls(**asdict(spec))

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return super().threads + 32 * self.apart_warps

    @property
    def apart_warps(self) -> int:
        """Warps of kernel "sm90" behind one warpgroup of consumers, which bring keys and values."""
        return 4 if self.kernel == "sm90" and self.page != 0 and self.warps == 8 else 0

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        in_pages = self.kernel == "sm90" and self.page != 0
        return "attention_fwd_paged.cu" if in_pages and self.warps == 16 else super().source

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_paged"

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        of_caches = int(self.kernel == "sm90")  # which alone has such a variant
        return {**AttnSpec.defines(self), "OMNI_CACHED": of_caches, "OMNI_PAGE": self.page}
