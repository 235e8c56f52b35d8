"""Which compiled variant a call gets: one table; the first matching row, or the cheapest of those that compete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

from omnicupy import tuned
from omnicupy.blockmask import PARTIAL, BlockMask
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.masks import Mask
from omnicupy.spec import DTYPES, MAX_HEAD_DIM, AttnSpec, round_up

HOPPER = ("sm_90",)
FEW_ROWS = 64  # query rows that a small tile holds
# Key tiles from which the Hopper kernel fills the device by splitting rows rather than by small tiles.
SPLIT_TILES = 16
WORTH_A_CUT = 0.05  # of a call's time: cutting the mask for another tile must promise to save as much
ARCHES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a tile takes of one multiprocessor, in picoseconds, as fitted to measurements.

    pair: a (query, key) pair of a FULL or CAUSAL tile.  partial: one of a PARTIAL tile, in the mean of those that some
    warpgroup skips and those that none does.  block: a block of query rows, apart from its pairs.  launch: what a call
    takes apart from its blocks.
    """

    pair: float
    partial: float
    block: float
    launch: float = 0.0

    def of(self, blocks: BlockMask) -> float:
        """The work of one head under a mask cut to the tile."""
        partial = int((blocks.kinds == PARTIAL).sum())
        tiles = (len(blocks.kinds) - partial) * self.pair + partial * self.partial
        return blocks.br * blocks.bc * tiles + blocks.q_blocks * self.block

    def least(self, mask: Mask, br: int) -> float:
        """The same if tiles of `br` rows held nothing but allowed pairs: no cut takes less."""
        return mask.pairs * self.pair - (-mask.shape[0] // br) * self.block


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: when it serves, and with which tile.

    head_dims: (least, greatest) kernel head_dim, both included.  shape: "any", or "small" for few query rows
    and for problems whose "any" row would leave multiprocessors without work, or "shared" for few query rows of groups
    whose heads fill tiles.  cost: of rows that compete for the same calls; the mask decides.  The rest: as in AttnSpec.
    """

    head_dims: tuple[int, int]
    br: int
    bc: int
    stages: int = 1
    warps: int = 4
    share_kv: bool = False
    kernel: str = "sm80"
    shape: str = "any"
    cost: Cost | None = None
    ping_pong: bool = True
    archs: tuple[str, ...] = ARCHES
    dtypes: tuple[str, ...] = DTYPES

    def spec(self, arch: str, dtype: str, head_dim: int) -> AttnSpec:
        """The variant for an architecture, dtype and kernel head_dim. Raises ValueError if it is illegal."""
        return AttnSpec(
            arch="sm_90a" if self.kernel == "sm90" else arch,
            kernel=self.kernel,
            dtype=dtype,
            head_dim=head_dim,
            br=self.br,
            bc=self.bc,
            stages=self.stages,
            warps=self.warps,
            share_kv=self.share_kv,
            ping_pong=self.ping_pong,
        )

    def serves(self, arch: str, dtype: str, head_dim: int) -> bool:
        """True when the row is for this architecture, dtype and kernel head_dim."""
        least, greatest = self.head_dims
        return least <= head_dim <= greatest and arch in self.archs and dtype in self.dtypes


TABLE = (
    Row(kernel="sm90", head_dims=(16, 128), shape="shared", br=64, bc=128, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 256), shape="shared", br=64, bc=64, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(16, 128), shape="small", br=64, bc=128, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 256), shape="small", br=64, bc=64, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(16, 32), br=192, bc=96, stages=3, warps=16, archs=HOPPER),
    Row(kernel="sm90", head_dims=(48, 64), br=192, bc=128, stages=3, warps=16, archs=HOPPER),
    Row(
        kernel="sm90",
        head_dims=(80, 96),
        br=192,
        bc=96,
        stages=3,
        warps=16,
        cost=Cost(pair=63.0, partial=95.2, block=2.17e6),
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(80, 96),
        br=128,
        bc=64,
        stages=3,
        warps=12,
        cost=Cost(pair=93.0, partial=145.9, block=0.72e6),
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(112, 128),
        br=192,
        bc=64,
        stages=3,
        warps=16,
        cost=Cost(pair=84.3, partial=148.7, block=0.95e6, launch=42.1e6),
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(112, 128),
        br=128,
        bc=128,
        stages=2,
        warps=12,
        cost=Cost(pair=88.8, partial=119.0, block=3.5e6, launch=19.8e6),
        archs=HOPPER,
    ),
    Row(kernel="sm90", head_dims=(144, 192), br=128, bc=96, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(208, 256), br=128, bc=64, stages=2, warps=12, archs=HOPPER),
    Row(head_dims=(16, 128), shape="small", br=64, bc=64),
    Row(head_dims=(16, 64), br=128, bc=96, stages=2, archs=HOPPER),
    Row(head_dims=(16, 64), br=128, bc=64),
    Row(head_dims=(80, 128), br=128, bc=64, archs=HOPPER),
    Row(head_dims=(80, 128), br=128, bc=64, warps=8),  # 32 rows a warp spill on the others
    Row(head_dims=(144, 256), br=64, bc=64),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=64, stages=2, archs=HOPPER),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=32, stages=2),
)


# Kernels that calls without `config` may get. A kernel is served only while tests/attestation.json covers it as it
# stands (a test compares them); until then it is reached by an explicit config.
SERVED: frozenset[str] = frozenset({"sm80", "sm90"})


def arch_of(major: int, minor: int) -> str:
    """The newest target of ARCHES whose code runs on compute capability major.minor.

    A cubin runs on its own minor version and on later ones of the same major version.
    Raises UnsupportedError below 8.0 and for a major version that no kernel is compiled for.
    """
    capability = 10 * major + minor
    fitting = [arch for arch in ARCHES if _number(arch) // 10 == major and _number(arch) <= capability]
    if not fitting:
        need = "8.0 or later is needed" if major < 8 else f"kernels exist for {', '.join(ARCHES)}"
        raise UnsupportedError(
            f"compute capability {major}.{minor} is not supported: {need}; pass NumPy arrays for the CPU"
        )
    return max(fitting, key=_number)


def runs_on(arch: str, major: int, minor: int) -> bool:
    """True when code for `arch` runs on compute capability major.minor; "a" targets run on theirs alone."""
    number = _number(arch)
    if arch.endswith("a"):
        return number == 10 * major + minor
    return number // 10 == major and number <= 10 * major + minor


def pick(
    arch: str, problem: Problem, masks: Sequence[Mask], sm_count: int, *, mappable: bool = True
) -> AttnSpec:
    """The variant for a call: `masks` as from check.masks_of, `sm_count` multiprocessors on the device.

    mappable: a tensor map can hold q, k and v, as kernel sm90 needs; where not, kernel sm80 serves.

    Raises UnsupportedError when no row serves the architecture, dtype and head_dim.
    """
    head_dim = round_up(problem.head_dim, 16)
    rows = [
        row
        for row in TABLE
        if row.serves(arch, problem.dtype, head_dim) and (mappable or row.kernel != "sm90")
    ]
    share = problem.q_heads * problem.batch / len(masks) / sm_count
    large = _cheapest([row for row in rows if row.shape == "any"], masks, share)
    if large is None:
        raise UnsupportedError(
            f"no kernel serves {problem.dtype} with head_dim {problem.head_dim} on {arch}; cast q, k and v"
        )
    spec = large.spec(arch, problem.dtype, head_dim)
    if not _is_small(problem, spec, sm_count):
        return spec
    shapes = ("shared", "small") if problem.q_len <= FEW_ROWS else ("small",)
    small = (row.spec(arch, problem.dtype, head_dim) for row in rows if row.shape in shapes)
    return next((one for one in small if problem.group % one.heads == 0), spec)


def _cheapest(rows: Sequence[Row], masks: Sequence[Mask], share: float) -> Row | None:
    """The first row, or of the rows that compete with it the one under which the call takes least. None of none.

    The masks are cut for a row only if that could save WORTH_A_CUT of the time: a cut takes longer than the rest of the
    choice.  share: heads that a multiprocessor works on, for each mask.
    """
    competing = list(takewhile(lambda row: row.cost is not None, rows))
    if len(competing) < 2:
        return rows[0] if rows else None
    best, shortest = competing[0], _time(competing[0], masks, share)
    for row in competing[1:]:
        assert row.cost is not None
        least = row.cost.launch + share * sum(row.cost.least(mask, row.br) for mask in masks)
        if least < (1 - WORTH_A_CUT) * shortest and (time := _time(row, masks, share)) < shortest:
            best, shortest = row, time
    return best


def _time(row: Row, masks: Sequence[Mask], share: float) -> float:
    assert row.cost is not None
    return row.cost.launch + share * sum(row.cost.of(mask.blocks(row.br, row.bc)) for mask in masks)


def _is_small(problem: Problem, spec: AttnSpec, sm_count: int) -> bool:
    """Would `spec` waste most of its rows, or leave multiprocessors without work?"""
    if problem.q_len <= FEW_ROWS:
        return True
    blocks = problem.batch * problem.q_heads * -(-problem.q_len // spec.br) * spec.value_pieces
    splits = spec.kernel == "sm90" and problem.k_len >= SPLIT_TILES * spec.bc
    return blocks < sm_count and not splits


def select(
    arch: str, problem: Problem, masks: Sequence[Mask], sm_count: int, *, mappable: bool = True
) -> AttnSpec:
    """The variant that the user's tuned choices name, else `pick`'s, held to the kernels that are served.

    A tuned choice whose kernel is not served, that needs tensor maps where none can be, or whose tiles hold more heads
    than the problem's groups fill, is left out.
    Raises UnsupportedError when the kernel of `pick` is not served.
    """
    chosen = tuned.find(problem, masks, sm_count)
    if (
        chosen is not None
        and chosen.kernel in SERVED
        and (mappable or chosen.kernel != "sm90")
        and problem.group % chosen.heads == 0
    ):
        return chosen
    spec = pick(arch, problem, masks, sm_count, mappable=mappable)
    if spec.kernel not in SERVED:
        raise UnsupportedError(
            f"kernel {spec.kernel!r} would serve this call, but no attestation covers it as it stands; verify it on "
            f"this GPU (`python cli.py verify --kernel {spec.kernel}`) and ask for it: config={spec!r}"
        )
    return spec


@contextmanager
def every_kernel() -> Iterator[None]:
    """Serve every kernel of the table for a while, and no tuned choice: for verification and measurement, which
    come before attesting.
    """
    global SERVED
    before = SERVED
    SERVED = frozenset(row.kernel for row in TABLE)
    try:
        with tuned.ignored():
            yield
    finally:
        SERVED = before


def rows() -> Iterator[AttnSpec]:
    """The variant of each row, architecture and dtype, at the row's greatest head_dim: the tests' list."""
    seen = set()
    for row in TABLE:
        for arch in row.archs:
            for dtype in row.dtypes:
                spec = row.spec(arch, dtype, row.head_dims[1])
                if spec not in seen:
                    seen.add(spec)
                    yield spec


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_").rstrip("a"))
