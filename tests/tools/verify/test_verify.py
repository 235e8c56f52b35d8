"""Verification: what it runs, what it reports, and that it fails when something is wrong."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy import errors
from omnicupy.choose import table
from omnicupy.jit import archs, build
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.bench import timing
from omnicupy.tools.verify import backward_big, backward_special, on_cpu, on_gpu, special_cases, speed
from omnicupy.tools.verify import report as verify_report
from omnicupy.tools.verify import run as verify_run
from omnicupy.tools.verify.case_kernels import DEFAULT, ladder, serves, variants
from omnicupy.tools.verify.cases import BASE, BROADCAST, CPU_SIZED, REVERSED
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.run import Settings
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.workload import Workload

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = "d64-bf16-segments-q333k333-h2g1"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A fake GPU whose kernels are the CPU engine and whose compiler does nothing."""
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, on_gpu, special_cases, speed, backward_special, backward_big)
    compiled = lambda specs, track: [build.Compiled(spec, 100, "") for spec in specs]  # noqa: E731
    monkeypatch.setattr(verify_run, "compile_all", compiled)
    monkeypatch.setattr(verify_run.cache, "entry", lambda spec: Outcome_nvrtc)
    return fake


class Outcome_nvrtc:  # noqa: N801 - stands for a cache entry
    nvrtc = (12, 9)


def test_cpu_engine_passes_a_case_of_every_group() -> None:
    groups = {case.group: case for case in reversed(CPU_SIZED)}
    for case in groups.values():
        outcome = on_cpu.run_case(case)
        assert outcome.passed, str(outcome)
        assert 0 <= outcome.ratio <= 1


def test_a_wrong_result_fails_and_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        result = numpy_gpu.attention(*arguments, **options)
        out = result[0] if isinstance(result, tuple) else result
        out[0, 1, 7, 3] += 1
        return result

    monkeypatch.setattr(on_cpu, "attention", wrong)
    outcome = on_cpu.run_case(replace(BASE, group="x", q_len=20, k_len=20))
    assert not outcome.passed
    assert "worst out at batch 0, head 1, row 7" in outcome.problem


def test_changing_bits_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def restless(*arguments: Any, **options: Any) -> Any:
        result = numpy_gpu.attention(*arguments, **options)
        calls.append(1)
        if len(calls) == 2:
            result[0, 0, 0, 0] = np.nextafter(result[0, 0, 0, 0], result.dtype.type(9))
        return result

    monkeypatch.setattr(on_cpu, "attention", restless)
    outcome = on_cpu.run_case(replace(BASE, group="x", q_len=20, k_len=20, dtype="float16"))
    assert outcome.problem == "the second call gave other bits"


def test_variants_hold_the_ladder_every_row_and_the_default() -> None:
    case = replace(BASE, group="x", head_dim=128)
    found = variants(case, case.masks(), "sm_90", 132)
    names = [variant.name for variant in found]
    assert names[0] == "naive"
    assert names[-1] == DEFAULT
    assert {f"sm80 stages {n}" for n in (1, 2, 3)} | {"sm80 stages 1, shared K/V"} <= set(names)
    specs = {variant.spec for variant in found}
    rows = {row.spec("sm_90", "bfloat16", 128) for row in table.TABLE if row.serves("sm_90", "bfloat16", 128)}
    ratio, pairs = case.q_heads // case.kv_heads, {spec for spec in rows if spec.pack and spec.warps == 12}
    assert {spec for spec in rows - pairs if ratio % spec.heads == 0} <= specs
    paired = replace(case, q_heads=2 * case.kv_heads)
    for one, wanted in ((paired, rows - pairs), (replace(paired, q_len=20), rows)):
        assert wanted <= {variant.spec for variant in variants(one, one.masks(), "sm_90", 132)}
    assert len(names) == len(set(names))


@pytest.mark.parametrize("arch", archs.ARCHES)
@pytest.mark.parametrize("head_dim", [8, 64, 256, 264, 1024])
def test_every_architecture_has_a_ladder(arch: str, head_dim: int) -> None:
    names = [name for name, _ in ladder(replace(BASE, group="x", head_dim=head_dim), arch)]
    assert names[0] == "naive"
    assert any("stages 2" in name for name in names)


