"""What is compared in the cases of serving_cases.py: the result with float64, with the same keys as 16-bit numbers one
behind the other, bit for bit, and with itself.

Each case has two sets of lengths, tables and rows, so that nothing of the first may be left when the second is worked
on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from omnicupy.api import attention, plan
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask
from omnicupy.reference import budget as reference_budget
from omnicupy.serving.caches import AnyKV
from omnicupy.serving.rule import CachedRule
from omnicupy.tools.random_arrays import DTYPES, unsigned
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.cached_cases import RULES
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.cases import BSHD, Case
from omnicupy.tools.verify.changed_bits import ChangedBits
from omnicupy.tools.verify.serving_cases import KINDS
from omnicupy.tools.verify.serving_inputs import Sequences, Served, sequences_of, served

CALLS = 2  # that each plan for themselves; two more take what one plan made


@dataclass
class _Set:
    """Arrays of a call, what they are to give, and options of attention that all calls on them have."""

    sequences: Sequences
    arrays: Served
    expected: reference_budget.Budget
    options: dict[str, Any]


def on_a_gpu(case: Case, masks: Sequence[Mask]) -> Callable[[Variant], tuple[float, str]]:
    """A judge, as those of special_cases.py."""
    import cupy

    judge = Judge(case, cupy)
    # A call without config may get a variant whose own kernel for plain caches was not compiled ahead.
    return lambda variant: judge.verdict(variant.config, with_plain=variant.explicit)


def on_the_host(case: Case) -> tuple[float, str]:
    """The same of the CPU engine."""
    return Judge(case, np).verdict(None, with_plain=True)


class Judge:
    """Compares kernels on the caches of a case, whose arrays are of `xp`, NumPy or CuPy."""

    def __init__(self, case: Case, xp: Any) -> None:
        self._case, self._kind, self._xp = case, KINDS[case.tag], xp
        rng = case.generator("lengths")
        self._rule = RULES[self._kind.rule](case.q_len, rng)
        self._lengths = xp.asarray(np.zeros(case.batch, np.int32))
        self._sets = [self._made(rng) for _ in range(2)]

    def _made(self, rng: np.random.Generator) -> _Set:
        case, kind, xp = self._case, self._kind, self._xp
        of = sequences_of(case, kind, self._rule, rng)
        arrays = served(case, kind, of, self._lengths, xp)
        options = inputs.changes_of(case, xp)
        expected = reference_budget.budget(arrays.padded_q, *arrays.numbers, of.masks, **options)
        options["split"] = case.split or None
        if arrays.starts is not None:
            options |= {"rows": xp.asarray(np.array(arrays.starts, np.int32)), "max_rows": case.q_len}
        return _Set(of, arrays, expected, options)

    def verdict(self, config: AttnSpec | None, *, with_plain: bool) -> tuple[float, str]:
        """The worst error over its budget, and what is wrong, "" where nothing is. with_plain: compare bits with plain
        caches.
        """
        worst = 0.0
        for one in self._sets:
            self._lengths[...] = self._xp.asarray(one.sequences.lengths)
            found = self._called(one, one.arrays.kv, self._rule, config)
            compared = reference_budget.compare(*self._padded(one, found), one.expected)
            worst = max(worst, compared.ratio)
            problem = "" if compared.ok else str(compared)
            problem = problem or self._left_alone(one, found[0]) or self._again(one, found, config)
            if with_plain and one.arrays.plain is not None:
                problem = problem or self._as_plain(one, found, config)
            if problem:
                return worst, problem
        return worst, ""

    def _called(
        self, one: _Set, kv: AnyKV, mask: Any, config: AttnSpec | None, **fewer: Any
    ) -> tuple[Any, Any]:
        """out and lse of a call."""
        options = {**one.options, "config": config, **fewer}
        out: tuple[Any, Any] = attention(
            one.arrays.q, kv, mask=mask, return_lse=True, out=self._nan_output(one), **options
        )
        return out

    def _nan_output(self, one: _Set) -> Any:
        case = self._case
        if one.arrays.starts is None:
            return inputs.nan_output(case, self._xp)
        rows, bshd = one.arrays.q.shape[0], BSHD in case.options
        shape = (rows, case.q_heads) if bshd else (case.q_heads, rows)
        storage = self._xp.empty((*shape, case.value_columns), unsigned(case.dtype))
        storage.fill(inputs.NAN_BITS[case.dtype])
        out = storage.view(DTYPES[case.dtype])
        return out if bshd else out.transpose(1, 0, 2)

    def _padded(self, one: _Set, found: tuple[Any, Any]) -> tuple[Any, Any]:
        """out and lse of (batch, q_heads, q_len): rows of their own are the last ones, no key is seen by others."""
        starts, case = one.arrays.starts, self._case
        if starts is None:
            return found
        shape = (case.batch, case.q_heads, case.q_len)
        bits = found[0].view(unsigned(case.dtype))
        out = self._xp.zeros((*shape, case.value_columns), bits.dtype)
        lse = self._xp.full(shape, -np.inf, np.float32)
        for b, (first, stop) in enumerate(pairwise(starts)):
            if first < stop:
                out[b, :, first - stop :] = bits[first:stop].transpose(1, 0, 2)
                lse[b, :, first - stop :] = found[1][:, first:stop]
        return out.view(DTYPES[case.dtype]), lse

    def _owned(self, one: _Set, found: tuple[Any, Any]) -> tuple[Any, Any]:
        """Of out and lse what is any sequence's."""
        starts, (out, lse) = one.arrays.starts, found
        return found if starts is None else (out[starts[0] : starts[-1]], lse[:, starts[0] : starts[-1]])

    def _left_alone(self, one: _Set, out: Any) -> str:
        """What is wrong with rows of no sequence, which must stay as they were."""
        starts = one.arrays.starts
        if starts is None:
            return ""
        bits, nan = out.view(unsigned(self._case.dtype)), inputs.NAN_BITS[self._case.dtype]
        count = int((bits[: starts[0]] != nan).sum()) + int((bits[starts[-1] :] != nan).sum())
        return f"{count} elements of rows of no sequence were written" if count else ""

    def _again(self, one: _Set, first: tuple[Any, Any], config: AttnSpec | None) -> str:
        """What is wrong with the same call made again, and made behind a step."""
        kv, case = one.arrays.kv, self._case
        again = ChangedBits(self._owned(one, first))
        for _ in range(CALLS - 1):
            again.add(self._owned(one, self._called(one, kv, self._rule, config)))
        if problem := again.problem(CALLS):
            return problem
        named = {name: one.options[name] for name in ("split", "rows", "max_rows") if name in one.options}
        rule: CachedRule = self._rule
        step = plan(one.arrays.q, kv, rule, softcap=case.softcap, config=config, **named)
        behind = ChangedBits(self._owned(one, first))
        for _ in range(2):
            behind.add(self._owned(one, self._called(one, kv, step, config)))
        count = behind.count()
        return f"{count} elements differ behind a step" if count else ""

    def _as_plain(self, one: _Set, found: tuple[Any, Any], config: AttnSpec | None) -> str:
        """What is wrong beside the same keys as 16-bit numbers one behind the other."""
        assert one.arrays.plain is not None
        of_plain = ChangedBits(self._owned(one, found))
        of_plain.add(self._owned(one, self._called(one, one.arrays.plain, self._rule, config)))
        count = of_plain.count()
        return f"{count} elements differ from those of plain caches" if count else ""
