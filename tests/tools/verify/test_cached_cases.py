"""Cases of calls on caches pass on a fake GPU, and find what is wrong there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy_gpu
import pytest

import omnicupy as oc
from omnicupy.tools.verify import cached_cases, on_gpu
from omnicupy.tools.verify.cases import Case

TARGET = on_gpu.Target("sm_90", 132, ("naive",), 2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, on_gpu, cached_cases)
    return fake


def _small(case: Case) -> Case:
    return replace(case, k_len=min(case.k_len, 300), q_len=min(case.q_len, 20), head_dim=16)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("case", cached_cases.CASES[::2], ids=lambda case: case.id)
def test_they_pass_on_small_stand_ins(case: Case, gpu: Any) -> None:
    (outcome,) = on_gpu.run_case(_small(case), TARGET)
    assert outcome.passed, str(outcome)


def test_ids_are_unique_and_every_rule_has_cases() -> None:
    ids = [case.id for case in cached_cases.CASES]
    assert len(set(ids)) == len(ids)
    assert {case.tag for case in cached_cases.CASES} == set(cached_cases.CACHED)


def test_lengths_hold_an_edge() -> None:
    for case in cached_cases.CASES:
        for seed in range(3):
            lengths = cached_cases.lengths_of(case, np.random.default_rng(seed))
            assert lengths.dtype == np.int32
            assert len(lengths) == case.batch
            assert 0 <= lengths.min() <= lengths.max() <= case.k_len


def test_a_lost_window_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        rule = mask if isinstance(mask, oc.CachedRule) else mask.rule
        return numpy_gpu.attention(q, kv, v, oc.cached(tail=rule.tail and list(rule.tail)), **options)

    monkeypatch.setattr(cached_cases, "attention", lost)
    case = next(case for case in cached_cases.CASES if case.tag == "cached-window")
    (outcome,) = on_gpu.run_case(_small(case), TARGET)
    assert not outcome.passed


def test_a_step_with_other_bits_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        out, lse = numpy_gpu.attention(q, kv, v, mask, **options)
        if isinstance(mask, oc.CachedStep):
            out = out.copy()
            out[..., 0] = 0
        return out, lse

    monkeypatch.setattr(cached_cases, "attention", other)
    (outcome,) = on_gpu.run_case(_small(cached_cases.CASES[0]), TARGET)
    assert "elements differ behind a step" in outcome.problem
