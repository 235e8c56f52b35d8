"""Which compiled kernels a verification case runs through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from omnicupy.call.check_backward import SINK
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, paged, pick, table
from omnicupy.choose.capped import capped, capped_backward
from omnicupy.jit import archs
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.backward_kernel import FUSED_PARTS, ORDERED_PARTS, SINK_PARTS, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.finishing import FINISHING_PARTS, TICKET_PARTS
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import DTYPES, MAX_ONE_PIECE, PACKED_PAIR, AttnSpec, KernelSpec, round_up
from omnicupy.jit.tile_checks import takes_key_turns
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.mask import Mask
from omnicupy.tools.verify.backward_cases import BackwardCase
from omnicupy.tools.verify.cases import BROADCAST, REVERSED, Case
from omnicupy.tools.verify.width_cases import ONE_TILE

Spec = TypeVar("Spec", AttnSpec, BackwardSpec)
DEFAULT = "chosen by the table"
BACKWARD_DEFAULT = "bwd chosen by the table"
H100_SM_COUNT = 132


@dataclass(frozen=True)
class Variant:
    """A kernel, or the kernels of a backward pass, as the report names it.

    spec: what runs; the default variant's is what the table has for it.  explicit: pass the spec as `config`, else
    leave the choice to the call.  parts: of a backward pass, those that the case runs.  deterministic: asked for of
    one.  compiled: its kernels, where they are others than `spec`: those of calls on caches.
    """

    name: str
    spec: AttnSpec | BackwardSpec | AppendSpec
    explicit: bool = True
    parts: tuple[str, ...] = ()
    deterministic: bool = True
    compiled: tuple[KernelSpec, ...] = ()

    @property
    def kernels(self) -> tuple[KernelSpec, ...]:
        """Its compiled kernels."""
        spec = self.spec
        of_spec = tuple(map(spec.part, self.parts)) if isinstance(spec, BackwardSpec) else (spec,)
        return self.compiled or of_spec

    @property
    def sources(self) -> tuple[str, ...]:
        """Its files in `kernels/`."""
        return tuple(dict.fromkeys(kernel.source for kernel in self.kernels))

    @property
    def config(self) -> Any:
        """The `config` of the call."""
        return self.spec if self.explicit else None

    @property
    def options(self) -> dict[str, Any]:
        """What a call of attention_backward is given for it."""
        return {"config": self.config, "deterministic": self.deterministic}


def problem_of(case: Case) -> Problem:
    """The sizes of a case, as the library sees them."""
    sizes = (case.batch, case.q_heads, case.kv_heads, case.q_len, case.k_len, case.head_dim)
    return Problem(*sizes, case.dtype, case.softcap is not None, case.value_columns)


def serves(kernel: str, case: Case) -> bool:
    """True when the kernel is made for the case: wgmma tiles need a whole head_dim and strides above zero, of which a
    backward pass makes copies.
    """
    if kernel != "sm90":
        return True
    copies = isinstance(case, BackwardCase)
    strides = copies or not {BROADCAST, REVERSED} & set(case.options)
    return round_up(case.head_dim, 16) <= MAX_ONE_PIECE and strides


def of_rows(case: Case, arch: str, *, cached: bool = False) -> Iterator[AttnSpec]:
    """The tiles of the table that serve the case, whichever of them it is verified with. cached: as in `variants`."""
    problem = problem_of(case)
    widths = kernel_widths(problem.head_dim, problem.value_dim)
    for row in table.TABLE:
        if row.serves(arch, case.dtype, *widths) and serves(row.kernel, case):
            spec = row.spec(arch, case.dtype, *widths)
            spec = capped(spec) if problem.softcap else spec
            if (
                problem.group % spec.heads == 0
                and (spec.serves_caches or not cached)
                and takes(spec, problem)
            ):
                yield spec


def takes(spec: AttnSpec, problem: Problem) -> bool:
    """May a call get the row's kernel? Packed tiles of two warpgroups are for few rows of several heads."""
    return not _is_pair(spec) or (problem.group > 1 and problem.q_len <= pick.FEW_ROWS)


def _is_pair(spec: AttnSpec) -> bool:
    return takes_key_turns(spec) or (spec.pack and spec.br == PACKED_PAIR)


def forward_spec(case: BackwardCase, masks: Sequence[Mask], arch: str) -> AttnSpec:
    """The kernel that makes out and lse of a backward case: what a call on an H100 chooses, on devices of any size, so
    that it can be compiled elsewhere.
    """
    mappable = not {BROADCAST, REVERSED} & set(case.options)
    return pick.pick(arch, problem_of(case), masks, H100_SM_COUNT, mappable=mappable)


