"""Which compiled kernels a verification case runs through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omnicupy import tune
from omnicupy.cases import Case
from omnicupy.check import Problem
from omnicupy.masks import Mask
from omnicupy.spec import MAX_ONE_PIECE, AttnSpec, round_up

DEFAULT = "chosen by tune.py"


@dataclass(frozen=True)
class Variant:
    """A kernel as the report names it. spec: its config; the default variant's is what tune.py picks.

    explicit: pass the spec as `config`, else leave the choice to the call.
    """

    name: str
    spec: AttnSpec
    explicit: bool = True


def problem_of(case: Case) -> Problem:
    """The sizes of a case, as the library sees them."""
    return Problem(case.batch, case.q_heads, case.kv_heads, case.q_len, case.k_len, case.head_dim, case.dtype)


def variants(case: Case, masks: Sequence[Mask], arch: str, sm_count: int) -> list[Variant]:
    """Every kernel for the case: naive, the fixed ladder, every row of tune.py that serves it, and the
    default.

    A tile that the architecture's shared memory cannot hold is not a kernel there, so it is left out.
    """
    head_dim = round_up(case.head_dim, 16)
    ladder = [("naive", naive(arch, case.dtype, head_dim))]
    ladder += (
        _tiled(arch, case.dtype, head_dim)
        if head_dim > MAX_ONE_PIECE
        else _one_piece(arch, case.dtype, head_dim)
    )
    found = {spec: Variant(name, spec) for name, spec in reversed(ladder)}
    for row in tune.TABLE:
        if row.serves(arch, case.dtype, head_dim):
            spec = row.spec(arch, case.dtype, head_dim)
            found.setdefault(spec, Variant(f"{spec.kernel} {spec.br}x{spec.bc} stages {spec.stages}", spec))
    picked = tune.pick(arch, problem_of(case), masks, sm_count)
    ordered = sorted(found.values(), key=lambda variant: _rank(variant.name))
    return [*ordered, Variant(DEFAULT, picked, explicit=False)]


def naive(arch: str, dtype: str, head_dim: int) -> AttnSpec:
    """The plain baseline."""
    return AttnSpec(arch=arch, kernel="naive", dtype=dtype, head_dim=round_up(head_dim, 16), br=64, bc=64)


def staged(arch: str, dtype: str, head_dim: int, stages: int, *, share_kv: bool = False) -> AttnSpec | None:
    """The mma.sync kernel with a moderate tile at a number of stages; None where no tile fits."""
    for bc in (64, 32):
        for warps in (4, 2, 1):
            try:
                return AttnSpec(
                    arch=arch,
                    kernel="sm80",
                    dtype=dtype,
                    head_dim=head_dim,
                    br=16 * warps,
                    bc=bc,
                    stages=stages,
                    warps=warps,
                    share_kv=share_kv,
                )
            except ValueError:
                continue
    return None


def _one_piece(arch: str, dtype: str, head_dim: int) -> list[tuple[str, AttnSpec]]:
    made = [("sm80 stages 1, shared K/V", staged(arch, dtype, head_dim, 1, share_kv=True))]
    made += [(f"sm80 stages {stages}", staged(arch, dtype, head_dim, stages)) for stages in (1, 2, 3)]
    return [(name, spec) for name, spec in made if spec is not None]


def _tiled(arch: str, dtype: str, head_dim: int) -> list[tuple[str, AttnSpec]]:
    made = [(f"sm80 D-tiled, stages {stages}", staged(arch, dtype, head_dim, stages)) for stages in (1, 2, 3)]
    return [(name, spec) for name, spec in made if spec is not None]


def _rank(name: str) -> tuple[bool, str]:
    return name != "naive", name


def specs_of(cases: Iterable[Case], arch: str, sm_count: int) -> list[AttnSpec]:
    """Every distinct kernel that the cases run through."""
    found: dict[AttnSpec, None] = {}
    for case in cases:
        for variant in variants(case, case.masks(), arch, sm_count):
            found[variant.spec] = None
    return list(found)
