"""The kernel for caches that at most 16 rows of heads and tokens read: attention_fwd_few_rows.cu."""

from __future__ import annotations

from dataclasses import dataclass

from omnicupy.errors import UnsupportedError
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.spec import PACKED_ROWS, AttnSpec, round_up

ROWS = 16  # of heads and tokens
HEAD_DIMS = (64, 128)
STEP = 32  # keys of a warp's step


@dataclass(frozen=True, kw_only=True)
class FewRowsSpec(Fp8Spec):
    """A variant of that kernel. To schedules it is a packed one of kernel "sm90", whose tiles have 64 rows.

    e4m3: keys and values are, else they have 16 bits.  compute_warps: of a thread block.  blocks: thread blocks a
    multiprocessor.  stages: buffers in the ring of a warp, each
    for keys or values of a tile.
    """

    e4m3: bool = True
    compute_warps: int = 8
    blocks: int = 2

    @classmethod
    def of(
        cls, spec: AttnSpec, *, e4m3: bool, in_pages: bool, ragged: bool = False, rows: int
    ) -> FewRowsSpec:
        """That of a call of kernel "sm90". rows: of heads and tokens that read a key head, at most.

        Raises UnsupportedError where it has none.
        """
        if not serves(spec, rows):
            raise UnsupportedError(
                f"config: the kernel for few rows serves at most {ROWS} rows of heads and tokens a key head, and keys "
                f"and values of {' or '.join(map(str, HEAD_DIMS))} columns, on compute capability 9.0, got {rows} rows "
                f"and {spec}"
            )
        return cls(
            arch=spec.arch,
            kernel="sm90",
            dtype=spec.dtype,
            head_dim=spec.head_dim,
            br=PACKED_ROWS,
            bc=STEP,
            stages=3 if e4m3 else 2,
            warps=8,
            pack=True,
            softcap=spec.softcap,
            page=int(in_pages),
            ragged=ragged,
            e4m3=e4m3,
        )

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return 32 * self.compute_warps

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one thread block, in bytes."""
        tile = STEP * self.head_dim * (1 if self.e4m3 else 2)
        out = 4 * ROWS * (self.head_dim + self.head_dim // 32 * 8 + 8)
        ring = max(self.stages * (tile + 128), round_up(out, 128))  # scales behind elements
        of_warp = ring + 8 * ROWS + 20 * (self.stages // 2 + 1)  # sums, and what tiles are
        return round_up(self.compute_warps * of_warp + 32 * self.head_dim + 128, 128)  # q, and work items

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "sm90_fp8"

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        return "attention_fwd_few_rows.cu"

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {
            "OMNI_HEAD_DIM": self.head_dim,
            "OMNI_BC": self.bc,
            "OMNI_STAGES": self.stages,
            "OMNI_WARPS": self.compute_warps,
            "OMNI_BLOCKS": self.blocks,
            "OMNI_BF16": int(self.dtype == "bfloat16"),
            "OMNI_SOFTCAP": int(self.softcap),
            "OMNI_PAGE": self.page,
            "OMNI_RAGGED": int(self.ragged),
            "OMNI_FP8": int(self.e4m3),
            "OMNI_SMEM_BYTES": self.smem_bytes,
        }


def serves(spec: AttnSpec, rows: int) -> bool:
    """Has a call of a kernel such a variant?"""
    same = spec.head_dim == spec.value_dim
    return spec.arch == "sm_90a" and same and spec.head_dim in HEAD_DIMS and 0 < rows <= ROWS
