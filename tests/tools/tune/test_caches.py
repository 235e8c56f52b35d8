"""`tune --cache`: what is tried, what is kept for which calls, on a stand-in GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner
from noisy_gpu import BUILTIN, Noisy, clean

from omnicupy.call.problem import Problem
from omnicupy.choose import classes, paged, pick, saved, table, variants
from omnicupy.jit.build import Compiled
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import causal, full
from omnicupy.reference import checked_rows
from omnicupy.tools.cli.main import main
from omnicupy.tools.tune import caches, search
from omnicupy.tools.tune import run as tune_run
from omnicupy.tools.tune.caches import Cache
from omnicupy.tools.workloads.workload import Workload

PROBLEM = Problem(16, 32, 8, 1, 8192, 128, "bfloat16")
MASK = causal(1, 8192)
ARGUMENTS = ["tune", "--mask", "decode-d128-s8192-q1-h32-k8-b16"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, isolated_cache: Path) -> Any:
    """A stand-in GPU; call it with the times of variants."""
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(saved, "current_machine", lambda: saved.Machine("Fake H100", "13.0", "12.9"))
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm80", "sm90"}))
    real = search.search

    def install(times: dict[Any, float]) -> list[Any]:
        asked: list[Any] = []

        def trial(*given: Any) -> Noisy:
            asked.append(given[-1])
            return Noisy(times)

        monkeypatch.setattr(caches, "CacheTrial", trial)
        monkeypatch.setattr(tune_run, "CacheTrial", trial)
        monkeypatch.setattr(search, "search", lambda *given: real(*given[:5], build=clean))
        return asked

    return install


@pytest.mark.parametrize(("options", "page"), [([], None), (["--page", "64"], 64), (["--page", "4"], 4)])
def test_a_winner_is_kept_for_its_kind_of_cache_alone(options: list[str], page: int | None, gpu: Any) -> None:
    builtin = Cache(page).builtin("sm_90", PROBLEM, MASK, 132)
    assert isinstance(builtin, FewRowsSpec)
    packed = paged.fitted(pick.pick("sm_90", PROBLEM, (MASK,), 132, cached=True))
    better = replace(packed, stages=3 if packed.stages != 3 else 1)
    asked = gpu({builtin: 1.2, better: 1.0})
    kind = ["--cache", "contiguous" if page is None else "pages"]
    done = CliRunner().invoke(main, [*ARGUMENTS, *kind, *options, "--export"])
    assert done.exit_code == 0, done.output
    (row,) = (line for line in done.output.splitlines() if line.startswith("Row("))
    proposed = eval(row.rstrip(","), {"Row": table.Row})
    assert proposed.shape == "packed"
    assert proposed.spec("sm_90", "bfloat16", 128) == better
    assert f"Kept {variants.word(better)} (" in done.output
    assert f"cache: {paged.kind_of(page)}" in done.output
    assert asked == [Cache(page)]
    for kind_of in classes.CACHES:
        found = pick.select("sm_90", PROBLEM, (MASK,), 132, cache=kind_of)
        assert (found == better) == (kind_of == paged.kind_of(page)), kind_of
    gpu({builtin: 1.0})
    done = CliRunner().invoke(main, [*ARGUMENTS, *kind, *options, "--export"])
    assert saved.count() == 0
    assert done.output.splitlines()[-1].startswith("# few-rows-w12-b1 stays: choose/paged.py names it")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*ARGUMENTS, "--page", "8"], "--page does nothing without --cache pages"),
        ([*ARGUMENTS, "--cache", "contiguous", "--page", "8"], "--page does nothing without --cache pages"),
        ([*ARGUMENTS, "--cache", "pages", "--pass", "bwd"], "--cache does nothing with --pass bwd"),
        ([*ARGUMENTS, "--cache", "pages", "--page", "48"], "pages of 48 tokens do not divide 8192 keys"),
        (
            ["tune", "--mask", "full-d128-s512", "--cache", "pages"],
            "tune: --cache is for the last rows of sequences",
        ),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, gpu: Any) -> None:
    gpu({})
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert said in done.output


@pytest.mark.parametrize("page", [None, 8, 16])
def test_a_trial_is_held_against_the_reference(page: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_gpu.install(monkeypatch)
    asked: list[Any] = []

    def attention(q: Any, kv: Any, *, mask: Any, config: Any) -> Any:
        asked.append((type(kv).__name__, config))
        return numpy_gpu.attention(q, kv, mask=mask)

    monkeypatch.setattr(caches, "attention", attention)
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(2, 64), "")
    steps: list[str] = []
    trial = caches.CacheTrial(workload, workload.mask(), "bfloat16", steps.append, Cache(page))
    assert 0 < trial.error(BUILTIN) <= checked_rows.TOLERANCE
    assert trial.sample(BUILTIN) > 0
    assert asked == [("CachedKV" if page is None else "PagedKV", BUILTIN)] * 2
    assert steps == [variants.word(BUILTIN)] * 2
    monkeypatch.setattr(caches, "attention", lambda q, *_, **options: q)
    assert trial.error(BUILTIN) > checked_rows.TOLERANCE


def test_the_kernels_of_caches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_all(specs: Any, track: Any) -> list[Compiled[Any]]:
        asked.extend(specs)
        return [Compiled(spec, 100, "") for spec in specs]

    monkeypatch.setattr(caches, "compile_all", compile_all)
    for page in (None, 16):
        (found,) = Cache(page).compile_specs([BUILTIN], lambda items, *_: iter(items))
        assert found.spec == BUILTIN
    assert [type(one) for one in asked] == [CachedSpec, PagedSpec]


def test_which_variants_serve() -> None:
    sm80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=128, br=64, bc=64)
    many = replace(BUILTIN, br=192, warps=16, pack=False)
    assert all(Cache(page).serves(BUILTIN) for page in (None, 16, 8, 4))
    assert all(Cache(page).serves(many) for page in (None, 16, 8, 4))
    assert all(Cache(page).serves(sm80) for page in (None, 16, 8))
    with pytest.raises(ValueError, match="--cache is for the last rows"):
        Cache().check(Workload("x", 1, (1, 1, 8), lambda: full(4), ""), full(4))
