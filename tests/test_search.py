"""The tile search on a stand-in GPU whose times are known but noisy, and what `tune` keeps and prints of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_gpu
import pytest
from click.testing import CliRunner

from omnicupy import tune, tuned
from omnicupy.bench import accuracy, configs, measure, search, tuning
from omnicupy.check import Problem
from omnicupy.commands import main
from omnicupy.errors import UnsupportedError
from omnicupy.layouts import random
from omnicupy.maskspec import Sizes, problem_of
from omnicupy.spec import AttnSpec
from omnicupy.verify.compiling import Compiled

SPECS = list(configs.every("sm_90", "bfloat16", 128, "sm90"))[:12]
BUILTIN = SPECS[5]


class Noisy:
    """Known times with noise and drift: spec -> milliseconds; everything else takes 2 ms."""

    def __init__(self, times: dict[AttnSpec, float], noise: float = 0.02, seed: int = 0) -> None:
        self.times, self.noise = times, noise
        self.draw = np.random.default_rng(seed)
        self.sampled: list[AttnSpec] = []
        self.wrong: dict[AttnSpec, float] = {}
        self.failing: set[AttnSpec] = set()

    def error(self, spec: AttnSpec) -> float:
        if spec in self.failing:
            raise ValueError("no such tile\nand more")
        return self.wrong.get(spec, 1.0)

    def sample(self, spec: AttnSpec) -> float:
        self.sampled.append(spec)
        drift = 1 + 0.1 * len(self.sampled) / 1000  # it gets hotter
        return self.times.get(spec, 2.0) * drift * (1 + self.noise * abs(self.draw.standard_normal()))


def _clean(specs: Sequence[AttnSpec], _: Any) -> list[Compiled]:
    return [Compiled(spec, 100, "") for spec in specs]


def _search(trial: Noisy, **options: Any) -> search.Found:
    return search.search(SPECS, BUILTIN, trial, build=_clean, **options)


@pytest.mark.parametrize("seed", range(5))
def test_the_fastest_wins_through_noise_and_drift(seed: int) -> None:
    trial = Noisy({BUILTIN: 1.1, SPECS[2]: 1.0, SPECS[9]: 1.04}, seed=seed)
    found = _search(trial)
    assert found.winner == SPECS[2]
    assert found.gain == pytest.approx(0.1, abs=0.03)
    assert [entry.spec for entry in found.ranking[:3]] == [SPECS[2], SPECS[9], BUILTIN]
    assert all(len(entry.rounds_ms) == 2 for entry in found.ranking[:8])
    assert found.dropped == ()


@pytest.mark.parametrize("seed", range(20))
def test_the_table_s_choice_stays_when_nothing_is_clearly_faster(seed: int) -> None:
    trial = Noisy(dict.fromkeys(SPECS, 1.0) | {SPECS[3]: 0.995}, seed=seed)
    found = _search(trial)
    assert (found.winner, found.gain) == (BUILTIN, 0.0)


def test_a_winner_must_win_both_rounds() -> None:
    class Fickle(Noisy):
        """SPECS[1] is the fastest in the first round, SPECS[2] in the second."""

        def sample(self, spec: AttnSpec) -> float:
            super().sample(spec)
            second = len(self.sampled) > switch
            return {SPECS[1]: 0.95 if second else 0.5, SPECS[2]: 0.5 if second else 0.95}.get(spec, 1.0)

    screening = len(SPECS) * 4
    switch = screening + 8 * 20
    assert _search(Fickle({})).winner == BUILTIN
    switch = 10**9
    assert _search(Fickle({})).winner == SPECS[1]


def test_near_ties_do_not_hide_a_clear_gain() -> None:
    for seed in range(5):
        found = _search(Noisy({SPECS[0]: 1.0, SPECS[1]: 1.0, BUILTIN: 1.2}, noise=0.001, seed=seed))
        assert found.winner in SPECS[:2]


def test_samples_are_interleaved_in_drawn_orders() -> None:
    trial = Noisy({})
    _search(trial, settings=search.Settings(finalists=4, samples=6))
    assert trial.sampled[:4] == [SPECS[5], SPECS[5], SPECS[0], SPECS[0]]  # a warm call first
    rounds = trial.sampled[4 * len(SPECS) :]
    final = set(rounds[:5])
    assert len(final) == 5  # four, and the table's
    turns = [rounds[i : i + 5] for i in range(0, len(rounds), 5)]
    assert len(turns) == 12
    assert all(set(turn) == final for turn in turns)
    assert len({tuple(map(str, turn)) for turn in turns}) > 6


def test_hopeless_variants_are_sampled_once_and_finalists_always_hold_the_table_s() -> None:
    slow = SPECS[7]
    trial = Noisy({slow: 9.0, BUILTIN: 3.0})
    found = _search(trial, settings=search.Settings(finalists=3))
    assert trial.sampled.count(slow) == 2  # a warm call and a sample
    assert len(found.entry(BUILTIN).rounds_ms) == 2
    assert found.ranking[-1].spec == slow


def test_wrong_and_failing_variants_are_dropped_before_any_timing() -> None:
    trial = Noisy({SPECS[0]: 0.1, SPECS[1]: 0.1})
    trial.wrong[SPECS[0]] = accuracy.TOLERANCE * 1.01
    trial.wrong[SPECS[3]] = float("nan")
    trial.failing.add(SPECS[1])

    def build(specs: Sequence[AttnSpec], _: Any) -> list[Compiled]:
        return [Compiled(spec, 9, "8 bytes of spills\n" if spec == SPECS[2] else "") for spec in specs]

    found = search.search(SPECS, BUILTIN, trial, build=build)
    assert dict(found.dropped) == {
        SPECS[2]: "8 bytes of spills",
        SPECS[0]: "wrong: error 4.04 of the reference's, allowed 4.0",
        SPECS[1]: "ValueError: no such tile",
        SPECS[3]: "wrong: error nan of the reference's, allowed 4.0",
    }
    assert not {SPECS[0], SPECS[1], SPECS[2], SPECS[3]} & set(trial.sampled)
    with pytest.raises(KeyError):
        found.entry(SPECS[0])


def test_a_variant_that_fails_when_timed_is_dropped() -> None:
    class Breaks(Noisy):
        def sample(self, spec: AttnSpec) -> float:
            if spec == SPECS[4]:
                raise RuntimeError("launch failed")
            return super().sample(spec)

    found = _search(Breaks({}))
    assert dict(found.dropped) == {SPECS[4]: "RuntimeError: launch failed"}


def test_a_table_s_choice_that_is_wrong_ends_the_search() -> None:
    trial = Noisy({})
    trial.wrong[BUILTIN] = 100.0
    with pytest.raises(
        UnsupportedError, match=r"the table's choice sm90-.* cannot be compared with: wrong: error 100"
    ):
        _search(trial)


def test_candidates_are_those_of_the_problem() -> None:
    both = search.candidates("sm_90", "bfloat16", 128, 4096, ("sm90", "sm80"))
    assert {spec.kernel for spec in both} == {"sm80", "sm90"}
    assert min(spec.br for spec in both) == 64
    assert {spec.ping_pong for spec in both if spec.kernel == "sm90" and spec.br > 64} == {True, False}
    assert min(spec.br for spec in search.candidates("sm_90", "bfloat16", 128, 16, ("sm80",))) == 16
    assert {spec.kernel for spec in search.candidates("sm_80", "float16", 128, 4096, ("sm90", "sm80"))} == {
        "sm80"
    }
    assert all(spec.swizzle for spec in both)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, isolated_cache: Path) -> Callable[[dict[AttnSpec, float]], Noisy]:
    """A stand-in GPU; call it with the times of variants."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(tuned, "current_machine", lambda: tuned.Machine("Fake H100", "13.0", "12.9"))
    monkeypatch.setattr(tune, "SERVED", frozenset({"sm90"}))
    real = search.search

    def install(times: dict[AttnSpec, float]) -> Noisy:
        trial = Noisy(times)
        monkeypatch.setattr(tuning, "GpuTrial", lambda workload, mask, dtype: trial)
        monkeypatch.setattr(search, "search", lambda *arguments: real(*arguments, build=_clean))
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
    builtin = tune.pick("sm_90", PROBLEM, (mask,), 132)
    better = replace(builtin, bc=96)
    gpu({builtin: 1.2, better: 1.0})
    done = CliRunner().invoke(main, [*ARGUMENTS, "--export"])
    assert done.exit_code == 0, done.output
    assert f"Kept {configs.word(better)} (" in done.output
    assert "Fake H100: bfloat16, head_dim 128, mask spans<=" in done.output
    assert f"1   {configs.word(better)}" in done.output
    assert "  the table's" in done.output
    assert tune.select("sm_90", PROBLEM, (mask,), 132) == better
    (line,) = (line for line in done.output.splitlines() if line.startswith("Row("))
    row = eval(line.rstrip(","), {"Row": tune.Row})
    assert (row.head_dims, row.archs) == ((128, 128), ("sm_90",))
    assert row.spec("sm_90", "bfloat16", 128) == better
    # another search finds the table's choice best: what was kept goes
    gpu({builtin: 1.0})
    done = CliRunner().invoke(main, ARGUMENTS)
    assert "The table's choice stays" in done.output
    assert tune.select("sm_90", PROBLEM, (mask,), 132) == builtin


