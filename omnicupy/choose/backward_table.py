"""The built-in table of the backward pass: which kernels make the gradients of which calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from omnicupy.call.problem import Problem
from omnicupy.choose import saved
from omnicupy.choose.backward_additions import suited
from omnicupy.choose.capped import capped_backward
from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import ARCHES, SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import DTYPES, MAX_HEAD_DIM, MAX_ONE_PIECE
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.mask import Mask

# Kernels that calls without `config` may get; as in pick.SERVED, those that the attestation covers.
SERVED: frozenset[str] = frozenset({"sm80", "sm90", "naive"})

SMALL = tuple(arch for arch in ARCHES if SMEM_LIMIT_BYTES[arch] < 110_000)
LARGE = tuple(arch for arch in ARCHES if arch not in SMALL)


@dataclass(frozen=True, kw_only=True)
class BackwardRow:
    """One line of the table. head_dims: (least, greatest) of the wider of the kernels' head_dim and value_dim.  dkdv,
    dq, fused, ordered, kernel: as in BackwardSpec.  few: what takes fused's place where sums have few additions.  full:
    what takes ordered's under full masks whose sums have many.  archs: which it serves.
    """

    head_dims: tuple[int, int]
    dkdv: TileShape
    dq: TileShape
    fused: TileShape | None = None
    ordered: TileShape | None = None
    few: TileShape | None = None
    full: TileShape | None = None
    kernel: str = "sm80"
    archs: tuple[str, ...] = ARCHES

    def spec(self, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> BackwardSpec:
        """The kernels for an architecture, dtype and widths of kernels. Raises ValueError if they are illegal."""
        return _spec(self, arch, dtype, head_dim, head_dim if value_dim is None else value_dim)

    def specs(self, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> list[BackwardSpec]:
        """`spec`, and where `few` or `full` takes a place the kernels with it."""
        usual = self.spec(arch, dtype, head_dim, value_dim)
        found = [usual]
        if self.few is not None:
            found.append(replace(usual, fused=self.few))
        if self.full is not None:
            found.append(replace(usual, ordered=self.full))
        return found

    def serves(self, arch: str, widest: int) -> bool:
        """True when the row is for this architecture and the wider of the kernels' head_dim and value_dim."""
        return self.head_dims[0] <= widest <= self.head_dims[1] and arch in self.archs


@lru_cache(maxsize=256)
def _spec(row: BackwardRow, arch: str, dtype: str, head_dim: int, value_dim: int) -> BackwardSpec:
    return BackwardSpec(
        arch="sm_90a" if row.kernel == "sm90" else arch,
        kernel=row.kernel,
        dtype=dtype,
        head_dim=head_dim,
        dkdv=row.dkdv,
        dq=row.dq,
        fused=row.fused,
        value_dim=value_dim,
        ordered=row.ordered,
    )


HOPPER = ("sm_90",)
TABLE = (
    BackwardRow(
        kernel="sm90",
        head_dims=(16, 48),
        dkdv=TileShape(128, 128, 4, 12),
        dq=TileShape(192, 96, 8, 16),
        fused=TileShape(64, 192, 3, 16),
        ordered=TileShape(64, 192, 3, 16),
        archs=HOPPER,
    ),
    BackwardRow(
        kernel="sm90",
        head_dims=(64, 64),
        dkdv=TileShape(128, 128, 4, 12),
        dq=TileShape(192, 96, 8, 16),
        fused=TileShape(64, 128, 4, 16),  # a warpgroup of its own makes dQ
        ordered=TileShape(64, 192, 3, 16),
        few=TileShape(64, 128, 4, 12),
        full=TileShape(64, 128, 4, 16),
        archs=HOPPER,
    ),
    BackwardRow(
        kernel="sm90",
        head_dims=(80, 80),
        dkdv=TileShape(96, 128, 3, 12),
        dq=TileShape(128, 128, 4, 12),
        fused=TileShape(64, 128, 2, 12),
        ordered=TileShape(64, 128, 2, 12),
        archs=HOPPER,
    ),
    BackwardRow(
        kernel="sm90",
        head_dims=(96, 128),
        dkdv=TileShape(64, 128, 4, 12),
        dq=TileShape(128, 128, 4, 12),
        fused=TileShape(64, 128, 2, 12),
        ordered=TileShape(64, 128, 2, 12),
        archs=HOPPER,
    ),
    BackwardRow(
        kernel="sm90",
        head_dims=(144, 192),
        dkdv=TileShape(64, 64, 2, 12),
        dq=TileShape(128, 96, 3, 12),
        archs=HOPPER,
    ),
    BackwardRow(
        kernel="sm90",
        head_dims=(208, MAX_ONE_PIECE),
        dkdv=TileShape(64, 64, 2, 12),
        dq=TileShape(128, 64, 3, 12),
        archs=HOPPER,
    ),
    # 32 tokens a warp; where one thread block fills the shared memory, more warps of 16.
    BackwardRow(
        head_dims=(16, 64),
        dkdv=TileShape(64, 128, 2, 4),
        dq=TileShape(128, 64, 2, 4),
        fused=TileShape(64, 128, 1, 4),  # dS of one tile: two blocks fit a multiprocessor
        archs=LARGE,
    ),
    BackwardRow(
        head_dims=(16, 64),
        dkdv=TileShape(64, 128, 2, 8),
        dq=TileShape(128, 64, 2, 8),
        fused=TileShape(64, 128, 2, 8),
        archs=SMALL,
    ),
    # Two blocks of dQ a multiprocessor, where its shared memory holds them.
    BackwardRow(
        head_dims=(80, 128),
        dkdv=TileShape(64, 128, 2, 8),
        dq=TileShape(128, 32, 2, 4),
        fused=TileShape(64, 64, 1, 4),  # two blocks a multiprocessor
        archs=("sm_90", "sm_100"),
    ),
    BackwardRow(
        head_dims=(80, 128),
        dkdv=TileShape(64, 128, 2, 8),
        dq=TileShape(128, 64, 2, 8),
        fused=TileShape(64, 64, 1, 4),
        archs=("sm_80",),
    ),
    BackwardRow(
        head_dims=(80, 128),
        dkdv=TileShape(64, 64, 2, 4),
        dq=TileShape(64, 64, 2, 4),
        fused=TileShape(64, 64, 1, 4),
        archs=SMALL,
    ),
    BackwardRow(
        head_dims=(144, MAX_ONE_PIECE), dkdv=TileShape(32, 64, 1, 4), dq=TileShape(128, 32, 1, 8), archs=LARGE
    ),
    BackwardRow(
        head_dims=(144, MAX_ONE_PIECE), dkdv=TileShape(32, 64, 1, 4), dq=TileShape(64, 32, 1, 4), archs=SMALL
    ),
    BackwardRow(
        head_dims=(MAX_ONE_PIECE + 16, MAX_HEAD_DIM), dkdv=TileShape(32, 64, 1, 4), dq=TileShape(64, 32, 1, 4)
    ),
)


