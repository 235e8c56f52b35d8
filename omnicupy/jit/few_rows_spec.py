"""The kernel for keys that at most 16 rows of heads and tokens read: attention_fwd_few_rows.cu."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.spec import PACKED_ROWS, RESERVED_BYTES, AttnSpec, round_up

ROWS = 16  # of heads and tokens, at most
FEWER_ROWS = 8  # the same of variants that take keys as rows of products, and queries as their columns
HEAD_DIMS = (64, 128)
STEP = 32  # keys of a warp's step
_BUFFERS = {True: 4, False: 2}  # of a warp, at most: of e4m3, of 16 bits


@dataclass(frozen=True, kw_only=True)
class FewRowsSpec(Fp8Spec):
    """A variant of that kernel. To schedules it is a packed one of kernel "sm90", whose tiles have 64 rows.

    e4m3: keys and values are, else they have 16 bits.  cached: keys are in a cache, and a planner writes the block
    lists; else the host does, and keys have 16 bits and are in one piece.  compute_warps: of a thread block.  blocks:
    thread blocks a multiprocessor.  stages: buffers in the ring of a warp, each for keys or values of a tile.
    most_rows: ROWS or FEWER_ROWS.
    """

    e4m3: bool = True
    cached: bool = True
    compute_warps: int = 6
    blocks: int = 2
    most_rows: int = ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_rows not in (FEWER_ROWS, ROWS):
            raise ValueError(f"config: most_rows must be {FEWER_ROWS} or {ROWS}, got {self.most_rows}")
        if not self.cached and (self.e4m3 or self.page or self.ragged):
            raise ValueError(
                "config: cached=False is for keys of 16 bits in one piece, got "
                f"e4m3={self.e4m3}, page={self.page}, ragged={self.ragged}; take FewRowsSpec.of(...).for_masks()"
            )

    @classmethod
    def of(cls, spec: AttnSpec, **fields: int) -> FewRowsSpec:
        """That of kernel "sm90" with packed heads. fields: others than the default.

        Raises UnsupportedError where it has none.
        """
        if spec.arch != "sm_90a" or spec.head_dim not in HEAD_DIMS or spec.value_dim != spec.head_dim:
            raise UnsupportedError(
                f"config: the kernel for few rows serves keys and values of {' or '.join(map(str, HEAD_DIMS))} columns "
                f"on compute capability 9.0, got {spec}"
            )
        same = {"kernel": "sm90", "br": PACKED_ROWS, "bc": STEP, "stages": 2, "warps": 8, "pack": True}
        made = {name: getattr(spec, name) for name in ("arch", "dtype", "head_dim", "softcap")}
        return cls(**{**made, **same, **fields}).for_caches(e4m3=True, in_pages=False, ragged=False)

    def for_caches(self, *, e4m3: bool, in_pages: bool, ragged: bool) -> FewRowsSpec:
        """The same for such caches, with as many buffers as shared memory holds."""
        found = replace(self, e4m3=e4m3, page=int(in_pages), ragged=ragged, stages=2, cached=True)
        limit = (SMEM_LIMIT_BYTES[self.arch] + RESERVED_BYTES) // self.blocks - RESERVED_BYTES
        for stages in range(_BUFFERS[e4m3], 2, -1):
            if found.bytes_with(stages) <= limit:
                return replace(found, stages=stages)
        return found

    def for_masks(self) -> FewRowsSpec:
        """The same for keys of 16 bits under masks that the host knows."""
        return replace(self.for_caches(e4m3=False, in_pages=False, ragged=False), cached=False)

    def check(self, heads: int, tokens: int, head_dim: int) -> None:
        """Raises UnsupportedError for more rows than a tile has. heads: of a group.  tokens: of a sequence, at most."""
        if heads * tokens > self.most_rows or head_dim != self.head_dim:
            raise UnsupportedError(
                f"config: the kernel for few rows serves at most {self.most_rows} rows of heads and tokens a key head, "
                f"of {self.head_dim} columns, got {heads} heads of {tokens} tokens, of {head_dim} columns; leave "
                "config out"
            )

    def check_masks(self, heads: int, tokens: int, head_dim: int) -> None:
        """The same for a call under masks that the host knows; also raises it for a variant that reads caches."""
        if self.cached:
            raise UnsupportedError(
                "config: this variant of the kernel for few rows reads caches; pass config=config.for_masks(), or a "
                f"CachedKV as k, got {self}"
            )
        self.check(heads, tokens, head_dim)

    def _check_blocks(self) -> None:
        """Any number of them, which for_caches fits where elements are of e4m3."""

    @property
    def smem_limit(self) -> int:
        """Shared memory that one thread block may use, in bytes, alone on a multiprocessor."""
        return SMEM_LIMIT_BYTES[self.arch]

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return 32 * self.compute_warps

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one thread block, in bytes."""
        return self.bytes_with(self.stages)

    def bytes_with(self, stages: int) -> int:
        """The same with so many buffers a warp."""
        tile = STEP * self.head_dim * (1 if self.e4m3 else 2)
        out = 4 * self.most_rows * (self.head_dim + self.head_dim // 32 * 8 + 8)
        ring = max(stages * (tile + 128), round_up(out, 128))  # scales behind elements
        of_warp = ring + 8 * self.most_rows + 20 * stages  # sums, and what tiles are
        of_item = 2 * self.most_rows * self.head_dim + 2 * (256 + 8) + 96  # q, scales, what it is
        of_block = out + 8 * self.most_rows + 2 * of_item + 8 * self.compute_warps * (stages + 1) + 64
        return round_up(self.compute_warps * of_warp + of_block, 128)

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS. What has no pages, rows of its own or scales takes
        that of kernels of 16 bits.
        """
        return super().params if self.e4m3 or self.page or self.ragged else self.kernel

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
            "OMNI_CACHED": int(self.cached),
            "OMNI_ROWS": self.most_rows,
            "OMNI_SMEM_BYTES": self.smem_bytes,
        }
