"""One compiled kernel of a backward pass as a value: what may be asked for, what it costs, and its macros."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import gcd
from typing import NamedTuple

from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.atom import SHIPPED
from omnicupy.jit.backward_smem import SLICE, WIDE_HEAD_DIM, hopper_bytes, sm80_bytes
from omnicupy.jit.finishing import FINISHES, check_finishes
from omnicupy.jit.spec import DTYPES, KERNELS, MAX_HEAD_DIM, MAX_ONE_PIECE, round_up

PARTS = ("prepare", "dkdv", "dq")  # of a backward pass, in the order in which they are launched
# In place of the last two: the first where sums may have any order, the second where they have one.
FUSED_PARTS = ("fused", "convert")
ORDERED_PARTS = ("ordered", "convert")
SINK_PARTS = ("sinks",)  # last, where the gradient of sink_logits is wanted
MAKES_ALL = ("fused", "ordered")  # gradients in one kernel, but for the conversion of dQ
CAPPED_PARTS = ("dkdv", "dq", *MAKES_ALL)  # whose code a soft cap changes
PREPARE_THREADS = 256
# Parts that walk no lists: their threads.
WITHOUT_TILES = {"prepare": PREPARE_THREADS, "convert": 128, "sinks": PREPARE_THREADS}
_SOURCES = {
    "prepare": "attention_bwd_delta.cu",
    "convert": "attention_bwd_convert.cu",
    "sinks": "attention_bwd_delta.cu",
}
NAIVE_THREADS = 128
APART_HEAD_DIM = 64  # up to which a warpgroup of its own may make dQ


class TileShape(NamedTuple):
    """A tile of a BackwardSpec. br: its queries.  bc: its keys.  stages: tiles in flight.  warps: of a thread block."""

    br: int
    bc: int
    stages: int = 2
    warps: int = 12


@dataclass(frozen=True, kw_only=True)
class BackwardKernel:
    """One compiled kernel of a backward pass. Equal values are the same cubin; every field is part of the cache key.

    arch: the CUDA target. kernel: "naive", "sm80" (mma.sync) or "sm90" (wgmma). part: "prepare" (delta, and the
    copies that the others read), "dkdv" (a thread block owns `bc` keys and walks tiles of `br` queries), "dq" (it
    owns `br` queries and walks tiles of `bc` keys), "fused" (as dkdv, and adds dQ to sums in float32), "ordered" (the
    same, and adds to each sum in one order), "convert" (these sums to dQ) or "sinks" (adds up the gradients of
    sink_logits that prepare left). dtype, head_dim: as in AttnSpec. value_dim: columns of V and O. br, bc, stages,
    warps: as in TileShape. softcap: scores are capped. finishes: one of FINISHES, how it makes dQ of sums that need not
    be zeros before (where two warpgroups own keys and make all gradients). prepares: it makes lse2 and delta, too.

    Raises ValueError when the tile is illegal or does not fit the architecture's shared memory.
    """

    arch: str
    kernel: str
    part: str
    dtype: str
    head_dim: int
    value_dim: int
    br: int
    bc: int
    stages: int
    warps: int
    softcap: bool = False
    finishes: str = ""
    prepares: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("arch", self.arch, tuple(SMEM_LIMIT_BYTES)),
            ("kernel", self.kernel, KERNELS),
            ("part", self.part, (*PARTS, *MAKES_ALL, "convert", *SINK_PARTS)),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise ValueError(f"config: {name} must be one of {', '.join(known)}, got {value!r}")
        if self.head_dim % 16 or not 16 <= self.head_dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"config: head_dim must be a multiple of 16 from 16 to {MAX_HEAD_DIM}, got {self.head_dim}"
            )
        if self.value_dim != self.head_dim and (
            self.value_dim % 16 or self.value_dim < 16 or self.widest > MAX_ONE_PIECE
        ):
            raise ValueError(
                f"config: value_dim must be head_dim, or both multiples of 16 from 16 to {MAX_ONE_PIECE}, got "
                f"head_dim={self.head_dim} and value_dim={self.value_dim}"
            )
        if self.part not in WITHOUT_TILES:
            self._check_tile()
        check_finishes(self)
        if self.smem_bytes > (limit := SMEM_LIMIT_BYTES[self.arch]):
            raise ValueError(
                f"config: the {self.part} tile needs {self.smem_bytes} B of shared memory, {self.arch} has {limit} B a "
                f"block; lower br={self.br}, bc={self.bc} or stages={self.stages}"
            )

    def _check_tile(self) -> None:
        step = 64 if self.kernel == "sm90" else 32
        for name, value in (("br", self.br), ("bc", self.bc)):
            if value % 32 or not 32 <= value <= 256:
                raise ValueError(
                    f"config: {name} of {self.part} must be a multiple of 32 from 32 to 256, got {value}"
                )
        if self.part in MAKES_ALL:
            self._check_fused()
        if self.kernel != "sm90":
            if self.kernel == "sm80":
                self._check_sm80()
            return
        owned = self.br if self.part == "dq" else self.bc
        wide = self.part == "dkdv" and self.widest > WIDE_HEAD_DIM
        warpgroups = 2 if wide else owned // step
        if self.arch != "sm_90a" or self.head_dim > MAX_ONE_PIECE:
            raise ValueError(
                f"config: kernel 'sm90' needs arch='sm_90a' and head_dim up to {MAX_ONE_PIECE}, got {self.arch!r} and "
                f"{self.head_dim}; take kernel='sm80'"
            )
        illegal = owned % step or warpgroups not in (1, 2, 3) or (wide and owned != 64)
        if illegal or self.warps != 4 + 4 * warpgroups + 4 * self.has_dq_apart:
            raise ValueError(
                "config: kernel 'sm90' has 4 producer warps and 4 warps for each 64 tokens that a block owns, keys "
                f"(bc) for dkdv, queries (br) for dq; dkdv above {WIDE_HEAD_DIM} columns has 64 keys and 12 warps; "
                f"got br={self.br}, bc={self.bc}, warps={self.warps} for {self.part}"
            )
        least, most = (2, 8) if self.part == "dq" else (2, 4)
        if not least <= self.stages <= most:
            raise ValueError(
                f"config: stages of {self.part} must be from {least} to {most}, got {self.stages}"
            )

    def _check_fused(self) -> None:
        if self.kernel == "naive":
            raise ValueError(f"config: kernel 'naive' has no {self.part} kernel; leave {self.part} out")
        if self.widest > WIDE_HEAD_DIM or self.br != 64:
            raise ValueError(
                f"config: the {self.part} kernel has tiles of 64 queries, head_dim and value_dim up to "
                f"{WIDE_HEAD_DIM}, got br={self.br} and {self.widest}; leave {self.part} out"
            )
        if self.has_dq_apart and (self.widest > APART_HEAD_DIM or self.softcap):
            raise ValueError(
                f"config: the {self.part} kernel with 16 warps for 128 keys has head_dim and value_dim up to "
                f"{APART_HEAD_DIM} and no soft cap, got {self.widest} and softcap={self.softcap}; take 12 warps"
            )
        if self.part == "ordered" and not (self.kernel == "sm90" and self.is_staged):
            raise ValueError(
                "config: the ordered kernel is of kernel 'sm90' with 12 warps, or 16 and at most 3 stages, got "
                f"{self.kernel!r}, {self.warps} and {self.stages}; leave ordered out"
            )

    def _check_sm80(self) -> None:
        owned, walked = (self.br, self.bc) if self.part == "dq" else (self.bc, self.br)
        if self.warps not in (4, 8) or owned not in (16 * self.warps, 32 * self.warps):
            raise ValueError(
                f"config: {self.part} of kernel 'sm80' has 4 or 8 warps and owns 16 or 32 tokens for each of them, "
                f"queries (br) for dq, else keys (bc); got br={self.br}, bc={self.bc}, warps={self.warps}"
            )
        if self.stages not in (1, 2):
            raise ValueError(f"config: stages of {self.part} must be 1 or 2, got {self.stages}")
        if self.head_dim > MAX_ONE_PIECE and walked != 32:
            raise ValueError(
                f"config: head_dim {self.head_dim} is cut in slices (above {MAX_ONE_PIECE}): {self.part} walks 32 "
                f"tokens at a time, got br={self.br}, bc={self.bc}"
            )

    @property
    def warpgroups(self) -> int:
        """Of kernel "sm90" that own tokens, 64 each."""
        return self.warps // 4 - 1 - self.has_dq_apart

    @property
    def has_dq_apart(self) -> bool:
        """Does a warpgroup of its own make dQ (part "fused" or "ordered" of kernel "sm90")? There are 16 warps for 128
        keys then.
        """
        return self.kernel == "sm90" and self.part in MAKES_ALL and (self.bc, self.warps) == (128, 16)

    @property
    def is_staged(self) -> bool:
        """Does dQ go through shared memory to its sums (part "fused" or "ordered" of kernel "sm90")?"""
        fits = self.warps == 12 or (self.warps == 16 and self.stages < 4) or self.has_dq_apart
        return self.part in MAKES_ALL and fits

    @property
    def may_finish(self) -> bool:
        """Does it leave a warp for variants that make dQ of the sums themselves?"""
        return self.kernel == "sm90" and self.part in MAKES_ALL and (self.bc, self.warps) == (128, 12)

    @property
    def sum_bytes(self) -> int:
        """Of a sum of dQ in float32: that of the `br` queries of a tile."""
        return 4 * self.br * self.head_dim

    @property
    def widest(self) -> int:
        """The greater of the two widths."""
        return max(self.head_dim, self.value_dim)

    @property
    def step(self) -> int:
        """Tokens by which the walk over the entries goes on: keys for dq, else queries."""
        return self.bc if self.part == "dq" else self.br

    @property
    def prepared_rows(self) -> int:
        """Rows of one head that a thread block of part "prepare" works on: some lanes for each, 8 columns a lane, and
        up to four rows a lane.
        """
        lanes = min(32, 1 << (self.widest // 8 - 1).bit_length())
        return PREPARE_THREADS // lanes * min(4, lanes)

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        if self.part in WITHOUT_TILES:
            return WITHOUT_TILES[self.part]
        return NAIVE_THREADS if self.kernel == "naive" else 32 * self.warps

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        if self.part in _SOURCES:
            return _SOURCES[self.part]
        # Without a part's name: two parts in one source, and the one kernel for all gradients on Hopper.
        if (self.kernel == "sm90") == (self.part in MAKES_ALL):
            return f"attention_bwd_{self.kernel}.cu"
        return f"attention_bwd_{self.part}_{self.kernel}.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return self.source.removesuffix(".cu")

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        if self.part == "convert" or (self.part == "fused" and self.kernel == "sm80"):
            return "bwd_sums"
        return "bwd_sm90" if self.kernel == "sm90" and self.part not in WITHOUT_TILES else "bwd"

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one thread block, in bytes."""
        if self.part in WITHOUT_TILES:
            return 0 if self.part == "convert" else 4 * PREPARE_THREADS // 32  # a number of each warp
        if self.kernel == "naive":
            return 4 * (self.head_dim + self.value_dim + 4 * max(self.br, self.bc) + NAIVE_THREADS)
        return hopper_bytes(self) if self.kernel == "sm90" else sm80_bytes(self)

    @property
    def columns(self) -> int:
        """Columns of dQ or dK that a thread block of kernel "sm80" makes."""
        return self._columns_of(self.head_dim)

    @property
    def value_columns(self) -> int:
        """Columns of dV that a thread block of kernel "sm80" makes."""
        return self._columns_of(self.value_dim)

    def _columns_of(self, width: int) -> int:
        if width > MAX_ONE_PIECE:
            return SLICE
        if self.part != "dkdv" or self.widest <= WIDE_HEAD_DIM:
            return width
        return round_up(width // 2, 8 * gcd(width // 8, 8))  # the swizzle begins anew there

    @property
    def column_blocks(self) -> int:
        """Thread blocks that share what is owned, each with its own columns of the gradients: grid.y of "sm80"."""
        if self.kernel != "sm80" or self.part in WITHOUT_TILES:
            return 1
        return max(-(-self.head_dim // self.columns), -(-self.value_dim // self.value_columns))

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {
            "OMNI_HEAD_DIM": self.head_dim,
            "OMNI_VALUE_DIM": self.value_dim,
            "OMNI_BR": self.br,
            "OMNI_BC": self.bc,
            "OMNI_STAGES": self.stages,
            "OMNI_WARPS": self.warps,
            "OMNI_PART": (*PARTS, *FUSED_PARTS, *SINK_PARTS, "ordered").index(self.part),
            "OMNI_ORDERED": int(self.part == "ordered"),
            "OMNI_FINISHES": FINISHES.index(self.finishes),
            "OMNI_PREPARES": int(self.prepares),
            "OMNI_BF16": int(self.dtype == "bfloat16"),
            "OMNI_SMEM_BYTES": self.smem_bytes,
            "OMNI_SOFTCAP": int(self.softcap),
            **SHIPPED.defines(),
        }

    def __str__(self) -> str:
        named = ("kernel", "arch", "part", "finishes", "prepares")
        words = [f"{k}={v}" for k, v in asdict(self).items() if k not in named]
        words += [f"finishes={self.finishes}"] * bool(self.finishes) + ["prepares"] * self.prepares
        return " ".join([f"bwd-{self.part}", self.kernel, self.arch, *words])