def naive(
    arch: str, dtype: str, head_dim: int, softcap: bool = False, value_dim: int | None = None
) -> BackwardSpec:
    """The plain kernels, which the others are compared with. value_dim: None for values as wide as keys."""
    shape = TileShape(64, 64, 1, 4)
    columns, of_values = kernel_widths(head_dim, head_dim if value_dim is None else value_dim)
    return BackwardSpec(
        arch=arch,
        kernel="naive",
        dtype=dtype,
        head_dim=columns,
        dkdv=shape,
        dq=shape,
        softcap=softcap,
        value_dim=of_values,
    )


def pick(
    arch: str, dtype: str, head_dim: int, softcap: bool = False, value_dim: int | None = None
) -> BackwardSpec:
    """The kernels of a call's backward pass. softcap: are its scores capped?  value_dim: None for values as wide as
    keys; with other values the row is that of the greater width.

    Raises UnsupportedError when no row serves them.
    """
    return _picked(arch, dtype, head_dim, softcap, value_dim)[1]


def _picked(
    arch: str, dtype: str, head_dim: int, softcap: bool, value_dim: int | None
) -> tuple[BackwardRow, BackwardSpec]:
    """The row of `pick`, and its kernels."""
    widths = kernel_widths(head_dim, head_dim if value_dim is None else value_dim)
    for row in TABLE:
        if row.kernel in SERVED and row.serves(arch, max(widths)):
            spec = row.spec(arch, dtype, *widths)
            return row, capped_backward(spec) if softcap else spec
    raise UnsupportedError(
        f"attention_backward: no kernel serves {dtype} with head_dim {head_dim} on {arch}; "
        "pass NumPy arrays for the CPU"
    )


def chosen_for(
    arch: str, problem: Problem, masks: Sequence[Mask], *, deterministic: bool = True
) -> BackwardSpec:
    """`pick`'s kernels of a problem as far as they suit its masks, the distinct ones: backward_additions.suited.
    deterministic: of the call; what calls in the other order would get is not asked.  Raises UnsupportedError as
    `pick`.
    """
    row, spec = _picked(arch, problem.dtype, problem.head_dim, problem.softcap, problem.value_dim)
    return suited(spec, problem, masks, deterministic=deterministic, few=row.few, full=row.full)


def select(
    arch: str, problem: Problem, masks: Sequence[Mask], sm_count: int, *, deterministic: bool = True
) -> BackwardSpec:
    """The kernels that the user's tuned choices name, else those of `chosen_for`, held to those that are served.

    masks: as in check_backward.BackwardCall.  sm_count: multiprocessors of the device.  deterministic: of the call.
    Raises UnsupportedError as `pick`.
    """
    chosen = saved.find_backward(problem, masks, sm_count, deterministic=deterministic)
    if chosen is not None and chosen.kernel in SERVED:
        return chosen
    return chosen_for(arch, problem, masks, deterministic=deterministic)


def rows() -> Iterator[BackwardSpec]:
    """The kernels of each row, architecture and dtype, both widths the row's greatest: the tests' list."""
    for row in TABLE:
        for arch in row.archs:
            for dtype in DTYPES:
                yield from row.specs(arch, dtype, row.head_dims[1])


def every_spec() -> Iterator[BackwardSpec]:
    """The full product: each row at each head_dim, architecture and dtype that it serves."""
    for row in TABLE:
        least, greatest = row.head_dims
        for head_dim, arch, dtype in product(range(least, greatest + 1, 16), row.archs, DTYPES):
            yield from row.specs(arch, dtype, head_dim)
