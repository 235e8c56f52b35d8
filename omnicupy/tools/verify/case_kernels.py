"""Which compiled kernels a verification case runs through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnicupy.call.problem import Problem
from omnicupy.choose import pick, table
from omnicupy.jit.spec import MAX_ONE_PIECE, AttnSpec, round_up
from omnicupy.masks.mask import Mask
from omnicupy.tools.verify.cases import BROADCAST, REVERSED, Case

DEFAULT = "chosen by the table"


@dataclass(frozen=True)
class Variant:
    """A kernel as the report names it. spec: what runs; the default variant's is what the table has for it.

    explicit: pass the spec as `config`, else leave the choice to the call.
    """

    name: str
    spec: AttnSpec
    explicit: bool = True

    @property
    def sources(self) -> tuple[str, ...]:
        """Its files in `kernels/`."""
        return (self.spec.source,)

    @property
    def config(self) -> AttnSpec | None:
        """The `config` of the call."""
        return self.spec if self.explicit else None


def problem_of(case: Case) -> Problem:
    """The sizes of a case, as the library sees them."""
    return Problem(case.batch, case.q_heads, case.kv_heads, case.q_len, case.k_len, case.head_dim, case.dtype)


def serves(kernel: str, case: Case) -> bool:
    """True when the kernel is made for the case: wgmma tiles need a whole head_dim and strides above zero."""
    if kernel != "sm90":
        return True
    return round_up(case.head_dim, 16) <= MAX_ONE_PIECE and not {BROADCAST, REVERSED} & set(case.options)


def variants(case: Case, masks: Sequence[Mask], arch: str, sm_count: int) -> list[Variant]:
    """Every kernel for the case: naive, the fixed ladder, every row of the table that serves it, and the
    default.

    A tile that the architecture's shared memory cannot hold is not a kernel there, so it is left out.
    """
    named = [(spec, name) for name, spec in ladder(case, arch) if serves(spec.kernel, case)]
    found = {spec: Variant(name, spec) for spec, name in reversed(named)}
    head_dim, problem = round_up(case.head_dim, 16), problem_of(case)
    for row in table.TABLE:
        if row.serves(arch, case.dtype, head_dim) and serves(row.kernel, case):
            spec = row.spec(arch, case.dtype, head_dim)
            if problem.group % spec.heads:
                continue
            name = f"{spec.kernel} {spec.br}x{spec.bc} stages {spec.stages} warps {spec.warps}"
            found.setdefault(spec, Variant(name, spec))
    picked = pick.pick(arch, problem, masks, sm_count, mappable=serves("sm90", case))
    ordered = sorted(found.values(), key=lambda variant: (variant.name != "naive", variant.name))
    return [*ordered, Variant(DEFAULT, picked, explicit=False)]


def ladder(case: Case, arch: str) -> list[tuple[str, AttnSpec]]:
    """The kernels that are verified whether the table selects them or not, by their names in the report."""
    head_dim = round_up(case.head_dim, 16)
    naive = AttnSpec(arch=arch, kernel="naive", dtype=case.dtype, head_dim=head_dim, br=64, bc=64)
    tiles = [(64, 4), (32, 2), (16, 1)]
    made: list[tuple[str, AttnSpec | None]] = [("naive", naive)]
    if head_dim > MAX_ONE_PIECE:
        for stages in (1, 2, 3):
            spec = _first(tiles, arch=arch, kernel="sm80", dtype=case.dtype, head_dim=head_dim, stages=stages)
            made.append((f"sm80 D-tiled, stages {stages}", spec))
    else:
        for stages in (1, 2, 3):
            spec = _first(tiles, arch=arch, kernel="sm80", dtype=case.dtype, head_dim=head_dim, stages=stages)
            made.append((f"sm80 stages {stages}", spec))
        common = {"kernel": "sm80", "dtype": case.dtype, "head_dim": head_dim}
        made.append(("sm80 stages 1, shared K/V", _first(tiles, arch=arch, share_kv=True, **common)))
    if arch == "sm_90" and head_dim <= MAX_ONE_PIECE:
        common = {"arch": "sm_90a", "kernel": "sm90", "dtype": case.dtype, "head_dim": head_dim}
        for rows, warps in ((64, 8), (128, 12)):
            made.append((f"sm90 {rows} rows", _first([(rows, warps)], stages=2, **common)))
    return [(name, spec) for name, spec in made if spec is not None]


def _first(tiles: Sequence[tuple[int, int]], **fields: object) -> AttnSpec | None:
    """The spec with the first (rows, warps), then key width, that is legal and fits; None without one."""
    for br, warps in tiles:
        for bc in (64, 32):
            try:
                return AttnSpec(br=br, bc=bc, warps=warps, **fields)  # type: ignore[arg-type]
            except ValueError:
                continue
    return None
