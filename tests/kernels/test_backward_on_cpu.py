"""The backward kernels' own sources, run on the CPU over the lists that a GPU gets, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from backward_on_cpu import ERROR, MASKS, Q_LEN, SPECS, Problem, prepare, run, spec_of

from omnicupy.jit.backward_spec import BackwardKernel, BackwardSpec

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[BackwardKernel], Any]:
    built: dict[BackwardKernel, Any] = {}

    def library(kernel: BackwardKernel) -> Any:
        if kernel not in built:
            folder: Path = tmp_path_factory.mktemp(kernel.part)
            built[kernel] = cuda_on_cpu.build(kernel, folder)
        return built[kernel]

    return library


# Caps far above scores, which take the polynomial alone, and in their midst; a head without a sink, and sinks small and
# large.
CHANGES: dict[str, dict[str, Any]] = {
    "cap": {"softcap": 30.0},
    "low-cap": {"softcap": 0.8},
    "sinks": {"sinks": (-np.inf, 0.0, 2.0, 4.0)},
    "both": {"softcap": 1.5, "sinks": (-np.inf, 0.0, 2.0, 4.0)},
}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize(
    "which", [SPECS[0], SPECS[1], SPECS[2], SPECS[6]], ids=lambda which: "-".join(map(str, which))
)
def test_gradients_of_changed_scores(
    which: tuple[str, str, str, int], changes: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec = replace(spec_of(*which), softcap="softcap" in CHANGES[changes])
    _compare(
        spec, Problem(spec.dtype, which[3], MASKS["one-a-batch-element"](), **CHANGES[changes]), libraries
    )


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("which", SPECS, ids=lambda which: "-".join(map(str, which)))
def test_gradients(
    which: tuple[str, str, str, int], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec = spec_of(*which)
    _compare(spec, Problem(spec.dtype, which[3], MASKS[masks]()), libraries)


def _compare(spec: BackwardSpec, problem: Problem, libraries: Callable[[BackwardKernel], Any]) -> None:
    wanted = problem.gradients
    problem.poison()
    made = prepare(problem, spec, libraries)
    assert np.isposinf(made["lse2"][..., Q_LEN:]).all()
    assert not made["delta"][..., Q_LEN:].any()
    if problem.sinks is not None:
        np.testing.assert_allclose(made["dsink_logits"], wanted["dsink_logits"], rtol=1e-5, atol=1e-5)
        assert made["dsink_logits"][0] == 0
    for part in ("dkdv", "dq"):
        kernel = spec.part(part)
        for name, found in run(problem, kernel, made, libraries(kernel)).items():
            exact = wanted[name]
            off = found.astype(np.float64) - exact
            of_all, of_row = ERROR[spec.dtype]
            assert np.linalg.norm(off) <= of_all * np.linalg.norm(exact), name
            size = np.linalg.norm(exact, axis=-1)
            least = 0.3 * np.sqrt(
                np.mean(size**2)
            )  # a row of small gradients has the rounding of its neighbours
            assert (np.linalg.norm(off, axis=-1) <= of_row * np.maximum(size, least)).all(), name
            nothing = ~exact.any(axis=-1)
            assert not found.view(np.uint16)[nothing].any(), (
                f"{name}: a row without pairs is zero, to the bit"
            )


def test_what_is_prepared(libraries: Callable[[BackwardKernel], Any]) -> None:
    """delta, lse2 and the copies themselves, of rows and keys that some pair reads, and of the others."""
    problem = Problem("bfloat16", 56, MASKS["one-a-batch-element"]())
    arrays = {name: array.astype(np.float64) for name, array in problem.arrays.items()}
    problem.poison()
    made = prepare(problem, spec_of("naive", "sm_80", "bfloat16", 56), libraries)
    for element, mask in enumerate(problem.masks):
        visible = mask.to_dense()
        rows, keys = visible.any(axis=1), visible.any(axis=0)
        here = {name: array[element] for name, array in arrays.items()}
        delta = (here["dout"] * here["out"]).sum(axis=-1) - here["dlse"]
        for name, exact, nothing in (("delta", delta, 0.0), ("lse2", here["lse"] * np.log2(np.e), np.inf)):
            found = made[name][element][:, :Q_LEN]
            np.testing.assert_allclose(found[:, rows], exact[:, rows], rtol=1e-5, atol=1e-5)
            assert (found[:, ~rows] == nothing).all(), name
        for name, seen in (("q", rows), ("dout", rows), ("k", keys), ("v", keys)):
            np.testing.assert_array_equal(
                made[f"{name}_copy"][element].astype(np.float64), np.where(seen[:, None], here[name], 0), name
            )
