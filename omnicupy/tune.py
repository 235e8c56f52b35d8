"""Which compiled variant a call gets: one table, first matching row wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from omnicupy import tuned
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.masks import Mask
from omnicupy.spec import DTYPES, MAX_HEAD_DIM, AttnSpec, round_up

HOPPER = ("sm_90",)
ARCHES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: when it serves, and with which tile.

    head_dims: (least, greatest) kernel head_dim, both included.  shape: "any", or "small" for problems whose
    "any" row would leave multiprocessors without a thread block.  mask: "any", or "dense" for masks that are
    full or causal everywhere.  The rest: as in AttnSpec.
    """

    head_dims: tuple[int, int]
    br: int
    bc: int
    stages: int = 1
    warps: int = 4
    share_kv: bool = False
    kernel: str = "sm80"
    shape: str = "any"
    mask: str = "any"
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
    Row(kernel="sm90", head_dims=(16, 128), shape="small", br=64, bc=128, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 256), shape="small", br=64, bc=64, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(16, 64), br=192, bc=96, stages=3, warps=16, archs=HOPPER),
    Row(kernel="sm90", head_dims=(80, 128), mask="dense", br=128, bc=160, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(80, 128), br=128, bc=128, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 192), br=128, bc=96, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(208, 256), br=128, bc=64, stages=2, warps=12, archs=HOPPER),
    Row(head_dims=(16, 128), shape="small", br=64, bc=64),
    Row(head_dims=(16, 64), br=128, bc=64),
    Row(head_dims=(80, 128), br=128, bc=64, archs=HOPPER),
    Row(head_dims=(80, 128), br=128, bc=64, warps=8),  # 32 rows a warp spill on the others
    Row(head_dims=(144, 256), br=64, bc=64),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=64, stages=2, archs=HOPPER),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=32, stages=2),
)


# Kernels that calls without `config` may get. A kernel is served only while tests/attestation.json covers it as it
# stands (a test compares them); until then it is reached by an explicit config.
SERVED: frozenset[str] = frozenset()


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
    if any(row.mask != "any" for row in rows):
        mask = _mask_class(masks)
        rows = [row for row in rows if row.mask in ("any", mask)]
    large = next((row for row in rows if row.shape == "any"), None)
    if large is None:
        raise UnsupportedError(
            f"no kernel serves {problem.dtype} with head_dim {problem.head_dim} on {arch}; cast q, k and v"
        )
    spec = large.spec(arch, problem.dtype, head_dim)
    blocks = problem.batch * problem.q_heads * -(-problem.q_len // spec.br) * spec.value_pieces
    small = next((row for row in rows if row.shape == "small"), None) if blocks < sm_count else None
    return spec if small is None else small.spec(arch, problem.dtype, head_dim)


def select(
    arch: str, problem: Problem, masks: Sequence[Mask], sm_count: int, *, mappable: bool = True
) -> AttnSpec:
    """The variant that the user's tuned choices name, else `pick`'s, held to the kernels that are served.

    A tuned choice whose kernel is not served, or that needs tensor maps where none can be, is left out.
    Raises UnsupportedError when the kernel of `pick` is not served.
    """
    spec = pick(arch, problem, masks, sm_count, mappable=mappable)
    chosen = tuned.find(problem, masks, sm_count)
    if chosen is not None and chosen.kernel in SERVED and (mappable or chosen.kernel != "sm90"):
        return chosen
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


def _mask_class(masks: Sequence[Mask]) -> str:
    """ "dense" when every mask is full or causal everywhere, else "sparse"; O(k_len)."""
    for mask in masks:
        if mask.intervals is None or len(mask.intervals[0]) > 1:
            return "sparse"
        (q_len, k_len), (start,), (stop,) = mask.shape, *mask.intervals
        first_row = np.clip(np.arange(k_len) - mask.diagonal, 0, q_len)
        seen = stop > start
        causal = np.array_equal(seen, first_row < q_len) and np.array_equal(start[seen], first_row[seen])
        if not (np.all(stop[seen] == q_len) and (causal or (seen.all() and not start.any()))):
            return "sparse"
    return "dense"
