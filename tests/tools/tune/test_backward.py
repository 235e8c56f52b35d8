"""`tune --pass bwd`: what is tried, how tiles of two kernels meet, what is kept, on a stand-in GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner
from noisy_gpu import Noisy, clean

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, saved, variants
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.build import Compiled
from omnicupy.masks.segment_masks import random
from omnicupy.reference import checked_rows
from omnicupy.tools.bench import gradients
from omnicupy.tools.cli.main import main
from omnicupy.tools.tune import backward
from omnicupy.tools.tune.search import Entry
from omnicupy.tools.workloads.words import Sizes, problem_of

PROBLEM = Problem(1, 8, 2, 4096, 4096, 128, "bfloat16")
BUILTIN = backward_table.pick("sm_90", "bfloat16", 128)
TWO = replace(BUILTIN, ordered=None)  # two kernels in place of the one in order
KEYS, ROWS = TileShape(96, 128, 2, 12), TileShape(128, 96, 3, 12)
ARGUMENTS = [
    "tune",
    "--pass",
    "bwd",
    "--mask",
    "random:3",
    "--heads",
    "8",
    "--kv-heads",
    "2",
    "--head-dim",
    "128",
    "--length",
    "4096",
]


@pytest.fixture
def gpu(
    monkeypatch: pytest.MonkeyPatch, isolated_cache: Path
) -> Callable[[dict[BackwardSpec, float]], Noisy]:
    """A stand-in GPU; call it with the times of variants."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(saved, "current_machine", lambda: saved.Machine("Fake H100", "13.0", "12.9"))
    monkeypatch.setattr(backward, "compile_specs", clean)

    def install(times: dict[BackwardSpec, float]) -> Noisy:
        trial = Noisy(times)  # type: ignore[arg-type]
        monkeypatch.setattr(backward, "GradientTrial", lambda *arguments, deterministic: trial)
        return trial

    return install


def _run(*more: str) -> str:
    done = CliRunner().invoke(main, [*ARGUMENTS, *more])
    assert done.exit_code == 0, done.output
    return done.stdout


def _select(**options: bool) -> BackwardSpec:
    return backward_table.select("sm_90", PROBLEM, (random(4096, 3),), 132, **options)


def test_the_best_tiles_of_both_kernels_are_tried_together_and_kept(gpu: Any) -> None:
    both = replace(TWO, dkdv=KEYS, dq=ROWS)
    gpu({BUILTIN: 1.5, TWO: 1.5, replace(TWO, dkdv=KEYS): 1.3, replace(TWO, dq=ROWS): 1.3, both: 1.0})
    text = _run("--export")
    assert f"Kept {variants.word(both)} (" in text
    assert "Fake H100: backward pass, bfloat16, head_dim 128, mask spans<=" in text
    assert f"1   {variants.word(both)} " in text
    assert (_select(), _select(deterministic=False)) == (both, BUILTIN)
    assert saved.find(PROBLEM, (random(4096, 3),), 132) is None
    (line,) = (line for line in text.splitlines() if line.startswith("BackwardRow("))
    row = eval(line.rstrip(","), {"BackwardRow": backward_table.BackwardRow, "TileShape": TileShape})
    assert row.spec("sm_90", "bfloat16", 128) == both
    assert row.serves("sm_90", 128)
    assert not row.serves("sm_80", 128)
    gpu({BUILTIN: 1.0})  # another search finds the table's choice best: what was kept goes
    assert "The table's choice stays" in _run()
    assert _select() == BUILTIN


def test_sums_in_any_order_have_a_search_of_their_own(gpu: Any) -> None:
    without = replace(BUILTIN, fused=None)
    trial = gpu({BUILTIN: 1.2, without: 1.0})
    content = json.loads(_run("--any-order", "--json"))
    assert (content["winner"], content["builtin"]) == (variants.word(without), variants.word(BUILTIN))
    assert content["class"]["passed"] == "backward"
    assert content["class"]["deterministic"] is False
    assert {spec.dq for spec in trial.sampled} == {BUILTIN.dq}
    assert (_select(), _select(deterministic=False)) == (BUILTIN, without)


def test_the_rate_counts_the_products_of_a_backward_pass(gpu: Any) -> None:
    gpu({})
    content = json.loads(_run("--json", "--dry-run"))
    best = content["ranking"][0]
    forward = 4 * 128 * random(4096, 3).pairs * 8
    assert best["tflops"] * best["ms"] == pytest.approx(2.5 * forward / 1e9, rel=1e-2)
    assert not saved.path().exists()


def test_it_says_that_calls_do_not_use_what_is_kept(gpu: Any) -> None:
    gpu({BUILTIN: 1.2, replace(TWO, dq=ROWS): 1.0})
    assert "Calls do not use kept choices of the backward pass yet: pass it as config." in _run()


