"""What a search for the kernels of a backward pass tries, and its trial on the current GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from omnicupy.api import attention_backward
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, variants
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.build import Compiled, Track, compile_all
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.mask import Mask
from omnicupy.tools.bench import measure, timing
from omnicupy.tools.bench.gradients import Gradients
from omnicupy.tools.tune.search import Entry
from omnicupy.tools.workloads.workload import Workload

BEST_TILES = 3  # of each kernel, which are tried with each other


class GradientTrial:
    """The backward pass of a workload on the current GPU, as search.Trial. deterministic: of its calls.  step: told of
    each variant before it runs.
    """

    def __init__(
        self, workload: Workload, mask: Mask, dtype: str, step: Callable[[str], None], *, deterministic: bool
    ) -> None:
        import cupy

        self._mask, self._step, self._deterministic = mask, step, deterministic
        self._made = Gradients(workload, mask, measure.make_inputs(workload, mask, dtype), dtype)
        self._judge = self._made.judge()
        self._clock = timing.Clock(cupy)

    def error(self, spec: BackwardSpec) -> float:
        """The largest error of checked gradients over that of the same-precision reference."""
        return self._judge.error(self._call(spec))

    def sample(self, spec: BackwardSpec) -> float:
        """Milliseconds of one call for all gradients, from a cold L2 cache."""
        return self._clock.sample(lambda: self._call(spec))

    def _call(self, spec: BackwardSpec) -> Any:
        self._step(variants.word(spec))
        of = self._made
        options: dict[str, Any] = {"config": spec, "deterministic": self._deterministic}
        return attention_backward(of.dout, *of.arrays, of.out, of.lse, self._mask, **options)


def candidates(
    arch: str, problem: Problem, kernels: Sequence[str], *, deterministic: bool
) -> list[BackwardSpec]:
    """The table's rows of `kernels` (() for the one that calls get) with each legal tile of one of their kernels.

    Where one kernel makes all gradients, it is that one's tiles, and the two kernels in its place; if sums have one
    order or there is no such kernel, those of dK and dV and those of dQ, too, which run one after the other.
    Raises UnsupportedError where no kernel serves the problem.
    """
    bases = [backward_table.pick(arch, problem.dtype, problem.head_dim, value_dim=problem.value_dim)]
    if kernels:
        widths = kernel_widths(problem.head_dim, problem.value_dim)
        rows = [
            row for row in backward_table.TABLE if row.serves(arch, max(widths)) and row.kernel in kernels
        ]
        bases = [row.spec(arch, problem.dtype, *widths) for row in rows]
    found: list[BackwardSpec] = []
    for base in bases:
        of_all = list(variants.every_tile(base, "ordered" if deterministic else "fused"))
        found += [base, *of_all]
        if deterministic or not of_all:
            two = replace(base, ordered=None)
            found += [spec for part in ("dkdv", "dq") for spec in variants.every_tile(two, part)]
    return found


def combined(entries: Sequence[Entry]) -> list[BackwardSpec]:
    """The quickest tiles of dK and dV with the quickest of dQ, as far as they were not tried with each other.

    entries: the quickest first.
    """
    tried = [entry.spec for entry in entries if isinstance(entry.spec, BackwardSpec)]
    found: list[BackwardSpec] = []
    for kernel in dict.fromkeys(spec.kernel for spec in tried):
        of = [spec for spec in tried if spec.kernel == kernel]
        of = [spec for spec in of if spec.ordered is None] or of  # one in order takes their place
        keys, rows = ([getattr(spec, part) for spec in of] for part in ("dkdv", "dq"))
        best = [_best(these, others) for these, others in ((keys, rows), (rows, keys))]
        made = (replace(of[0], dkdv=dkdv, dq=dq) for dkdv, dq in product(*best))
        found += [spec for spec in made if spec not in tried]
    return found


def _best(tiles: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The first BEST_TILES different tiles, of the entries that have the other kernel's most frequent tile."""
    usual = max(others, key=list(others).count)
    return list(dict.fromkeys(tile for tile, other in zip(tiles, others, strict=True) if other == usual))[
        :BEST_TILES
    ]


def compile_specs(specs: Sequence[BackwardSpec], track: Track) -> list[Compiled[Any]]:
    """As compile_all, each kernel once: a spec's problem is that of the first of its kernels that has one."""
    kernels = list(dict.fromkeys(kernel for spec in specs for kernel in spec.kernels().values()))
    of = {one.spec: one for one in compile_all(kernels, track)}
    found: list[Compiled[Any]] = []
    for spec in specs:
        parts = {name: of[kernel] for name, kernel in spec.kernels().items()}
        problem = next((f"{name}: {one.problem}" for name, one in parts.items() if one.problem), "")
        found.append(Compiled[Any](spec, max(one.registers for one in parts.values()), problem))
    return found


def proposed_row(arch: str, winner: BackwardSpec) -> str:
    """A winner as a line for backward_table.TABLE, for the greater of its widths and an architecture."""
    shapes = {"dkdv": winner.dkdv, "dq": winner.dq, "fused": winner.fused, "ordered": winner.ordered}
    shown = (f"{name}=TileShape{tuple(shape)}" for name, shape in shapes.items() if shape is not None)
    widest = max(winner.head_dim, winner.value_dim)
    dims = (widest, widest)
    return f"BackwardRow(kernel={winner.kernel!r}, head_dims={dims}, {', '.join(shown)}, archs={(arch,)!r}),"
