"""The CPU engine against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from omnicupy.api import attention, attention_backward
from omnicupy.cpu.blas import BLAS
from omnicupy.jit.build import Track, silent
from omnicupy.reference import budget
from omnicupy.tools.verify import append_cases, inputs, serving_cases, serving_judge
from omnicupy.tools.verify.backward_cases import CPU_SIZED_BACKWARD, BackwardCase
from omnicupy.tools.verify.backward_judges import GradientJudge
from omnicupy.tools.verify.cases import CPU_SIZED, Case
from omnicupy.tools.verify.outcome import Outcome

ENGINE, GRADIENTS = "CPU engine", "CPU engine, gradients"
# Others take tables and lengths that are errors where the host knows them.
ON_CACHES = (*serving_cases.ON_THE_HOST, *append_cases.ON_THE_HOST)


def cases() -> tuple[Case, ...]:
    """The CPU-sized cases of both passes, some of them in float32 and float64, and those of caches."""
    of_both: tuple[Case, ...] = (*CPU_SIZED, *CPU_SIZED_BACKWARD)
    return (*of_both, *_wide(of_both), *ON_CACHES)


def _wide(narrow: Iterable[Case]) -> Iterator[Case]:
    for i, case in enumerate(narrow):
        if case.group in ("masks", "dead keys", "large scores", "dout", "wanted") and case.head_dim <= 128:
            yield replace(case, dtype=("float32", "float64")[i % 2])


def run(chosen: Sequence[Case], track: Track = silent) -> list[Outcome]:
    """Every case through the CPU engine."""
    return [run_case(case) for case in track(chosen, "CPU engine", len(chosen))]


def run_case(case: Case) -> Outcome:
    """One case: within the budget, and the same bits the second time."""
    # Poison and large scores overflow on purpose, in keys that no row may see and in exponents.
    with np.errstate(all="ignore"):
        if isinstance(case, BackwardCase):
            return _gradients(case)
        for cached in (serving_judge, append_cases):
            if case.tag in cached.KINDS:
                with BLAS.single():  # products of few rows: threads wait for each other longer than they work
                    return Outcome(case, ENGINE, (), *cached.on_the_host(case))
        return _attention(case)


def _gradients(case: BackwardCase) -> Outcome:
    of_case = GradientJudge(case, case.masks(), np, call=attention_backward, forward=attention)
    first = of_case.gradients()
    ratio, problem = of_case.judge(first)
    return Outcome(case, GRADIENTS, (), ratio, problem or of_case.repeated(first, 2))


def _attention(case: Case) -> Outcome:
    masks = case.masks()
    made = inputs.inputs_of(case, masks, np)
    mask = masks[0] if len(masks) == 1 else masks
    expected = budget.budget(made.q, made.k, made.v, mask, **made.changes)
    options = {**made.changes, "split": case.split or None}
    out, lse = attention(made.q, made.k, made.v, mask, return_lse=True, out=made.out, **options)
    again = attention(made.q, made.k, made.v, mask, **options)
    found = budget.compare(out, lse, expected)
    problem = "" if found.ok else str(found)
    if not problem and not same_bits(out, again, np):
        problem = "the second call gave other bits"
    return Outcome(case, ENGINE, (), found.ratio, problem)


def same_bits(a: object, b: object, xp: object) -> bool:
    """True when two arrays of one dtype and shape hold the same bits; NaN equals itself."""
    left, right = (xp.ascontiguousarray(x) for x in (a, b))  # type: ignore[attr-defined]
    bits = np.dtype(f"u{left.dtype.itemsize}")
    return bool((left.view(bits) == right.view(bits)).all())