def test_an_order_is_of_the_backward_pass(gpu: Any) -> None:
    done = CliRunner().invoke(main, ["tune", "--any-order", "--length", "512"])
    assert "--any-order does nothing without --pass bwd; leave it out" in done.output


def test_candidates_differ_in_one_kernel() -> None:
    found = backward.candidates("sm_90", PROBLEM, (), deterministic=True)
    assert found[0] == BUILTIN
    assert len(found) == len(set(found)) > 60
    assert TWO in found
    for spec in found[1:]:
        changed = [
            name for name in ("dkdv", "dq", "ordered") if getattr(spec, name) != getattr(BUILTIN, name)
        ]
        assert changed in (["ordered"], ["dkdv", "ordered"], ["dq", "ordered"])
        assert len(changed) == 1 or spec.ordered is None
        assert spec.fused == BUILTIN.fused
    loose = backward.candidates("sm_90", PROBLEM, (), deterministic=False)
    assert replace(BUILTIN, fused=None) in loose
    assert {(spec.dkdv, spec.dq) for spec in loose} == {(BUILTIN.dkdv, BUILTIN.dq)}
    wide = replace(PROBLEM, head_dim=256, value_dim=None)  # no kernel makes all gradients there
    sorts = [set(backward.candidates("sm_90", wide, (), deterministic=one)) for one in (True, False)]
    assert sorts[0] == sorts[1]
    assert len(sorts[0]) > 10
    named = backward.candidates("sm_90", PROBLEM, ("sm80",), deterministic=False)
    assert {spec.kernel for spec in named} == {"sm80"}
    assert {spec.fused for spec in named} >= {
        None,
        *(TileShape(64, 128, stages, warps) for stages in (1, 2) for warps in (4, 8)),
    }
    assert len({(spec.dkdv, spec.dq) for spec in named}) == 1


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_every_tile_is_another_one_of_its_kernel(arch: str, head_dim: int) -> None:
    base = backward_table.pick(arch, "float16", head_dim)
    for part in ("dkdv", "dq", "fused"):
        for spec in variants.every_tile(base, part):
            assert replace(spec, **{part: getattr(base, part)}) == base
            assert spec != base
            assert spec.fused is None or head_dim <= 128


def test_combinations_are_of_the_quickest_tiles() -> None:
    keys = [TileShape(64, 128, stages, 12) for stages in (2, 3)] + [TileShape(32, 128, s, 12) for s in (2, 3)]
    specs = [replace(BUILTIN, dkdv=tile) for tile in keys] + [replace(BUILTIN, dq=ROWS), BUILTIN]
    found = backward.combined([Entry(spec, 1.0) for spec in specs])
    assert found == [replace(BUILTIN, dkdv=tile, dq=ROWS) for tile in keys[:3]]
    assert backward.combined([Entry(BUILTIN, 1.0), Entry(replace(BUILTIN, fused=None), 1.0)]) == []


def test_a_spec_compiles_as_its_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_all(kernels: Any, track: Any) -> list[Compiled[Any]]:
        asked.extend(kernels)
        return [
            Compiled(one, 100 + one.stages, "8 bytes of spills" if one.part == "dq" and one.bc == 96 else "")
            for one in kernels
        ]

    monkeypatch.setattr(backward, "compile_all", compile_all)
    found = backward.compile_specs([BUILTIN, replace(BUILTIN, dq=ROWS)], lambda items, *_: items)
    assert len(asked) == len(set(asked)) == len(BUILTIN.kernels()) + 1
    assert [one.problem for one in found] == ["", "dq: 8 bytes of spills"]
    assert [one.spec for one in found] == [BUILTIN, replace(BUILTIN, dq=ROWS)]
    assert found[0].registers == 104


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_trial_holds_gradients_against_the_reference(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, gradients)
    asked, factor = [], 1.0

    def attention_backward(*arguments: Any, **options: Any) -> Any:
        asked.append((options["config"], options["deterministic"]))
        dq, dk, dv = numpy_gpu.attention_backward(*arguments)
        return dq, (dk.astype("f4") * factor).astype(dk.dtype), dv

    monkeypatch.setattr(backward, "attention_backward", attention_backward)
    workload = problem_of("random:1", Sizes(heads=2, kv_heads=1, head_dim=16, length=200))
    steps: list[str] = []
    trial = backward.GradientTrial(
        workload, workload.mask(), "bfloat16", steps.append, deterministic=deterministic
    )
    assert 0 < trial.error(BUILTIN) <= checked_rows.TOLERANCE
    assert trial.sample(BUILTIN) > 0
    assert set(asked) == {(BUILTIN, deterministic)}
    assert steps == [variants.word(BUILTIN)] * 2
    factor = 1.5
    assert trial.error(BUILTIN) > checked_rows.TOLERANCE