def test_wgmma_kernels_are_not_asked_for_what_they_do_not_serve() -> None:
    case = replace(BASE, group="x", batch=2)
    assert serves("sm90", case)
    assert not serves("sm90", replace(case, head_dim=264))
    assert not serves("sm90", replace(case, options=(BROADCAST,)))
    assert not serves("sm90", replace(case, options=(REVERSED,)))
    assert serves("sm80", replace(case, options=(REVERSED,)))


def test_gpu_run_reports_every_kernel(gpu: Any) -> None:
    found = verify_run.verify(Settings(cases=(SMALL,), sweep=0, timing=False, repeats=2))
    assert found.passed, found.failures
    assert found.where == "GPU kernels for sm_90"
    assert found.header["nvrtc"] == "12.9"
    assert {line["kernel"] for line in found.lines()} >= {"naive", "sm80 stages 2", DEFAULT}
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.in_turn(4)
def test_gpu_run_filters_kernels(gpu: Any) -> None:
    found = verify_run.verify(Settings(cases=(SMALL,), sweep=0, timing=False, kernels=("naive",)))
    assert {outcome.kernel for outcome in found.outcomes} == {"naive", "bwd naive"}
    found = verify_run.verify(Settings(cases=(SMALL,), sweep=0, timing=False, kernels=("bwd",), repeats=2))
    assert {outcome.kernel.partition(" ")[0] for outcome in found.outcomes} == {"bwd"}
    found = verify_run.verify(
        Settings(cases=(SMALL,), sweep=0, timing=False, sources=("attention_bwd_sm80.cu",))
    )
    assert {source for outcome in found.outcomes for source in outcome.sources} == {
        "attention_bwd_delta.cu",
        "attention_bwd_sm80.cu",
    }
    with pytest.raises(ValueError, match="verify: no case's id or group holds nothing; widen --case"):
        verify_run.verify(Settings(cases=("nothing",), sweep=0))
    with pytest.raises(ValueError, match="verify: no kernel's name holds none; widen --kernel"):
        verify_run.verify(Settings(kernels=("none",), sweep=0))


