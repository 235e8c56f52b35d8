"""The compiled kernels of a backward pass as values: what may be asked for, what each costs, and its macros."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from math import gcd
from typing import NamedTuple

from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.spec import DTYPES, KERNELS, MAX_HEAD_DIM, MAX_ONE_PIECE, round_up

PARTS = ("prepare", "dkdv", "dq")  # of a backward pass, in the order in which they are launched
PREPARE_THREADS = 256
NAIVE_THREADS = 128
SLICE = 64  # columns at a time where kernel "sm80" cuts the head dimension
WIDE_HEAD_DIM = 128  # above it dK and dV of a key block lie in two warpgroups of kernel "sm90"


class TileShape(NamedTuple):
    """br: queries of a tile.  bc: keys of a tile.  stages: tiles in flight.  warps: of a thread block."""

    br: int
    bc: int
    stages: int = 2
    warps: int = 12


@dataclass(frozen=True, kw_only=True)
class BackwardKernel:
    """One compiled kernel of a backward pass. Equal values are the same cubin; every field is part of the cache key.

    arch: the CUDA target.  kernel: "naive", "sm80" (mma.sync) or "sm90" (wgmma).  part: "prepare" (delta, and the
    copies that the others read), "dkdv" (a thread block owns `bc` keys and walks tiles of `br` queries) or "dq" (it
    owns `br` queries and walks tiles of `bc` keys).  dtype, head_dim: as in AttnSpec.  value_dim: columns of V and O.
    br, bc, stages, warps: as in TileShape.

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

    def __post_init__(self) -> None:
        for name, value, known in (
            ("arch", self.arch, tuple(SMEM_LIMIT_BYTES)),
            ("kernel", self.kernel, KERNELS),
            ("part", self.part, PARTS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise ValueError(f"config: {name} must be one of {', '.join(known)}, got {value!r}")
        if self.head_dim % 16 or not 16 <= self.head_dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"config: head_dim must be a multiple of 16 from 16 to {MAX_HEAD_DIM}, got {self.head_dim}"
            )
        if self.value_dim != self.head_dim:
            raise ValueError(
                f"config: the values must be as wide as the keys, {self.head_dim} columns, got {self.value_dim}"
            )
        if self.part != "prepare":
            self._check_tile()
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
        if self.kernel != "sm90":
            if self.kernel == "sm80" and self.warps not in (4, 8):
                raise ValueError(f"config: warps of {self.part} must be 4 or 8, got {self.warps}")
            if self.kernel == "sm80" and self.stages not in (1, 2):
                raise ValueError(f"config: stages of {self.part} must be 1 or 2, got {self.stages}")
            return
        owned = self.bc if self.part == "dkdv" else self.br
        wide = self.part == "dkdv" and self.head_dim > WIDE_HEAD_DIM
        warpgroups = 2 if wide else owned // step
        if self.arch != "sm_90a" or self.head_dim > MAX_ONE_PIECE:
            raise ValueError(
                f"config: kernel 'sm90' needs arch='sm_90a' and head_dim up to {MAX_ONE_PIECE}, got {self.arch!r} and "
                f"{self.head_dim}; take kernel='sm80'"
            )
        if (
            owned % step
            or warpgroups not in (1, 2, 3)
            or self.warps != 4 + 4 * warpgroups
            or (wide and owned != 64)
        ):
            raise ValueError(
                "config: kernel 'sm90' has 4 producer warps and 4 warps for each 64 tokens that a block owns, keys "
                f"(bc) for dkdv, queries (br) for dq; dkdv above head_dim {WIDE_HEAD_DIM} has 64 keys and 12 warps; "
                f"got br={self.br}, bc={self.bc}, warps={self.warps} for {self.part}"
            )
        least, most = (2, 2) if self.part == "dkdv" else (2, 8)
        if not least <= self.stages <= most:
            raise ValueError(
                f"config: stages of {self.part} must be from {least} to {most}, got {self.stages}"
            )

    @property
    def step(self) -> int:
        """Tokens by which the walk over the entries goes on: queries for dkdv, keys for dq."""
        return self.br if self.part == "dkdv" else self.bc

    @property
    def prepared_rows(self) -> int:
        """Rows of one head that a thread block of part "prepare" works on: some lanes for each, 8 columns a lane."""
        lanes = 1
        while lanes < self.head_dim // 8 and lanes < 32:
            lanes *= 2
        return PREPARE_THREADS // lanes

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        if self.part == "prepare":
            return PREPARE_THREADS
        return NAIVE_THREADS if self.kernel == "naive" else 32 * self.warps

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        if self.part == "prepare":
            return "attention_bwd_delta.cu"
        if self.kernel == "sm90":
            return f"attention_bwd_{self.part}_sm90.cu"
        return f"attention_bwd_{self.kernel}.cu"

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return self.source.removesuffix(".cu")

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return "bwd_sm90" if self.kernel == "sm90" and self.part != "prepare" else "bwd"

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one thread block, in bytes."""
        if self.part == "prepare":
            return 0
        if self.kernel == "naive":
            return 4 * (2 * self.head_dim + 4 * max(self.br, self.bc) + NAIVE_THREADS)
        return self._sm90_bytes() if self.kernel == "sm90" else self._sm80_bytes()

    def _sm90_bytes(self) -> int:
        # Panels of 64 columns; work slots, tiles and barriers in the last KiB.
        panels = 128 * -(-self.head_dim // 64)
        if self.part == "dq":
            spans = 2 * 8 * self.bc * ((self.stages + 1) // 2)  # of the tiles whose keys are in flight
            return panels * (2 * self.br + self.stages * self.bc) + spans + 1024
        weights = 4 * self.br * self.bc if self.head_dim > WIDE_HEAD_DIM else 0
        return panels * 2 * (self.bc + self.stages * self.br) + 8 * self.stages * self.br + weights + 1024

    def _sm80_bytes(self) -> int:
        if self.head_dim > MAX_ONE_PIECE:
            return 2 * 2 * SLICE * (self.br + self.bc) + 2 * 4 * self.br
        owned, walked = (self.bc, self.br) if self.part == "dkdv" else (self.br, self.bc)
        statistics = 2 * 4 * walked if self.part == "dkdv" else 0
        return 2 * 2 * self.head_dim * owned + self.stages * (2 * 2 * self.head_dim * walked + statistics)

    @property
    def columns(self) -> int:
        """Columns of each gradient that a thread block of kernel "sm80" makes."""
        if self.head_dim > MAX_ONE_PIECE:
            return SLICE
        if self.part != "dkdv" or self.head_dim <= WIDE_HEAD_DIM:
            return self.head_dim
        return round_up(self.head_dim // 2, 8 * gcd(self.head_dim // 8, 8))  # the swizzle begins anew there

    @property
    def column_blocks(self) -> int:
        """Thread blocks that share what is owned, each with its own columns of the gradients: grid.y of "sm80"."""
        return -(-self.head_dim // self.columns) if self.kernel == "sm80" and self.part != "prepare" else 1

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {
            "OMNI_HEAD_DIM": self.head_dim,
            "OMNI_VALUE_DIM": self.value_dim,
            "OMNI_BR": self.br,
            "OMNI_BC": self.bc,
            "OMNI_STAGES": self.stages,
            "OMNI_WARPS": self.warps,
            "OMNI_PART": PARTS.index(self.part),
            "OMNI_BF16": int(self.dtype == "bfloat16"),
            "OMNI_SMEM_BYTES": self.smem_bytes,
        }

    def __str__(self) -> str:
        others = (f"{k}={v}" for k, v in asdict(self).items() if k not in ("kernel", "arch", "part"))
        return " ".join([f"bwd-{self.part}", self.kernel, self.arch, *others])


@dataclass(frozen=True, kw_only=True)
class BackwardSpec:
    """The kernels of one backward pass: `config` of attention_backward.

    arch, kernel, dtype, head_dim: as in AttnSpec.  dkdv: the tile of the kernel that makes dK and dV.  dq: that of the
    one that makes dQ. Neither adds to memory that another thread block writes: the same call gives the same bits.

    Raises TypeError for fields of other types, ValueError when a tile is illegal or does not fit shared memory.
    """

    arch: str
    kernel: str
    dtype: str
    head_dim: int
    dkdv: TileShape
    dq: TileShape

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", _integer("head_dim", self.head_dim))
        for name in ("dkdv", "dq"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not 2 <= len(value) <= 4:
                raise TypeError(f"config: {name} must be a TileShape (br, bc, stages, warps), got {value!r}")
            numbers = [
                _integer(f"{name}.{field}", n) for field, n in zip(TileShape._fields, value, strict=False)
            ]
            object.__setattr__(self, name, TileShape(*numbers))
        for part in PARTS:
            self.part(part)  # raises for an illegal one

    def part(self, part: str) -> BackwardKernel:
        """The kernel of one of PARTS."""
        shape = {"dkdv": self.dkdv, "dq": self.dq}.get(part, TileShape(32, 32, 1, PREPARE_THREADS // 32))
        # The kernel that prepares is the same one for all.
        kernel = "sm80" if part == "prepare" else self.kernel
        arch = self.arch.rstrip("a") if part == "prepare" else self.arch
        return BackwardKernel(
            arch=arch,
            kernel=kernel,
            part=part,
            dtype=self.dtype,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            br=shape.br,
            bc=shape.bc,
            stages=shape.stages,
            warps=shape.warps,
        )

    def kernels(self) -> dict[str, BackwardKernel]:
        """The kernel of each of PARTS."""
        return {part: self.part(part) for part in PARTS}

    def __str__(self) -> str:
        shapes = (f"{name}={'x'.join(map(str, getattr(self, name)))}" for name in ("dkdv", "dq"))
        return " ".join(["bwd", self.kernel, self.arch, self.dtype, f"head_dim={self.head_dim}", *shapes])


def padded_rows(q_len: int) -> int:
    """Rows of lse2 and delta: the last tile of any height ends inside."""
    return round_up(q_len + 255, 64)


def _integer(name: str, value: object) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(
            f"config: {name} must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
        )
    return number
