"""The study of instruction shapes: every variant is compiled, held against float64, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from omnicupy.api import attention, attention_backward
from omnicupy.jit.build import Compiled, compile_all
from omnicupy.jit.spec import KernelSpec
from omnicupy.masks.constructors import causal, from_dense
from omnicupy.masks.mask import Mask
from omnicupy.reference.checked_gradients import CheckedGradients
from omnicupy.reference.checked_rows import TOLERANCE, CheckedRows
from omnicupy.tools.bench import measure as measuring
from omnicupy.tools.bench.atom_variants import HEAD_DIMS, Variant, every
from omnicupy.tools.bench.gradients import PASSES, Gradients
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.workload import Workload, by_name

SUITE = "atoms"
LENGTHS = (4096, 16384)
KINDS = ("full", "causal")
ROUNDS = 9  # samples of each variant, in turns
HANG_S = 60.0
CHECKED = 500  # tokens of the small problems
Say = Callable[[str], None]
Built = dict[KernelSpec, Compiled[Any]]
Errors = dict[str, float | str]  # of a variant, by its name; or why it has none
MASKS: dict[str, Callable[[], Mask]] = {  # of the small problems
    "causal": lambda: causal(CHECKED, CHECKED),
    "bits": lambda: from_dense(np.random.default_rng(5).random((CHECKED, CHECKED)) < 0.4),
}


@dataclass(frozen=True)
class Known:
    """What is known of variants before they are timed."""

    errors: Errors
    built: Built


def atoms(record: Record, say: Say) -> None:
    """Compile, check and time every variant of both passes; a row for each and each workload.

    Raises ValueError on a device of another compute capability than 9.0.
    """
    session = measuring.Session.start(record, say=say)
    if session.arch != "sm_90":
        raise ValueError(
            f"{SUITE}: compares kernels for compute capability 9.0, this device is {session.arch}"
        )
    of = {
        (head_dim, name): every(session.arch, session.dtype, head_dim, backward=PASSES[name].has_gradients)
        for head_dim in HEAD_DIMS
        for name in ("fwd", "bwd")
    }
    built = compiled([variant for group in of.values() for variant in group], say)
    with Watchdog(HANG_S) as watchdog:

        def step(line: str) -> None:
            watchdog.step(line)
            say(line)

        for (head_dim, name), group in of.items():
            backward = PASSES[name].has_gradients
            known = Known(checked(group, head_dim, session.dtype, step), built)
            for length, kind in product(LENGTHS, KINDS):
                case = Case(by_name(f"{kind}-d{head_dim}-s{length}"), session.dtype, backward=backward)
                step(f"{case.workload.name}, {name}")
                _timed(session, case, group, known)


def compiled(group: Sequence[Variant], say: Say) -> Built:
    """Every kernel of the variants, compiled on all cores."""
    specs = dict.fromkeys(
        spec for variant in group for spec in (*variant.kernels().values(), *variant.helpers())
    )
    say(f"compiling {len(specs)} kernels")
    return {one.spec: one for one in compile_all(list(specs))}


class Case:
    """A workload's inputs on the device, and the calls of variants on them. backward: of the backward pass."""

    def __init__(self, workload: Workload, dtype: str, *, backward: bool) -> None:
        self.workload, self.mask = workload, workload.mask()
        self.arrays = measuring.make_inputs(workload, self.mask, dtype)
        self.gradients = Gradients(workload, self.mask, self.arrays, dtype) if backward else None

    def judge(self) -> CheckedRows | CheckedGradients:
        """What results are held against."""
        return self.gradients.judge() if self.gradients else CheckedRows(self.arrays, self.mask)

    def call(self, variant: Variant, **targets: Any) -> Callable[[], Any]:
        """The call of a variant. targets: out or out_grads."""
        spec: Any = variant.spec
        given = self.gradients
        if given is None:
            q, k, v = self.arrays
            return lambda: attention(q, k, v, self.mask, config=spec, **targets)
        inputs = (given.dout, *given.arrays, given.out, given.lse, self.mask)
        targets |= {"config": spec, "deterministic": variant.deterministic}
        return partial(attention_backward, *inputs, **targets)

    def targets(self) -> dict[str, Any]:
        """Results to write, full of NaN."""
        import cupy

        made = tuple(cupy.full(one.shape, np.nan, one.dtype) for one in self.arrays)
        return {"out_grads": made} if self.gradients else {"out": made[0]}


def checked(group: Sequence[Variant], head_dim: int, dtype: str, step: Say) -> Errors:
    """The largest error of each variant on small problems, over that of the same-precision reference."""
    found: Errors = {}
    for label, mask in MASKS.items():
        case = Case(Workload(label, 2, (4, 2, head_dim), mask, ""), dtype, backward=bool(group[0].parts))
        judge = case.judge()
        for variant in {one.name: one for one in group}.values():
            before = found.get(variant.name, 0.0)
            if isinstance(before, str):
                continue
            try:
                error = judge.error(case.call(variant, **case.targets())())
                found[variant.name] = max(before, error)
                step(f"d{head_dim} {label}: {variant.name}: error {error:.2f}")
            except Exception as error:  # of a compiler or the device: a result here
                found[variant.name] = measuring.reason(error)
                step(f"d{head_dim} {label}: {variant.name}: {found[variant.name]}")
    return found


def _timed(session: measuring.Session, case: Case, group: Sequence[Variant], known: Known) -> None:
    """A row for each variant."""
    import cupy

    right = {one.name: one for one in group if _is_right(known.errors[one.name])}
    times = session.clock.interleaved({name: case.call(one) for name, one in right.items()}, ROUNDS)
    timed = PASSES["bwd" if case.gradients else "fwd"]
    flops = timed.flops * case.workload.flops(case.mask.pairs)
    workload, (q_len, k_len) = case.workload, case.mask.shape
    shape = [workload.batch, workload.q_heads, workload.kv_heads, q_len, k_len, workload.head_dim]
    for variant in group:
        row = {
            "workload": workload.name,
            "system": f"{OURS}:{variant.name}",
            "pass": timed.name,
            "shape": shape,
        }
        row |= _described(variant, known.built)
        error = known.errors[variant.name]
        if variant.name in right:
            took = times[variant.name]
            figures = {"ms": took.median_ms, "p10_ms": took.p10_ms, "p90_ms": took.p90_ms, "error": error}
            figures |= {"samples": took.samples, "tflops": flops / took.median_ms / 1e9, "correct": True}
            session.record.add(**row, **measuring.rounded(figures))
        else:
            session.record.add(
                **row, problem=error if isinstance(error, str) else f"wrong: error {error:.3g}"
            )
    cupy.get_default_memory_pool().free_all_blocks()


def _described(variant: Variant, built: Built) -> dict[str, Any]:
    """What a row says of a variant beside its times."""
    kernels = {part: built[spec] for part, spec in variant.kernels().items()}
    return {
        "study": variant.study,
        "base": f"{OURS}:{variant.base}",
        "tile": variant.tile,
        "atom": list(variant.shape),
        "registers": {part: one.registers for part, one in kernels.items()},
        "flaws": {part: one.problem.splitlines()[0] for part, one in kernels.items() if one.problem},
    }


def _is_right(error: float | str) -> bool:
    return not isinstance(error, str) and error <= TOLERANCE
