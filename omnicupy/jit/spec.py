"""One compiled kernel variant as a value: what may be asked for, what it costs, and the macros that select it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

from omnicupy.jit import tile_checks
from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.atom import SHIPPED
from omnicupy.jit.field_types import make_flags, make_numbers
from omnicupy.jit.panels import row_bytes, tail_columns

KERNELS = ("naive", "sm80", "sm90")
DTYPES = ("float16", "bfloat16")
MAX_HEAD_DIM = 1024
MAX_ONE_PIECE = 256  # above it the head dimension is tiled: O no longer fits the registers
CHUNK = 64  # columns of Q and K streamed at a time when the head dimension is tiled
NAIVE_THREADS = 128
PACKED_ROWS = 64  # of a tile into which the heads of a group are packed
PACKED_PAIR = 128  # of one that two warpgroups share (attention_fwd_packed.cu)
RESERVED_BYTES = 1024  # of shared memory, for each thread block


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def out_columns_of(head_dim: int) -> int:
    """Columns of O (and V) one thread block owns: all of them up to 256, else an even share of at most 256."""
    pieces = -(-head_dim // MAX_ONE_PIECE)
    return round_up(-(-head_dim // pieces), 16)


class KernelSpec(Protocol):
    """One compiled kernel, of whichever pass: what compiling, caching and loading it need. A frozen dataclass, whose
    fields are the cache key. params: key of the parameter struct in params.PARAMS.
    """

    @property
    def arch(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def entry(self) -> str: ...
    @property
    def params(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def smem_bytes(self) -> int: ...
    def defines(self) -> dict[str, int]: ...


@dataclass(frozen=True, kw_only=True)
class AttnSpec:
    """One compiled variant: `config` of attention. Equal specs are the same cubin; every field is in the cache key.

    Commands print sm90-128x128-s2-w12 for AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128,
    br=128, bc=128, stages=2, warps=12); `omnicupy explain` names the variant that a call gets.

    arch: the CUDA target ("sm_80", ...).  kernel: "naive", "sm80" (mma.sync) or "sm90" (wgmma).  dtype: "float16" or
    "bfloat16".  head_dim: columns of Q and K in the kernel, a multiple of 16 (the tensors' head_dim rounded up).  br,
    bc: tile height (queries of one head) and width (keys), in tokens.  stages: K/V tiles in flight. warps: warps a
    block; sm90 with br=64 and 12 or 16 of them has two or three heads of a group in a tile (three are in no row of the
    table and unverified).  share_kv: one buffer holds K, then V (stages = 1 only).  swizzle: XOR-swizzled shared memory
    (False: plain rows, for the bank-conflict study).  ping_pong: the consumer warpgroups of sm90 take turns at the
    tensor cores.  pack: all query heads of a group are packed into the rows of a tile (kernel sm90 with br=64, warps=8,
    br=128, warps=12, or br=64, warps=12, where two warpgroups take the tiles of keys in turn): row r is token r //
    heads and head r % heads, as many tokens as fit br rows; groups above br heads take several tiles.  softcap: scores
    are capped.  value_dim: columns of V and O in the kernel, a multiple of 16; None: as wide as keys, and value_dim is
    head_dim then. Another width than head_dim needs both up to 256. Which widths tensors need: kernel_widths
    (widths.py).  blocks: thread blocks a multiprocessor of kernel sm90, 1 to 3, each with work items of its own.
    scheduler: beside three consumer warpgroups, too, a thread does nothing but take work items, as it does beside
    fewer. Calls on caches have blocks=1 and scheduler=False.

    Raises TypeError for fields of other types, ValueError when the tile is illegal or does not fit the architecture's
    shared memory.
    """

    arch: str
    kernel: str
    dtype: str
    head_dim: int
    br: int
    bc: int
    stages: int = 1
    warps: int = 4
    share_kv: bool = False
    swizzle: bool = True
    ping_pong: bool = True
    pack: bool = False
    softcap: bool = False
    value_dim: int = None  # type: ignore[assignment]
    blocks: int = 1
    scheduler: bool = False

    def __post_init__(self) -> None:
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.head_dim)
        make_numbers(self, ("head_dim", "br", "bc", "stages", "warps", "value_dim", "blocks"))
        make_flags(self, ("share_kv", "swizzle", "ping_pong", "pack", "softcap", "scheduler"))
        self._check_names()
        self._check_tile()
        if self.smem_bytes > (limit := self.smem_limit):
            rows = f"br={self.br}" if self.heads == 1 else f"warps={self.warps}"
            raise ValueError(
                f"config: the tile needs {self.smem_bytes} B of shared memory, {self.arch} has {limit} B a block; "
                f"lower {rows}, bc={self.bc} or stages={self.stages}"
            )

    def _check_names(self) -> None:
        for name, value, known in (
            ("arch", self.arch, tuple(SMEM_LIMIT_BYTES)),
            ("kernel", self.kernel, KERNELS),
            ("dtype", self.dtype, DTYPES),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"config: {name} must be one of {', '.join(known)}, got {value!r}")

    def _check_tile(self) -> None:
        if self.head_dim % 16 or not 16 <= self.head_dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"config: head_dim must be a multiple of 16 from 16 to {MAX_HEAD_DIM}, got {self.head_dim}; "
                "round the tensors' head_dim up"
            )
        if self.value_dim != self.head_dim:
            self._check_value_dim()
        if self.bc % 32 or not 32 <= self.bc <= 256:
            raise ValueError(f"config: bc must be a multiple of 32 from 32 to 256, got {self.bc}")
        if self.kernel == "sm80":
            tile_checks.check_sm80(self, MAX_ONE_PIECE)
        if self.kernel == "sm90":
            tile_checks.check_sm90(self, MAX_ONE_PIECE)
        self._check_blocks()
        tile_checks.check_pack(self)
        if self.stages not in (1, 2, 3, 4):
            raise ValueError(f"config: stages must be 1, 2, 3 or 4, got {self.stages}")

    def _check_blocks(self) -> None:
        tile_checks.check_blocks(self)

    def _check_value_dim(self) -> None:
        if self.value_dim % 16 or self.value_dim < 16 or max(self.head_dim, self.value_dim) > MAX_ONE_PIECE:
            raise ValueError(
                f"config: value_dim must be head_dim, or both multiples of 16 from 16 to {MAX_ONE_PIECE}, got "
                f"head_dim={self.head_dim} and value_dim={self.value_dim}"
            )

    @property
    def serves_caches(self) -> bool:
        """Has it a variant for calls on caches?"""
        return self.blocks == 1 and not self.scheduler

    @property
    def tiled(self) -> bool:
        """True when head_dim is cut in pieces (D-tiling)."""
        return self.kernel == "sm80" and self.head_dim > MAX_ONE_PIECE

    @property
    def heads(self) -> int:
        """Query heads of one group in a tile, `br` rows of each: more than one shares what is read of K and V."""
        return 16 * (self.warps - 4) // self.br if self.kernel == "sm90" and not self.pack else 1

    @property
    def rows(self) -> int:
        """Query rows of a tile, those of all its heads."""
        return self.heads * self.br

    def packs(self, group: int) -> int:
        """Tiles, one beside the other, that the `group` query heads of a group are packed into; 1 without `pack`."""
        return -(-group // self.br) if self.pack else 1

    def pack_heads(self, group: int) -> int:
        """Query heads that a token of a packed tile has rows for; 1 without `pack`."""
        return -(-group // self.packs(group)) if self.pack else 1

    def tokens(self, group: int) -> int:
        """Query tokens of a tile: the height at which masks are cut."""
        return self.br // self.pack_heads(group)

    @property
    def out_columns(self) -> int:
        """Columns of V and O one thread block owns."""
        return out_columns_of(self.head_dim) if self.tiled else self.value_dim

    @property
    def value_pieces(self) -> int:
        """Thread blocks that share one query block, each with its own columns of V and O."""
        return -(-self.value_dim // self.out_columns)

    @property
    def mean_columns(self) -> int:
        """The mean of both widths: the work of a pair of query and key is four times as many operations."""
        return (self.head_dim + self.value_dim) // 2

    @property
    def threads(self) -> int:
        """Threads of one thread block."""
        return NAIVE_THREADS if self.kernel == "naive" else 32 * self.warps

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one thread block, in bytes."""
        if self.kernel == "naive":
            return 4 * (
                self.head_dim + self.bc + NAIVE_THREADS
            )  # the query row, a tile of scores, reductions
        if self.kernel == "sm90":
            return self._sm90_bytes(self.q_slots)
        if self.tiled:
            return 2 * (self.stages * (self.br + self.bc) * CHUNK + self.bc * self.out_columns)
        widths = (self.head_dim, self.value_dim)
        kv_columns = max(widths) if self.share_kv else self.stages * sum(widths)
        return 2 * (self.head_dim * self.br + kv_columns * self.bc) + (self.stages + 1) * self._span_bytes

    @property
    def narrow(self) -> bool:
        """Does a last panel of Q, K or V have but the columns that there are (panels.py)?"""
        return self.blocks > 1 and max(map(tail_columns, (self.head_dim, self.value_dim))) > 0

    @property
    def q_slots(self) -> int:
        """Query blocks that kernel "sm90" holds in shared memory: two where they fit, so that one is loaded early."""
        return 2 if self._sm90_bytes(2) <= self.smem_limit else 1

    @property
    def smem_limit(self) -> int:
        """Shared memory that one of `blocks` thread blocks may use, in bytes."""
        return (SMEM_LIMIT_BYTES[self.arch] + RESERVED_BYTES) // self.blocks - RESERVED_BYTES

    def _sm90_bytes(self, q_slots: int) -> int:
        # Tile and work slots, walks and barriers are in the last KiB.
        of_keys, of_values = (row_bytes(n, narrow=self.narrow) for n in (self.head_dim, self.value_dim))
        tiles = of_keys * q_slots * self.rows + (of_keys + of_values) * self.stages * self.bc
        return tiles + self.stages * self._span_bytes + 1024

    @property
    def _span_bytes(self) -> int:
        """Shared memory for the spans of one PARTIAL tile: two spans a key, 8 bytes each."""
        return 2 * self.bc * 8

    @property
    def source(self) -> str:
        """Name of the kernel's source file in `kernels/`."""
        if self.pack and self.warps == 12:
            return "attention_fwd_packed.cu" if self.br == PACKED_PAIR else tile_checks.KEY_TURNS
        return "attention_naive.cu" if self.kernel == "naive" else f"attention_fwd_{self.kernel}.cu"

    @property
    def params(self) -> str:
        """Which parameter struct it takes: a key of params.PARAMS."""
        return f"{self.kernel}_narrow" if self.narrow else self.kernel

    @property
    def entry(self) -> str:
        """Name of the `extern "C"` kernel."""
        return self.source.removesuffix(".cu")

    def defines(self) -> dict[str, int]:
        """The macros that the source file reads."""
        return {
            "OMNI_HEAD_DIM": self.head_dim,
            "OMNI_VALUE_DIM": self.value_dim,
            "OMNI_OUT_COLUMNS": self.out_columns,
            "OMNI_BR": self.br,
            "OMNI_BC": self.bc,
            "OMNI_STAGES": self.stages,
            "OMNI_WARPS": self.warps,
            "OMNI_Q_SLOTS": self.q_slots,
            "OMNI_SHARE_KV": int(self.share_kv),
            "OMNI_SWIZZLE": int(self.swizzle),
            "OMNI_BF16": int(self.dtype == "bfloat16"),
            "OMNI_PING_PONG": int(self.ping_pong),
            "OMNI_PACK": int(self.pack),
            "OMNI_SMEM_BYTES": self.smem_bytes,
            "OMNI_SOFTCAP": int(self.softcap),
            "OMNI_CACHED": 0,
            "OMNI_PAGE": 0,
            "OMNI_RAGGED": 0,
            "OMNI_FP8": 0,
            "OMNI_CONVERTERS": 0,
            "OMNI_BLOCKS": self.blocks,
            "OMNI_SCHEDULER": int(self.scheduler),
            "OMNI_NARROW": int(self.narrow),
            **SHIPPED.defines(),
        }

    def __str__(self) -> str:
        usual = {"blocks": 1, "scheduler": False}
        others = (
            f"{k}={v}"
            for k, v in asdict(self).items()
            if k not in ("kernel", "arch") and (k, v) not in usual.items()
        )
        return " ".join([self.kernel, self.arch, *others])