def test_tune_prints_json_and_keeps_nothing_in_a_dry_run(gpu: Any) -> None:
    builtin = tune.pick("sm_90", PROBLEM, (random(4096, 3),), 132)
    better = replace(builtin, ping_pong=False)
    trial = gpu({builtin: 1.2, better: 1.0})
    trial.wrong[replace(builtin, bc=64)] = 50.0
    done = CliRunner().invoke(main, [*ARGUMENTS, "--json", "--dry-run", "--kernel", "sm90", "--export"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert (content["winner"], content["builtin"]) == (configs.word(better), configs.word(builtin))
    assert content["gain"] == pytest.approx(0.2, abs=0.03)
    assert content["ranking"][0]["variant"] == configs.word(better)
    assert all(one["variant"].startswith("sm90") for one in content["ranking"])
    assert content["dropped"][configs.word(replace(builtin, bc=64))].startswith("wrong: error 50")
    assert content["row"].startswith("Row(")
    assert not tuned.path().exists()


def test_tune_says_when_a_winner_is_not_served(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = tune.pick("sm_90", PROBLEM, (random(4096, 3),), 132)
    gpu({builtin: 1.2, replace(builtin, bc=96): 1.0})
    monkeypatch.setattr(tune, "SERVED", frozenset())
    done = CliRunner().invoke(main, ARGUMENTS)
    assert "Calls use it once kernel 'sm90' is attested." in done.output


def test_a_trial_on_the_gpu_holds_the_kernel_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_gpu.install(monkeypatch)
    asked = []

    def attention(*arguments: Any, config: Any) -> Any:
        asked.append(config)
        return numpy_gpu.attention(*arguments, config=config)

    monkeypatch.setattr(tuning, "attention", attention)
    workload = problem_of("random:1", Sizes(heads=2, kv_heads=1, head_dim=16, length=200))
    trial = tuning.GpuTrial(workload, workload.mask(), "bfloat16")
    assert 0 < trial.error(BUILTIN) <= accuracy.TOLERANCE
    assert trial.sample(SPECS[0]) > 0
    assert asked == [BUILTIN, SPECS[0]]
    monkeypatch.setattr(tuning, "attention", lambda q, *_, config: q)
    assert trial.error(BUILTIN) > accuracy.TOLERANCE


def test_tune_needs_a_gpu() -> None:
    done = CliRunner().invoke(main, ARGUMENTS)
    assert done.exit_code == 1
    assert "tune: a GPU is needed, and there is none here" in done.output
    assert measure.GEMM == 8192
