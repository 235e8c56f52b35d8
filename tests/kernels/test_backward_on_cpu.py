"""The backward kernels' own sources, run on the CPU over the lists that a GPU gets, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from kernel_calls import Problem, assert_right, prepared, run, spec_of
from kernel_masks import MASKS, Q_LEN

from omnicupy.jit.backward_kernel import BackwardKernel, TileShape
from omnicupy.jit.backward_spec import BackwardSpec

pytestmark = [
    pytest.mark.in_turn(8, by=("which",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

# (kernel, arch, dtype, head_dim of the tensors)
SPECS = [
    ("naive", "sm_80", "bfloat16", 56),
    ("sm80", "sm_80", "bfloat16", 56),
    ("sm80", "sm_80", "float16", 128),
    ("sm80", "sm_89", "float16", 40),
    ("sm80", "sm_89", "bfloat16", 120),
    ("sm80", "sm_80", "bfloat16", 136),
    ("sm80", "sm_80", "float16", 264),
]


@pytest.fixture(scope="module")
def libraries() -> Callable[[BackwardKernel], Any]:
    return cuda_on_cpu.build


# (kernel, arch, dtype, head_dim, value_dim): both cut in two and one of them, dV alone in two, none, a width of one
# thread block alone, and two that round up to one number.
PAIRS = [
    ("naive", "sm_80", "bfloat16", 192, 128),
    ("naive", "sm_80", "float16", 72, 40),
    ("sm80", "sm_80", "bfloat16", 192, 128),
    ("sm80", "sm_89", "float16", 64, 128),
    ("sm80", "sm_80", "float16", 96, 64),
    ("sm80", "sm_89", "bfloat16", 72, 40),
    ("sm80", "sm_80", "bfloat16", 32, 160),
    ("sm80", "sm_89", "bfloat16", 256, 64),
    ("sm80", "sm_80", "float16", 56, 64),
]


# Caps far above scores, which take the polynomial alone, and in their midst; a head without a sink, and sinks small and
# large.
CHANGES: dict[str, dict[str, Any]] = {
    "cap": {"softcap": 30.0},
    "low-cap": {"softcap": 0.8},
    "sinks": {"sinks": (-np.inf, 0.0, 2.0, 4.0)},
    "both": {"softcap": 1.5, "sinks": (-np.inf, 0.0, 2.0, 4.0)},
}


@pytest.mark.parametrize(
    ("which", "changes"),
    [*((SPECS[i], changes) for i in (0, 1, 2) for changes in CHANGES), (SPECS[6], "both")],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
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


@pytest.mark.parametrize("which", [PAIRS[0], PAIRS[2]], ids=lambda which: "-".join(map(str, which)))
def test_gradients_of_changed_scores_and_other_values(
    which: tuple[str, str, str, int, int], libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec, both = replace(spec_of(*which), softcap=True), CHANGES["both"]
    masks = MASKS["one-a-batch-element"]()
    _compare(spec, Problem(spec.dtype, which[3], masks, value_dim=which[4], **both), libraries)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("which", PAIRS, ids=lambda which: "-".join(map(str, which)))
def test_gradients_of_values_of_another_width(
    which: tuple[str, str, str, int, int], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec = spec_of(*which)
    _compare(spec, Problem(spec.dtype, which[3], MASKS[masks](), value_dim=which[4]), libraries)


def _compare(spec: BackwardSpec, problem: Problem, libraries: Callable[[BackwardKernel], Any]) -> None:
    wanted = problem.gradients  # before NaN is there
    problem.poison()
    made = prepared(problem, spec, libraries)
    assert np.isposinf(made["lse2"][..., Q_LEN:]).all()
    assert not made["delta"][..., Q_LEN:].any()
    if problem.sinks is not None:
        np.testing.assert_allclose(made["dsink_logits"], wanted["dsink_logits"], rtol=1e-5, atol=1e-5)
        assert made["dsink_logits"][0] == 0
    for part in ("dkdv", "dq"):
        kernel = spec.part(part)
        for name, found in run(problem, kernel, made, libraries(kernel)).items():
            assert_right(problem, name, found)


# (arch, dtype, head_dim of the tensors, tile): both layouts of the sums, one stage and two, 16 and 32 keys a warp, and
# each way in which warps share dQ: over two or four groups of rows, in two passes, with columns left over.
FUSED = [
    ("sm_80", "bfloat16", 56, TileShape(64, 128, 1, 4)),
    ("sm_90", "float16", 64, TileShape(64, 128, 2, 4)),
    ("sm_89", "bfloat16", 40, TileShape(64, 128, 2, 8)),
    ("sm_90", "bfloat16", 128, TileShape(64, 128, 1, 8)),
    ("sm_89", "float16", 120, TileShape(64, 64, 1, 4)),
    ("sm_100", "bfloat16", 80, TileShape(64, 128, 2, 8)),
    ("sm_80", "float16", 16, TileShape(64, 64, 2, 4)),
]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("which", FUSED, ids=lambda which: "-".join(map(str, (*which[:3], *which[3]))))
def test_all_gradients_by_one_kernel(
    which: tuple[str, str, int, TileShape], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    _compare_fused(which, Problem(*which[1:3], MASKS[masks]()), libraries)


@pytest.mark.parametrize("changes", ["cap", "both"])
@pytest.mark.parametrize(
    "which", [FUSED[0], FUSED[3]], ids=lambda which: "-".join(map(str, (*which[:3], *which[3])))
)
def test_all_gradients_of_changed_scores(
    which: tuple[str, str, int, TileShape], changes: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    _compare_fused(which, Problem(*which[1:3], MASKS["one-a-batch-element"](), **CHANGES[changes]), libraries)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(
    ("which", "value_dim"), [(FUSED[3], 64), (FUSED[1], 128), (FUSED[4], 72), (FUSED[2], 24)], ids=str
)
def test_all_gradients_of_values_of_another_width(
    which: tuple[str, str, int, TileShape],
    value_dim: int,
    masks: str,
    libraries: Callable[[BackwardKernel], Any],
) -> None:
    _compare_fused(which, Problem(*which[1:3], MASKS[masks](), value_dim=value_dim), libraries)


def _compare_fused(
    which: tuple[str, str, int, TileShape], problem: Problem, libraries: Callable[[BackwardKernel], Any]
) -> None:
    """dK and dV are those of the kernel that makes them alone, to the bit."""
    arch, dtype, head_dim, tile = which
    spec = spec_of("sm80", arch, dtype, head_dim, problem.value_dim)
    spec = replace(spec, dkdv=tile, fused=tile, softcap=problem.softcap is not None)
    assert problem.gradients  # before NaN is there
    problem.poison()
    made = prepared(problem, spec, libraries)
    kernels = {part: spec.part(part) for part in ("dkdv", "fused", "convert")}
    alone = run(problem, kernels["dkdv"], made, libraries(kernels["dkdv"]))
    for late in (False, True):
        found = run(problem, kernels["fused"], made, libraries(kernels["fused"]), late)
        sums = {"dq_sums": found.pop("dq_sums")}
        found |= run(problem, kernels["convert"], made | sums, libraries(kernels["convert"]))
        for name, gradient in found.items():
            assert_right(problem, name, gradient)
            if name in alone:
                np.testing.assert_array_equal(gradient.view(np.uint16), alone[name].view(np.uint16), name)


@pytest.mark.parametrize("value_dim", [None, 24, 200])
def test_what_is_prepared(value_dim: int | None, libraries: Callable[[BackwardKernel], Any]) -> None:
    """delta, lse2 and the copies themselves, of rows and keys that some pair reads, and of the others."""
    problem = Problem("bfloat16", 56, MASKS["one-a-batch-element"](), value_dim=value_dim)
    arrays = {name: array.astype(np.float64) for name, array in problem.arrays.items()}
    problem.poison()
    made = prepared(problem, spec_of("naive", "sm_80", "bfloat16", 56, value_dim), libraries)
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
