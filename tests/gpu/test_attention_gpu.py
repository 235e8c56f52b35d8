"""A sample of the verification cases on the GPU at hand; `verify` runs all of them."""

from __future__ import annotations

from itertools import groupby

import pytest

from omnicupy.tools.verify import cached_cases, on_gpu, special_cases
from omnicupy.tools.verify.cases import FIXED, Case
from omnicupy.tools.verify.on_gpu import Target

EACH = 4  # cases of a group


def _sample() -> list[Case]:
    groups = groupby(FIXED, key=lambda case: case.group)
    return [case for _, members in groups for case in list(members)[:: max(1, 40 // EACH)][:EACH]]


@pytest.mark.gpu
@pytest.mark.parametrize("case", _sample(), ids=lambda case: case.id)
def test_kernels_are_within_the_budget(case: Case) -> None:
    outcomes = list(on_gpu.run_case(case, Target.current(repeats=3)))
    assert outcomes
    assert not [str(outcome) for outcome in outcomes if not outcome.passed]


@pytest.mark.gpu
@pytest.mark.parametrize("case", special_cases.CASES[2:], ids=lambda case: case.id)
def test_streams_and_memory(case: Case) -> None:
    outcomes = list(on_gpu.run_case(case, Target.current(repeats=3)))
    assert not [str(outcome) for outcome in outcomes if not outcome.passed]


@pytest.mark.gpu
@pytest.mark.parametrize("case", cached_cases.CASES[::5], ids=lambda case: case.id)
def test_caches(case: Case) -> None:
    outcomes = list(on_gpu.run_case(case, Target.current(repeats=3)))
    assert outcomes
    assert not [str(outcome) for outcome in outcomes if not outcome.passed]
