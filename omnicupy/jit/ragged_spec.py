"""The variants of forward kernels that calls on caches run where each sequence has a number of rows of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec


@dataclass(frozen=True, kw_only=True)
class RaggedSpec(PagedSpec):
    """The variant of a kernel that finds the rows of each sequence among those of all.

    page: as in PagedSpec; 0 where keys are not in pages.
    """

    page: int = 0

    @classmethod
    def of(cls, spec: AttnSpec) -> RaggedSpec:
        """That of a kernel, as CachedSpec.of or PagedSpec.with_pages made it for the caches."""
        return cls(**{"page": 0, **asdict(spec)})

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_ragged"

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {**super().defines(), "OMNI_RAGGED": 1}