def test_timed_problems_are_chosen_by_their_names_too(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(target: Any, workloads: Any, track: Any) -> list[speed.Timed]:
        asked.extend(one.name for one in workloads)
        return [speed.Timed("naive", one.name, 0.5, 1.0) for one in workloads]

    monkeypatch.setattr(speed, "run", run)
    found = verify_run.verify(Settings(cases=("Causal, S 4096",), sweep=0))
    assert asked == ["causal, S 4096, D 128"]
    assert (found.passed, found.outcomes) == (True, [])
    asked.clear()
    verify_run.verify(Settings(cases=(SMALL,), sweep=0))
    assert asked == []


def test_gpu_failures_are_counted_and_the_run_goes_on(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments: Any, config: Any = None, **options: Any) -> Any:
        if config is not None and config.kernel == "naive":
            raise RuntimeError("launch failed")
        return numpy_gpu.attention(*arguments, **options)

    monkeypatch.setattr(on_gpu, "attention", refusing)
    found = verify_run.verify(Settings(cases=(SMALL,), sweep=0, timing=False))
    assert not found.passed
    assert found.failures == [f"naive: {SMALL}: RuntimeError: launch failed"]
    assert "FAIL" in verify_report.table(found.lines())
    assert len(found.outcomes) > 4


def test_a_broken_device_ends_the_run(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(*arguments: Any, **options: Any) -> Any:
        numpy_gpu.Device.broken = True
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(on_gpu, "attention", breaking)
    found = verify_run.verify(Settings(sweep=0, timing=True, cases=(SMALL,)))
    assert len(found.outcomes) == 1
    assert "the device is unusable" in found.failures[0]


def test_special_cases_pass_on_small_stand_ins(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = on_gpu.Target("sm_90", 132, ("naive",), 2)
    for case in special_cases.CASES:
        small = replace(case, q_len=min(case.q_len, 900), k_len=min(case.k_len, 900), head_dim=16)
        outcomes = list(on_gpu.run_case(small, target))
        assert [outcome.passed for outcome in outcomes] == [True], str(outcomes[0])
    monkeypatch.setattr(numpy_gpu.Device, "mem_info", (1 << 30, 1 << 30))
    (skipped,) = on_gpu.run_case(special_cases.CASES[0], target)
    assert skipped.skipped == "skipped: needs 20 GiB of free device memory"
    assert not skipped.passed
    assert not skipped.problem


def test_special_big_case_is_big() -> None:
    big = special_cases.CASES[0]
    assert big.batch * big.q_heads * big.q_len * big.head_dim > 2**31
    other = special_cases.CASES[1]
    assert other.batch * other.kv_heads * other.k_len * other.head_dim > 2**31


def test_unwritten_rows_of_big_tensors_are_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*arguments: Any, out: Any, **options: Any) -> Any:
        keep = out[0, 1, 400:410].copy()
        numpy_gpu.attention(*arguments, out=np.asarray(out))
        out[0, 1, 400:410] = keep

    monkeypatch.setattr(special_cases, "attention", forgetful)
    small = replace(special_cases.CASES[0], q_len=900, head_dim=16)
    (outcome,) = on_gpu.run_case(small, on_gpu.Target("sm_90", 132, ("naive",), 2))
    assert outcome.problem == "160 elements were not written"


def test_timing_compares_kernels(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload("tiny", 1, (2, 2, 16), lambda: tune_free_mask(), "")
    monkeypatch.setattr(timing, "FLUSH_BYTES", 64)
    found = speed.run(on_gpu.Target("sm_90", 132), [workload], with_flex=False)
    assert all(one.passed for one in found), [one.problem for one in found]
    naive = next(one for one in found if one.kernel == "naive")
    assert naive.over_naive == 1.0
    assert naive.over_flex is None
    assert "tiny" in verify_report.table(verify_report.lines([], found))


def tune_free_mask() -> Any:
    from omnicupy.masks.constructors import causal

    return causal(64)


def test_report_marks_skipped_and_infinite() -> None:
    case = replace(BASE, group="heads")
    outcomes = [
        Outcome(case, "naive", ("a.cu",), 0.5),
        Outcome(case, "naive", ("a.cu",), 0.0, skipped="skipped: memory"),
    ]
    outcomes.append(Outcome(case, "other", ("a.cu",), float("inf"), "NaN"))
    first, second = verify_report.lines(outcomes)
    assert (first["result"], first["count"], first["ratio"]) == ("PASS, 1 skipped", 2, 0.5)
    assert (second["result"], second["ratio"]) == ("FAIL", "inf")


def test_compile_all_reports_errors_spills_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    good = AttnSpec(arch="sm_80", kernel="naive", dtype="float16", head_dim=64, br=64, bc=64)
    entries = {
        64: type("E", (), {"spill_bytes": 0, "warnings": (), "registers": 40}),
        80: type("E", (), {"spill_bytes": 8, "warnings": ("C7510",), "registers": 255}),
    }

    def entry(spec: AttnSpec) -> Any:
        if spec.head_dim == 96:
            raise errors.CompileError(str(spec), "error: x")
        return entries[spec.head_dim]

    monkeypatch.setattr(build.cache, "entry", entry)
    found = build.compile_all([replace(good, head_dim=d) for d in (64, 80, 96)])
    assert {one.spec.head_dim: one.problem.splitlines()[0] if one.problem else "" for one in found}[64] == ""
    problems = {one.spec.head_dim: one.problem for one in found}
    assert problems[80] == "8 bytes of spills; C7510"
    assert "NVRTC failed" in problems[96]


def test_every_spec_is_the_product_of_the_table() -> None:
    specs = list(table.every_spec())
    assert len(specs) == len(set(specs))
    assert set(table.rows()) <= set(specs)


def test_a_hanging_kernel_is_named() -> None:
    said: list[str] = []
    with Watchdog(0.02, said.append) as watchdog:
        watchdog.step("sm80: slow case")
        deadline = time.monotonic() + 5
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == ["FAIL  sm80: slow case: still running after 0 s; the process ends here"]


def test_a_run_that_moves_on_is_left_alone() -> None:
    said: list[str] = []
    with Watchdog(30, said.append) as watchdog:
        watchdog.step("quick")
    assert said == []


def test_naive_kernels_are_called_twice_and_once_on_large_cases() -> None:
    target = on_gpu.Target("sm_90", 132)
    small = replace(BASE, group="x")
    large = replace(small, q_len=4096, k_len=4096, q_heads=8, kv_heads=8)
    assert small.work < on_gpu.NAIVE_WORK < large.work
    for case, calls in ((small, 2), (large, 1)):
        of = {variant.name: variant for variant in variants(case, case.masks(), "sm_90", 132)}
        assert on_gpu._repeats(target, of["naive"], case) == calls
        assert on_gpu._repeats(target, of["sm80 stages 2"], case) == on_gpu.REPEATS