def variants(
    case: Case, masks: Sequence[Mask], arch: str, sm_count: int, *, cached: bool = False
) -> list[Variant]:
    """Every kernel for the case: naive, the fixed ladder, every row of the table that serves it, and the
    default.

    Of a case tagged ONE_TILE one of each kind of kernel, and no default, which may be another tile on another device. A
    tile that the architecture's shared memory cannot hold is not a kernel there, so it is left out. cached: the case's
    keys are in a cache.
    """
    if isinstance(case, BackwardCase):
        return backward_variants(case, arch)
    problem = problem_of(case)
    fitted = capped if problem.softcap else _as_it_is
    named = [(fitted(spec), name) for name, spec in ladder(case, arch) if serves(spec.kernel, case)]
    found = {spec: Variant(name, spec) for spec, name in reversed(named)}
    for spec in of_rows(case, arch, cached=cached):
        found.setdefault(spec, Variant(tile_name(spec), spec))
    if case.tag == ONE_TILE:
        return _one_of_each_kind(list(found.values()), case)
    for few in few_rows(case, arch, e4m3=False) if cached else few_rows_of_masks(case, arch):
        found.setdefault(few, Variant(few_rows_name(few), few))
    mappable = serves("sm90", case)
    how: dict[str, Any] = {"mappable": mappable, "split": case.split or None, "cached": cached}
    picked = pick.pick(arch, problem, masks, sm_count, **how)
    if cached:
        picked = paged.for_16_bits(picked, problem, sm_count, case.split or None)
    ordered = sorted(found.values(), key=lambda variant: (variant.name != "naive", variant.name))
    return [*ordered, Variant(DEFAULT, picked, explicit=False)]


def few_rows(case: Case, arch: str, *, e4m3: bool) -> tuple[FewRowsSpec, ...]:
    """The variants of the kernel for few rows that serve the case, whose keys are in a cache, of e4m3 or of 16 bits."""
    problem = problem_of(case)
    widths = kernel_widths(problem.head_dim, problem.value_dim)
    rows = (row for row in table.TABLE if row.kernel == "sm90" and row.serves(arch, case.dtype, *widths))
    row = next(rows, None)
    if row is None:
        return ()
    spec = replace(row.spec(arch, case.dtype, *widths), softcap=problem.softcap)
    return tuple(dict.fromkeys(paged.few_rows(spec, problem, e4m3=e4m3)))


def few_rows_of_masks(case: Case, arch: str) -> tuple[FewRowsSpec, ...]:
    """The same where the host knows the masks."""
    if case.split or case.tag == ONE_TILE or not serves("sm90", case):
        return ()
    return tuple(few.for_masks() for few in few_rows(case, arch, e4m3=False))


def few_rows_name(spec: FewRowsSpec) -> str:
    """What the report calls a variant of the kernel for few rows."""
    return f"few rows {spec.compute_warps}x{spec.blocks}"


def _one_of_each_kind(found: Sequence[Variant], case: Case) -> list[Variant]:
    """One tile of each kind of kernel. Which one follows from the widths, so that other pairs of them have others."""
    kinds: dict[tuple[str, bool], list[Variant]] = {}
    for variant in found:
        assert isinstance(variant.spec, AttnSpec)
        kinds.setdefault((variant.spec.source, variant.spec.pack), []).append(variant)
    turn = (case.head_dim + case.value_columns) // 8
    return [of_kind[turn % len(of_kind)] for of_kind in kinds.values()]


def tile_name(spec: AttnSpec) -> str:
    """What the report calls the kernel of a row of the table."""
    name = f"{spec.kernel} {spec.br}x{spec.bc} stages {spec.stages} warps {spec.warps}"
    others = {"packed": spec.pack, f"blocks {spec.blocks}": spec.blocks > 1, "scheduler": spec.scheduler}
    return " ".join([name, *(word for word, holds in others.items() if holds)])


def _as_it_is(spec: Spec) -> Spec:
    return spec


