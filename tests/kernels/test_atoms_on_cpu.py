"""Kernels whose tensor-core instructions have other shapes than the shipped ones, run on the CPU, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from forward_on_cpu import Forward, assert_within_budget, scattered
from kernel_calls import Problem as BackwardProblem
from kernel_calls import assert_right, prepared, run, spec_of
from kernel_masks import MASKS

from omnicupy.call.problem import Problem
from omnicupy.choose import variants
from omnicupy.jit.atom import Atom
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.bench.atom_specs import backward_with_atom, with_atom

pytestmark = [
    pytest.mark.in_turn(8, by=("which",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

K8 = Atom(k=8)
# (variant, dtype, head_dim of the tensors, atom): halves of scores, of sums and of both, inside a panel of 64 columns
# and beyond it.
FORWARD = [
    ("sm80-64x32-s2-w4", "float16", 128, K8),
    ("sm80-128x64-s1-w4", "bfloat16", 56, K8),
    ("sm90-64x128-s2-w8", "bfloat16", 64, Atom(scores=64, sums=32)),
    ("sm90-64x64-s2-w8", "float16", 128, Atom(scores=32, sums=64)),
    ("sm90-64x64-s2-w8", "bfloat16", 128, Atom(sums=32)),
]
# (kernel, dtype, head_dim, atom)
BACKWARD = [
    ("sm80", "bfloat16", 56, K8),
    ("sm80", "float16", 128, K8),
    ("sm90", "bfloat16", 64, Atom(scores=32, sums=32)),
    ("sm90", "float16", 128, Atom(scores=32, sums=64)),
]


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def backward_library() -> Callable[[BackwardKernel], Any]:
    built: dict[BackwardKernel, Any] = {}

    def of(kernel: BackwardKernel) -> Any:
        if kernel not in built:
            built[kernel] = cuda_on_cpu.build(kernel)
        return built[kernel]

    return of


@pytest.mark.parametrize("which", FORWARD, ids=lambda which: "-".join(map(str, which[:3])))
def test_forward(which: tuple[str, str, int, Atom], library: Callable[[AttnSpec], Any]) -> None:
    word, dtype, head_dim, atom = which
    call = Forward(Problem(1, 4, 2, 90, 150, head_dim, dtype), [scattered(90, 150)], seed=3)
    spec = variants.parse(word, "sm_80", dtype, head_dim)
    assert_within_budget(call, with_atom(spec, atom), library)


def test_narrow_products_add_in_the_same_order(library: Callable[[AttnSpec], Any]) -> None:
    """Columns do not meet in a product: results keep their bits."""
    call = Forward(Problem(1, 2, 1, 90, 150, 128, "bfloat16"), [scattered(90, 150)], seed=4)
    shipped = variants.parse("sm90-64x64-s2-w8", "sm_90", "bfloat16", 128)
    results = []
    for spec in (shipped, with_atom(shipped, Atom(sums=32))):
        out, lse, _ = call.run(spec, library)
        results.append((out.copy().view(np.uint16), lse))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element"])
@pytest.mark.parametrize("which", BACKWARD, ids=lambda which: "-".join(map(str, which[:3])))
def test_backward(
    which: tuple[str, str, int, Atom], masks: str, backward_library: Callable[[BackwardKernel], Any]
) -> None:
    kernel, dtype, head_dim, atom = which
    problem = BackwardProblem(dtype, head_dim, MASKS[masks]())
    shipped = spec_of(kernel, "sm_90", dtype, head_dim)
    spec: BackwardSpec = backward_with_atom(replace(shipped, ordered=None), atom)
    assert problem.gradients  # before NaN is there
    problem.poison()
    made = prepared(problem, spec, backward_library)
    for part in ("dkdv", "dq"):
        of = spec.part(part)
        for name, found in run(problem, of, made, backward_library(of)).items():
            assert_right(problem, name, found)
    fused = run(problem, spec.part("fused"), made, backward_library(spec.part("fused")))
    sums = {"dq_sums": fused.pop("dq_sums")}
    convert = spec.part("convert")
    for name, found in (fused | run(problem, convert, made | sums, backward_library(convert))).items():
        assert_right(problem, name, found)
