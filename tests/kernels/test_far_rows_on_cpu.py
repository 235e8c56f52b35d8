"""Gradients where scores are ten thousand and rows are one key's: the kernels' own sources run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from kernel_calls import KV_HEADS, Q_HEADS, Problem, assert_right, prepared, run, spec_of
from kernel_masks import MASKS

import omnicupy as oc
from omnicupy.jit.backward_kernel import BackwardKernel, TileShape
from omnicupy.jit.backward_spec import BackwardSpec

pytestmark = [
    pytest.mark.in_turn(8, by=("name",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

# Of head dimensions whose root is a power of 2, so that lse is exact.
SPECS: dict[str, tuple[BackwardSpec, tuple[str, ...]]] = {
    "naive": (spec_of("naive", "sm_80", "float16", 64), ("dkdv", "dq")),
    "sm80": (spec_of("sm80", "sm_80", "float16", 64), ("dkdv", "dq")),
    "sm80-fused": (
        replace(
            spec_of("sm80", "sm_80", "float16", 16),
            dkdv=TileShape(64, 64, 2, 4),
            fused=TileShape(64, 64, 2, 4),
        ),
        ("fused",),
    ),
    "sm90": (spec_of("sm90", "sm_90", "float16", 64), ("dkdv", "dq")),
    "sm90-roles": (spec_of("sm90", "sm_90", "float16", 256), ("dkdv", "dq")),
    "sm90-fused": (spec_of("sm90", "sm_90", "float16", 64), ("fused",)),
}


@pytest.fixture(scope="module")
def libraries() -> Callable[[BackwardKernel], Any]:
    built: dict[BackwardKernel, Any] = {}

    def library(kernel: BackwardKernel) -> Any:
        if kernel not in built:
            built[kernel] = cuda_on_cpu.build(kernel)
        return built[kernel]

    return library


def _problem(head_dim: int, masks: str, sinks: tuple[float, ...] | None = None) -> Problem:
    """Scores that float32 holds exactly, up to some 16,000."""
    problem, rng = Problem("float16", head_dim, MASKS[masks](), sinks=sinks), np.random.default_rng(5)
    arrays = problem.arrays
    arrays["q"][...] = np.round(200 * rng.standard_normal(arrays["q"].shape)) * 16
    arrays["k"][...] = np.round(8 * rng.standard_normal(arrays["k"].shape)) / 8
    wide = [arrays[name].astype(np.float64) for name in "qkv"]
    out, lse = oc.attention(*wide, problem.mask, return_lse=True, **problem.changes(np.float64))
    arrays["out"][...], arrays["lse"] = out, lse.astype(np.float32)
    return problem


def _found(
    problem: Problem,
    which: tuple[BackwardSpec, tuple[str, ...]],
    libraries: Callable[[BackwardKernel], Any],
) -> dict[str, Any]:
    spec, parts = which
    assert problem.gradients  # before NaN is there
    problem.poison()
    made = prepared(problem, spec, libraries)
    found: dict[str, Any] = {}
    for part in parts:
        found |= run(problem, spec.part(part), made, libraries(spec.part(part)))
    if "fused" in parts:
        sums = {"dq_sums": found.pop("dq_sums")}
        found |= run(problem, spec.part("convert"), made | sums, libraries(spec.part("convert")))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_a_weight_of_one_is_not_rounded(name: str, libraries: Callable[[BackwardKernel], Any]) -> None:
    """dv of keys whose rows are all theirs alone has the error of one rounding; the others are right, too."""
    problem = _problem(SPECS[name][0].head_dim, "causal")
    q, k = (problem.arrays[one].astype(np.float64) for one in "qk")
    scores = q @ np.repeat(k, Q_HEADS // KV_HEADS, axis=1).swapaxes(2, 3) * q.shape[3] ** -0.5
    scores = np.where(problem.masks[0].to_dense(), scores, -np.inf)
    weights = np.exp(scores - problem.arrays["lse"].astype(np.float64)[..., None])
    near = (weights > 1e-9) & (weights < 1 - 1e-9)
    of_keys = near.any(axis=2).reshape(len(q), KV_HEADS, -1, near.shape[3]).any(axis=2)
    found = _found(problem, SPECS[name], libraries)
    for gradient in ("dq", "dk", "dv"):
        assert_right(problem, gradient, found[gradient])
    exact = problem.gradients["dv"][~of_keys]
    off = np.abs(found["dv"].astype(np.float64)[~of_keys] - exact)
    assert len(exact) > 100
    twice = off > 2.0**-11 * (1 + 1e-3) * np.abs(exact) + 2.0**-24
    assert not twice.any(), f"{int(twice.sum())} of {twice.size} elements"


@pytest.mark.parametrize("name", ["sm80", "sm90"])
def test_sinks_among_far_rows(name: str, libraries: Callable[[BackwardKernel], Any]) -> None:
    sinks = (-np.inf, 0.0, 5000.0, 9000.0)
    problem = _problem(SPECS[name][0].head_dim, "one-a-batch-element", sinks)
    for gradient, found in _found(problem, SPECS[name], libraries).items():
        if gradient in problem.gradients:
            assert_right(problem, gradient, found)
