"""Kernels that are compiled elsewhere are all that a run asks for: its cases are planned as on a device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asked_kernels
import numpy as np
import numpy_gpu
import pytest

from omnicupy.choose import pick
from omnicupy.gpu.device import DeviceInfo
from omnicupy.jit.spec import KernelSpec
from omnicupy.reference import budget, gradient_budget
from omnicupy.tools import random_arrays
from omnicupy.tools.verify import (
    append_cases,
    backward_big,
    backward_inputs,
    backward_special,
    cached_cases,
    inputs,
    on_gpu,
    serving_judge,
    source_digest,
    special_cases,
    speed,
)
from omnicupy.tools.verify import run as verify_run
from omnicupy.tools.verify.backward_cases import BackwardCase
from omnicupy.tools.verify.case_kernels import DEFAULT, Variant, forward_spec
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.run import Settings

JUDGES = (on_gpu, append_cases, backward_big, backward_special, cached_cases, serving_judge, special_cases)
SWEEP = 20
SOME = ("widths of values", "chained-d128", "graph-d64", "caches: append", "cached-tails", "pages64-")


def _device(sm_count: int) -> DeviceInfo:
    return DeviceInfo(9, 0, sm_count, 50 << 20)


@pytest.fixture
def no_arithmetic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inputs are zeros and take no memory where they are large, and there is no reference."""
    numpy_gpu.install(monkeypatch)
    for module in (budget, gradient_budget):
        monkeypatch.setattr(module, "budget", lambda *_, **options: None)
        monkeypatch.setattr(module, "compare", lambda *_: SimpleNamespace(ok=True, ratio=0.0))

    def zeros(shape: Any, seed: int, dtype: str, factor: float, xp: Any) -> Any:
        return np.zeros(shape, random_arrays.unsigned(dtype))

    for module in (random_arrays, inputs, backward_inputs, append_cases):
        monkeypatch.setattr(module, "random_bits", zeros)
    for module in (special_cases, backward_big):
        made = partial(np.zeros, dtype=random_arrays.DTYPES["bfloat16"])
        monkeypatch.setattr(module, "filled", lambda shape, seed, made=made: made(shape))
    monkeypatch.setattr(backward_inputs, "counts", lambda mask, xp: np.ones(mask.shape[0]))
    with pick.serve_every_kernel(), np.errstate(invalid="ignore"):
        yield


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `--build` compiles with some settings."""
    monkeypatch.setattr(verify_run, "compile_all", lambda specs, track: None)
    found: list[KernelSpec] = []
    monkeypatch.setattr(verify_run.cache, "export", lambda specs, folder: found.extend(specs))

    def build(**settings: Any) -> set[KernelSpec]:
        found.clear()
        verify_run.build_cubins(Path("nowhere"), "sm_90", Settings(**settings))
        return set(found)

    return build


def _asked(
    case: Case, target: on_gpu.Target, asked: asked_kernels.Asked
) -> Iterator[tuple[Variant | None, set[KernelSpec]]]:
    """The kernels that making the case's judge asks for (None), and then each of its variants."""
    masks = case.masks()
    found = target.variants(case, masks)
    if not found:
        return
    judge = on_gpu._judge_of(case, masks, target)
    yield None, asked.take()
    for variant in found:
        if case.tag not in special_cases.BIG:  # judging these reads all of what they make
            judge(variant)
        yield variant, asked.take()


@pytest.mark.parametrize(
    ("sm_count", "step"),
    [
        pytest.param(132, 1, marks=pytest.mark.in_turn(8, at=2)),
        pytest.param(20, 7, marks=pytest.mark.in_turn(8, at=4)),
    ],
)
def test_every_kernel_that_a_run_asks_for_is_compiled(
    sm_count: int, step: int, no_arithmetic: None, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_kernels.Asked(monkeypatch, _device(sm_count))
    asked.serve(monkeypatch, *JUDGES)
    target = on_gpu.Target("sm_90", sm_count, repeats=1)
    built, missing, of_inputs = compiled(sweep=SWEEP), {}, set()
    for case in verify_run.gpu_cases(Settings(sweep=SWEEP))[::step]:
        for variant, specs in _asked(case, target, asked):
            if not specs <= built:
                missing[case.id, variant and variant.name] = specs - built
            if variant is None and isinstance(case, BackwardCase):
                assert specs == {forward_spec(case, case.masks(), "sm_90")}, case.id
                of_inputs |= specs
            elif variant is None:
                assert not specs, f"a judge of a forward pass needs no kernel: {case.id}"
            elif case.tag not in special_cases.BIG:
                assert specs, f"{variant.name} ran nothing: {case.id}"
    assert not missing
    assert len(of_inputs) > 50, "gradients need out and lse"


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("source", source_digest.SOURCES)
def test_every_kernel_that_a_run_of_one_source_asks_for_is_compiled(
    source: str, no_arithmetic: None, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_kernels.Asked(monkeypatch, _device(132))
    asked.serve(monkeypatch, *JUDGES)
    target = on_gpu.Target("sm_90", 132, repeats=1, sources=(source,))
    built, ran = compiled(sweep=0, cases=SOME, sources=(source,)), set()
    for case in verify_run.gpu_cases(Settings(sweep=0, cases=SOME)):
        for variant, specs in _asked(case, target, asked):
            assert specs <= built, (case.id, variant and variant.name)
            ran |= specs
    assert source in {spec.source for spec in ran}
    if "bwd" in source:
        assert "attention_fwd_sm90.cu" in {spec.source for spec in built}


@pytest.mark.in_turn(3)
def test_choices_of_devices_of_any_size_are_compiled(compiled: Any) -> None:
    built = compiled(sweep=0, cases=("decoding", "masks"), kernels=(DEFAULT,))
    for sm_count in (1, 20, 132, 1000):
        target = on_gpu.Target("sm_90", sm_count, (DEFAULT,))
        cases = verify_run.gpu_cases(Settings(sweep=0, cases=("decoding", "masks")))
        forward = [case for case in cases if not isinstance(case, BackwardCase)]
        assert set(target.specs(forward)) <= built
        assert len(forward) > 100


def test_kernels_that_are_timed_are_compiled(compiled: Any) -> None:
    name = "causal, S 2048, D 512"
    (workload,) = (one for one in speed.WORKLOADS if one.name == name)
    mask = workload.mask()
    variants = on_gpu.Target("sm_90", 132).variants(speed.case_of(workload, mask), [mask])
    timed = {kernel for variant in variants for kernel in variant.kernels}
    assert timed == compiled(cases=(name,))
    assert timed <= compiled(cases=(name, "caches: append"), sweep=0)
