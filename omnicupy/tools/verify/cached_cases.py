"""Calls on caches on a GPU: each rule with lengths at the edges of tiles, unused slots full of NaN and infinity.

Judges as in special_cases.py. Each takes two sets of lengths in one array, so that nothing of the first may be left
when the second is worked on, and a step of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.api import attention, plan
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec, KernelSpec
from omnicupy.masks.constructors import causal, from_dense, full, prefix
from omnicupy.masks.mask import Mask
from omnicupy.reference import budget as reference_budget
from omnicupy.serving.caches import CachedKV
from omnicupy.serving.rule import CachedRule, cached
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.cases import BASE, BSHD, POISON, Case

BATCH, CAPACITY = 7, 1300
LONG = 40_000  # keys of sequences whose rows are split
# Of q_len and the case's random numbers.
RULES: dict[str, Callable[[int, np.random.Generator], CachedRule]] = {
    "causal": lambda n, rng: cached(),
    "window": lambda n, rng: cached(window=int(rng.integers(1, 400))),
    "sinks": lambda n, rng: cached(window=int(rng.integers(1, 400)), sink=int(rng.integers(1, 150))),
    "tail": lambda n, rng: cached(tail=prefix(n, n // 2)),
    "draft": lambda n, rng: cached(window=300, sink=4, tail=from_dense(rng.random((n, n)) < 0.4)),
    "tails": lambda n, rng: cached(tail=[(full, causal)[int(rng.integers(2))](n) for _ in range(BATCH)]),
}


def _cases() -> Iterator[Case]:
    base = replace(BASE, group="caches", mask="full", batch=BATCH, k_len=CAPACITY, q_heads=8, kv_heads=2)
    base = replace(base, options=(POISON, BSHD))
    for i, rule in enumerate(RULES):
        for j, (q_len, head_dim) in enumerate(
            ((1, 128), (1, 64), (9, 128), (64, 96), (150, 128), (3, 256), (5, 40))
        ):
            dtype = ("bfloat16", "float16")[(i + j) % 2]
            yield replace(base, tag=f"cached-{rule}", q_len=q_len, head_dim=head_dim, dtype=dtype)
        yield replace(base, tag=f"cached-{rule}", q_len=1, head_dim=320, q_heads=2)
        yield replace(base, tag=f"cached-{rule}", q_len=2, head_dim=128, q_heads=6, kv_heads=2)
    for q_len in (1, 9):
        yield replace(base, tag="cached-causal", q_len=q_len, head_dim=128, k_len=LONG)
    for i, (softcap, sinks, split) in enumerate(
        ((None, True, 0), (20.0, True, 0), (50.0, False, 384), (20.0, True, 384))
    ):
        changed = replace(base, softcap=softcap, factor=8, sinks=sinks, split=split)
        for j, (q_len, head_dim) in enumerate(((1, 128), (1, 64), (9, 128), (3, 256), (70, 96))):
            tag = ("cached-causal", "cached-sinks", "cached-draft")[(i + j) % 3]
            yield replace(
                changed, tag=tag, q_len=q_len, head_dim=head_dim, dtype=("float16", "bfloat16")[j % 2]
            )
        yield replace(changed, tag="cached-causal", q_len=1, head_dim=128, k_len=LONG)


CASES = tuple(_cases())


def lengths_of(case: Case, rng: np.random.Generator) -> NDArray[np.int32]:
    """Lengths of the sequences: an empty one, one with fewer keys than rows, edges of tiles, and a full one."""
    edges = [0, max(1, case.q_len - 1), case.q_len, case.k_len, 64, 65, 128, 129]
    found = np.array([*rng.permutation(edges)[:4], *rng.integers(0, case.k_len + 1, BATCH - 4)], np.int32)
    return rng.permutation(found)


def kernels_on_caches(variant: Variant, arch: str) -> tuple[KernelSpec, ...]:
    """What a variant's call on caches runs: the planner, and its kernel as it is compiled for them."""
    spec = variant.spec
    assert isinstance(spec, AttnSpec)
    if isinstance(spec, FewRowsSpec):
        return PlanSpec(arch=arch), spec.for_caches(e4m3=False, in_pages=False, ragged=False)
    return PlanSpec(arch=arch), CachedSpec.of(spec)


def _judge(rule_name: str, case: Case, masks: Sequence[Mask]) -> Callable[[Variant], tuple[float, str]]:
    import cupy

    rng = case.generator("lengths")
    rule = RULES[rule_name](case.q_len, rng)
    lengths = cupy.zeros(BATCH, np.int32)
    sets = []
    for seed in (1, 2):
        keys = lengths_of(case, rng)
        of_keys = [rule.mask(int(n), case.q_len, case.k_len, sequence=b) for b, n in enumerate(keys)]
        made = inputs.inputs_of(replace(case, seed=seed), of_keys, cupy)
        expected = reference_budget.budget(made.q, made.k, made.v, of_keys, **made.changes)
        sets.append((cupy.asarray(keys), made, expected))

    def judge(variant: Variant) -> tuple[float, str]:
        worst = 0.0
        for keys, made, expected in sets:
            lengths[...] = keys
            kv = CachedKV(made.k, made.v, lengths)
            out = inputs.nan_output(case, cupy)
            options: dict[str, Any] = {"config": variant.config, "split": case.split or None, **made.changes}
            out, lse = attention(made.q, kv, mask=rule, return_lse=True, out=out, **options)
            found = reference_budget.compare(out, lse, expected)
            worst = max(worst, found.ratio)
            if not found.ok:
                return worst, str(found)
            if problem := _with_a_step(made.q, kv, rule, options, (out, lse)):
                return worst, problem
        return worst, ""

    return judge


def _with_a_step(
    q: Any, kv: CachedKV, rule: CachedRule, options: dict[str, Any], wanted: tuple[Any, Any]
) -> str:
    """What is wrong with the same call behind a plan of its own: it must give the same bits, twice."""
    step = plan(q, kv, rule, **{name: options[name] for name in ("softcap", "config", "split")})
    for _ in range(2):
        scores = {name: options[name] for name in ("softcap", "sink_logits")}
        found = attention(q, kv, mask=step, return_lse=True, **scores)
        for mine, other in zip(found, wanted, strict=True):
            bits = np.dtype(f"u{mine.dtype.itemsize}")
            if count := int((mine.view(bits) != other.view(bits)).sum()):
                return f"{count} elements differ behind a step"
    return ""


CACHED: dict[str, Callable[[Case, Sequence[Mask]], Callable[[Variant], tuple[float, str]]]] = {
    f"cached-{name}": partial(_judge, name) for name in RULES
}
