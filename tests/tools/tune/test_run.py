"""What `tune` keeps, prints and guards against, on a stand-in GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner
from noisy_gpu import BUILTIN, SPECS, Noisy, clean

from omnicupy.call.problem import Problem
from omnicupy.choose import pick, saved, table, variants
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.segment_masks import random
from omnicupy.reference import checked_rows
from omnicupy.tools.cli.main import main
from omnicupy.tools.tune import run as tune_run
from omnicupy.tools.tune import search
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.words import Sizes, problem_of


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, isolated_cache: Path) -> Callable[[dict[AttnSpec, float]], Noisy]:
    """A stand-in GPU; call it with the times of variants."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(saved, "current_machine", lambda: saved.Machine("Fake H100", "13.0", "12.9"))
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm90"}))
    real = search.search

    def install(times: dict[AttnSpec, float]) -> Noisy:
        trial = Noisy(times)
        monkeypatch.setattr(tune_run, "GpuTrial", lambda workload, mask, dtype, step: trial)
        monkeypatch.setattr(search, "search", lambda *arguments: real(*arguments, build=clean))
        return trial

    return install


ARGUMENTS = [
    "tune",
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
PROBLEM = Problem(1, 8, 2, 4096, 4096, 128, "bfloat16")


def test_tune_keeps_a_winner_that_later_calls_get(gpu: Any) -> None:
    mask = random(4096, 3)
    builtin = pick.pick("sm_90", PROBLEM, (mask,), 132)
    better = replace(builtin, bc=96)
    gpu({builtin: 1.2, better: 1.0})
    done = CliRunner().invoke(main, [*ARGUMENTS, "--export"])
    assert done.exit_code == 0, done.output
    assert f"Kept {variants.word(better)} (" in done.output
    assert "Fake H100: bfloat16, head_dim 128, mask spans<=" in done.output
    assert f"1   {variants.word(better)}" in done.output
    assert "  the table's" in done.output
    assert pick.select("sm_90", PROBLEM, (mask,), 132) == better
    (line,) = (line for line in done.output.splitlines() if line.startswith("Row("))
    row = eval(line.rstrip(","), {"Row": table.Row})
    assert (row.head_dims, row.archs) == ((128, 128), ("sm_90",))
    assert row.spec("sm_90", "bfloat16", 128) == better
    # another search finds the table's choice best: what was kept goes
    gpu({builtin: 1.0})
    done = CliRunner().invoke(main, ARGUMENTS)
    assert "The table's choice stays" in done.output
    assert pick.select("sm_90", PROBLEM, (mask,), 132) == builtin


@pytest.mark.parametrize("word", ["sm90-192x64-s3-w16-scheduler", "sm90-64x64-s2-w8-b2"])
def test_tune_finds_variants_for_short_block_rows(gpu: Any, word: str) -> None:
    mask = random(4096, 3)
    better = variants.parse(word, "sm_90", "bfloat16", 128)
    gpu({pick.pick("sm_90", PROBLEM, (mask,), 132): 1.2, better: 1.0})
    done = CliRunner().invoke(main, [*ARGUMENTS, "--export", "--kernel", "sm90"])
    assert done.exit_code == 0, done.output
    assert f"Kept {word} (" in done.output
    assert pick.select("sm_90", PROBLEM, (mask,), 132) == better
    saved.forget()
    assert pick.select("sm_90", PROBLEM, (mask,), 132) == better
    (line,) = (line for line in done.output.splitlines() if line.startswith("Row("))
    row = eval(line.rstrip(","), {"Row": table.Row})
    assert row.spec("sm_90", "bfloat16", 128) == better


def test_tune_prints_json_and_keeps_nothing_in_a_dry_run(gpu: Any) -> None:
    builtin = pick.pick("sm_90", PROBLEM, (random(4096, 3),), 132)
    better = replace(builtin, ping_pong=False)
    trial = gpu({builtin: 1.2, better: 1.0})
    trial.wrong[replace(builtin, bc=64)] = 50.0
    done = CliRunner().invoke(main, [*ARGUMENTS, "--json", "--dry-run", "--kernel", "sm90", "--export"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert (content["winner"], content["builtin"]) == (variants.word(better), variants.word(builtin))
    assert content["gain"] == pytest.approx(0.2, abs=0.03)
    assert content["ranking"][0]["variant"] == variants.word(better)
    assert all(one["variant"].startswith("sm90") for one in content["ranking"])
    assert content["dropped"][variants.word(replace(builtin, bc=64))].startswith("wrong: error 50")
    assert content["row"].startswith("Row(")
    assert not saved.path().exists()


def test_tune_says_when_a_winner_is_not_served(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = pick.pick("sm_90", PROBLEM, (random(4096, 3),), 132)
    gpu({builtin: 1.2, replace(builtin, bc=96): 1.0})
    monkeypatch.setattr(pick, "SERVED", frozenset())
    done = CliRunner().invoke(main, ARGUMENTS)
    assert "Calls use it once kernel 'sm90' is attested." in done.output


def test_a_trial_on_the_gpu_holds_the_kernel_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_gpu.install(monkeypatch)
    asked = []

    def attention(*arguments: Any, config: Any) -> Any:
        asked.append(config)
        return numpy_gpu.attention(*arguments, config=config)

    monkeypatch.setattr(tune_run, "attention", attention)
    workload = problem_of("random:1", Sizes(heads=2, kv_heads=1, head_dim=16, length=200))
    steps: list[str] = []
    trial = tune_run.GpuTrial(workload, workload.mask(), "bfloat16", steps.append)
    assert 0 < trial.error(BUILTIN) <= checked_rows.TOLERANCE
    assert trial.sample(SPECS[0]) > 0
    assert asked == [BUILTIN, SPECS[0]]
    assert steps == [variants.word(BUILTIN), variants.word(SPECS[0])]
    monkeypatch.setattr(tune_run, "attention", lambda q, *_, config: q)
    assert trial.error(BUILTIN) > checked_rows.TOLERANCE


def test_a_variant_that_hangs_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    slow = SPECS[3]

    class Hangs(Noisy):
        def __init__(self, *arguments: Any) -> None:
            super().__init__({})
            self.step = arguments[-1]

        def sample(self, spec: AttnSpec) -> float:
            self.step(variants.word(spec))
            if spec == slow and not said:
                time.sleep(0.6)
            return super().sample(spec)

    gpu({})
    monkeypatch.setattr(tune_run, "GpuTrial", Hangs)
    monkeypatch.setattr(tune_run, "Watchdog", lambda limit: Watchdog(0.1, said.append))
    CliRunner().invoke(main, [*ARGUMENTS, "--dry-run", "--kernel", "sm90"])
    (line,) = said
    assert line.startswith(f"FAIL  {variants.word(slow)}: still running after ")


def test_tune_needs_a_gpu() -> None:
    done = CliRunner().invoke(main, ARGUMENTS)
    assert done.exit_code == 1
    assert "tune: a GPU is needed, and there is none here" in done.output
