"""The kernel that plans calls on caches, as a value: one for each architecture, whatever the tiles and the rule."""

from __future__ import annotations

from dataclasses import dataclass

THREADS = 512
MOST_ROWS = 2048  # blocks of rows that are put in order and cut; more are taken as they stand


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """The planner. Equal specs are the same cubin. arch: the CUDA target.  ragged: sequences have numbers of rows of
    their own.
    """

    arch: str
    ragged: bool = False

    @property
    def kernel(self) -> str:
        """Its kind."""
        return "plan"

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "attention_plan_cached.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return "attention_plan_cached"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "plan_ragged" if self.ragged else "plan"

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return THREADS

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory: of each row its tiles, parts and cost; of each warp a cut and a number."""
        return 12 * MOST_ROWS + (8 + 4) * (THREADS // 32)

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {"OMNI_THREADS": THREADS, "OMNI_RAGGED": int(self.ragged)}