def backward_variants(case: BackwardCase, arch: str) -> list[Variant]:
    """The kernels for a backward case: naive, every row of the table that serves it, also with sums in any order and in
    one order where it has kernels for that, and the default.
    """
    widths = kernel_widths(case.head_dim, case.value_columns)
    of_keys = bool({"k", "v"} & set(case.wanted))
    sinks = SINK_PARTS if SINK in case.wanted else ()
    parts = ("prepare", *["dkdv"] * of_keys, *["dq"] * ("q" in case.wanted), *sinks)
    has_cap = case.softcap is not None
    fitted = capped_backward if has_cap else _as_it_is
    naive = backward_table.naive(arch, case.dtype, case.head_dim, has_cap, case.value_columns)
    found = [Variant("bwd naive", naive, parts=parts)]
    for row in backward_table.TABLE:
        if not (row.serves(arch, max(widths)) and serves(row.kernel, case)):
            continue
        spec, *others = dict.fromkeys(map(fitted, row.specs(arch, case.dtype, *widths)))
        tiles = (f"{name} {_word(getattr(spec, name))}" for name in ("dkdv", "dq"))
        rest = replace(spec, ordered=None)  # else calls run that one, too
        found.append(Variant(f"bwd {spec.kernel} {' '.join(tiles)}", rest, parts=parts))
        make_all = [("fused", rest), ("ordered", spec)]
        make_all += [("fused", replace(of, ordered=None)) for of in others if of.fused != spec.fused]
        make_all += [("ordered", of) for of in others if of.ordered != spec.ordered]
        for name, of in make_all:
            part: TileShape | None = getattr(of, name)
            if part is not None and of_keys and "q" in case.wanted:
                word = f"bwd {spec.kernel} {name} {_word(part)}"
                all_parts = ("prepare", *_those_of(of, name), *sinks)
                found.append(Variant(word, of, parts=all_parts, deterministic=name == "ordered"))
    picked = backward_table.pick(arch, case.dtype, case.head_dim, has_cap, case.value_columns)
    if picked.ordered is not None and of_keys and "q" in case.wanted:
        # Two kernels serve sums of a few additions.
        parts = ("prepare", "dkdv", "dq", *_those_of(picked, "ordered"), *sinks)
    return [*found, Variant(BACKWARD_DEFAULT, picked, explicit=False, parts=parts)]


def _those_of(spec: BackwardSpec, name: str) -> tuple[str, ...]:
    """Of "fused" or "ordered" those that there are. Which of them a call runs is up to its mask."""
    fused, ordered = (*FUSED_PARTS, *TICKET_PARTS), (*ORDERED_PARTS, *FINISHING_PARTS)
    return tuple(part for part in (fused if name == "fused" else ordered) if part in spec.kernels())


def _word(shape: TileShape) -> str:
    return "x".join(map(str, shape))


def table_kernels(every: bool) -> list[KernelSpec]:
    """The kernels that the tables name, of each row at its greatest head_dim, and those that calls on caches run.
    every: of each head_dim, and those that take their places where scores are capped.
    """
    forward = list(table.every_spec() if every else table.rows())
    backward = list(backward_table.every_spec() if every else backward_table.rows())
    if every:
        forward += [*map(capped, forward)]
        backward += [*map(capped_backward, backward)]
    parts = (kernel for spec in backward for kernel in spec.kernels().values())
    beside: list[KernelSpec] = []
    for arch in archs.ARCHES:
        beside += [PlanSpec(arch=arch), PlanSpec(arch=arch, ragged=True), AppendSpec(arch=arch)]
        beside += [Fp8AppendSpec(arch=arch, dtype=dtype) for dtype in DTYPES]
    on_caches = [CachedSpec.of(spec) for spec in forward if spec.serves_caches]
    return list(dict.fromkeys([*forward, *on_caches, *beside, *parts]))


def ladder(case: Case, arch: str) -> list[tuple[str, AttnSpec]]:
    """The kernels that are verified whether the table selects them or not, by their names in the report."""
    head_dim, value_dim = kernel_widths(case.head_dim, case.value_columns)
    both: dict[str, Any] = {"dtype": case.dtype, "head_dim": head_dim, "value_dim": value_dim}
    naive = AttnSpec(arch=arch, kernel="naive", br=64, bc=64, **both)
    tiles = [(64, 4), (32, 2), (16, 1)]
    made: list[tuple[str, AttnSpec | None]] = [("naive", naive)]
    if head_dim > MAX_ONE_PIECE:
        for stages in (1, 2, 3):
            spec = _first(tiles, arch=arch, kernel="sm80", stages=stages, **both)
            made.append((f"sm80 D-tiled, stages {stages}", spec))
    else:
        for stages in (1, 2, 3):
            spec = _first(tiles, arch=arch, kernel="sm80", stages=stages, **both)
            made.append((f"sm80 stages {stages}", spec))
        shared = _first(tiles, arch=arch, kernel="sm80", share_kv=True, **both)
        made.append(("sm80 stages 1, shared K/V", shared))
    if arch == "sm_90" and head_dim <= MAX_ONE_PIECE:
        common = {"arch": "sm_90a", "kernel": "sm90", **both}
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
