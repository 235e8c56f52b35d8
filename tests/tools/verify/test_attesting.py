"""Runs that attest, on a fake GPU: what they write, when they write it, and what they leave for the next run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy_gpu
import pytest

from omnicupy.errors import UnsupportedError
from omnicupy.jit import build, cache, nvrtc
from omnicupy.tools.verify import (
    attestation,
    attesting,
    backward_big,
    backward_special,
    on_gpu,
    special_cases,
    speed,
)
from omnicupy.tools.verify import run as verify_run
from omnicupy.tools.verify.cases import FIXED
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.plan import Part
from omnicupy.tools.verify.run import Settings
from omnicupy.tools.verify.source_digest import digest

pytestmark = pytest.mark.in_turn(3)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = tuple(
    case for case in FIXED if case.group == "head dims" and case.id.startswith(("d8-", "d72-", "d80-"))
)
NAIVE, SM80, SM90 = "attention_naive.cu", "attention_fwd_sm80.cu", "attention_fwd_sm90.cu"


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where to attest, on a fake GPU with four planned cases and no git."""
    numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, on_gpu, special_cases, speed, backward_special, backward_big)
    compiled = lambda specs, track: [build.Compiled(spec, 100, "") for spec in specs]  # noqa: E731
    monkeypatch.setattr(verify_run, "compile_all", compiled)
    monkeypatch.setattr(verify_run.cache, "entry", lambda spec: type("Entry", (), {"nvrtc": (12, 9)}))
    monkeypatch.setattr(verify_run, "every_case", lambda sweep: SMALL)
    monkeypatch.setattr(attestation, "planned", lambda name: {case.id for case in SMALL})
    monkeypatch.setattr(attesting, "planned", lambda name: {case.id for case in SMALL})
    monkeypatch.setattr(attesting.environment, "commit", lambda apart_from=None: "")
    monkeypatch.setattr(nvrtc, "ATTESTED", ("12.9",))
    return tmp_path / "attestation.json"


def _verify(path: Path, **more: Any) -> verify_run.Report:
    settings = Settings(sweep=0, timing=False, attest=path, repeats=2, commit=COMMIT, **more)
    return verify_run.verify(settings)


def test_there_are_cases() -> None:
    assert len(SMALL) == 5


def test_a_run_writes_the_file(path: Path) -> None:
    found = _verify(path)
    assert found.passed, found.failures
    content = json.loads(path.read_text())["sources"][SM80]
    assert content["digest"] == digest(SM80)
    assert set(content["cases"]) == {case.id for case in SMALL}
    assert content["runs"] == [
        {
            "nvrtc": "12.9",
            "part": "1/1",
            "cases": 5,
            "device": "Fake H100",
            "compute_capability": "90",
            "driver": "13000",
            "commit": COMMIT,
        }
    ]
    assert not set(attestation.stale(path)) & {NAIVE, SM80, SM90}


def test_parts_and_sources_add_up(path: Path) -> None:
    found = _verify(path, sources=(SM80,), part=Part(1, 2))
    assert {source for one in found.outcomes for source in one.sources} == {SM80}
    assert attestation.stale(path)[SM80] == "NVRTC 12.9: all of part 2 of 2 are missing"
    assert attestation.stale(path)[NAIVE] == "no entry"
    _verify(path, sources=(SM80, NAIVE), part=Part(2, 2))
    assert SM80 not in attestation.stale(path)
    assert attestation.stale(path)[NAIVE] == "NVRTC 12.9: all of part 1 of 2 are missing"


def test_what_an_interrupted_run_had_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    run_case = on_gpu.run_case

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return run_case(*arguments)

    monkeypatch.setattr(attesting, "WRITE_EVERY", 2)
    monkeypatch.setattr(on_gpu, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _verify(path, sources=(SM80,))
    assert attestation.stale(path)[SM80] == "NVRTC 12.9: 2 of 5 cases are missing"
    found = _verify(path, sources=(SM80,), resume=True)
    assert {one.case.id for one in found.outcomes} == {case.id for case in SMALL[3:]}
    assert "2 cases that" in found.where
    assert SM80 not in attestation.stale(path)
    found = _verify(path, sources=(SM80,), resume=True)
    assert (found.passed, found.outcomes) == (True, [])


def test_a_run_writes_while_it_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that hangs ends the process, so nothing is written at the end then."""
    held = []
    run_case = on_gpu.run_case

    def looking(*arguments: Any) -> Any:
        held.append(len(json.loads(path.read_text())["sources"][SM80]["cases"]) if path.exists() else 0)
        return run_case(*arguments)

    monkeypatch.setattr(attesting, "WRITE_EVERY", 2)
    monkeypatch.setattr(on_gpu, "run_case", looking)
    _verify(path, sources=(SM80,))
    assert held == [0, 0, 2, 2, 4]


def test_a_case_that_fails_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments: Any, config: Any = None, **options: Any) -> Any:
        if config is not None and config.kernel == "sm80" and arguments[0].shape[3] == 72:
            raise RuntimeError("launch failed")
        return numpy_gpu.attention(*arguments, **options)

    monkeypatch.setattr(on_gpu, "attention", refusing)
    found = _verify(path)
    assert not found.passed
    assert attestation.stale(path)[SM80] == "NVRTC 12.9: 2 of 5 cases are missing"
    assert NAIVE not in attestation.stale(path)


def test_nothing_is_written_where_a_kernel_spills_or_is_wrong_when_timed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [speed.Timed("sm80", "full", 9.0, problem="error 9")]
    monkeypatch.setattr(speed, "run", lambda target, workloads, track: wrong)
    assert not _verify(path).passed
    monkeypatch.setattr(speed, "run", lambda target, workloads, track: [])
    spilled = lambda specs, track: [build.Compiled(spec, 0, "8 bytes of spills") for spec in specs]  # noqa: E731
    monkeypatch.setattr(verify_run, "compile_all", spilled)
    assert not _verify(path).passed
    assert not path.exists()


def test_a_broken_device_leaves_its_case_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _verify(path, sources=(SM80,))

    def breaking(*arguments: Any, **options: Any) -> Any:
        numpy_gpu.Device.broken = True
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(on_gpu, "attention", breaking)
    found = _verify(path, sources=(SM80,), part=Part(1, 1))
    assert [type(one) for one in found.outcomes] == [Outcome]
    assert attestation.stale(path)[SM80] == "NVRTC 12.9: 5 of 5 cases are missing"


def test_no_fewer_kernels_than_a_source_has_can_be_attested(path: Path) -> None:
    for fewer in ({"cases": ("x",)}, {"kernels": ("sm80 stages 1",)}):
        with pytest.raises(ValueError, match="--attest takes all cases of a source and all kernels of it"):
            _verify(path, **fewer)


def _two_versions(monkeypatch: pytest.MonkeyPatch, versions: tuple[str, str] = ("13.0", "12.9")) -> Any:
    """The kernels of two NVRTC; those that are taken decide what entries say. Which were asked for is in `taken`."""
    first, second = (tuple(int(part) for part in one.split(".")) for one in versions)
    folder = SimpleNamespace(nvrtc=second)
    taken: list[Any] = []
    monkeypatch.setattr(cache, "current", lambda: cache.Kernels(None, 1))
    monkeypatch.setattr(cache, "kernels_of", lambda path: cache.Kernels(folder, 2))
    monkeypatch.setattr(cache, "take", lambda kernels: taken.append(kernels.override is folder))

    def entry(spec: Any) -> Any:
        return SimpleNamespace(nvrtc=second if taken and taken[-1] else first)

    monkeypatch.setattr(cache, "entry", entry)
    monkeypatch.setattr(nvrtc, "ATTESTED", versions)
    return taken


def test_two_versions_are_attested_on_the_same_inputs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = _two_versions(monkeypatch)
    made = []
    inputs_of = on_gpu.inputs.inputs_of
    monkeypatch.setattr(on_gpu.inputs, "inputs_of", lambda *given: made.append(given) or inputs_of(*given))
    found = _verify(path, sources=(SM80,), also_cubins=Path("folder"))
    assert found.passed, found.failures
    assert "and NVRTC 12.9's" in found.where
    assert len(made) == len(SMALL)
    content = json.loads(path.read_text())["sources"][SM80]
    assert all(set(ratios) == {"13.0", "12.9"} for ratios in content["cases"].values())
    assert [(one["nvrtc"], one["cases"]) for one in content["runs"]] == [("13.0", 5), ("12.9", 5)]
    assert SM80 not in attestation.stale(path)
    assert taken[-1] is False  # what was taken before is taken again


def test_a_fault_of_one_version_is_that_version_s(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = _two_versions(monkeypatch)

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = numpy_gpu.attention(*arguments, **options)
        result[0][0, 0, 0, 0] += taken[-1]
        return result

    monkeypatch.setattr(on_gpu, "attention", wrong)
    found = _verify(path, sources=(SM80,), also_cubins=Path("folder"))
    assert not found.passed
    cases = json.loads(path.read_text())["sources"][SM80]["cases"]
    assert all(set(ratios) == {"13.0"} for ratios in cases.values())
    assert attestation.stale(path)[SM80] == "NVRTC 12.9: 5 of 5 cases are missing"
    monkeypatch.setattr(on_gpu, "attention", numpy_gpu.attention)
    ran: list[bool] = []
    monkeypatch.setattr(
        on_gpu, "attention", lambda *a, **o: ran.append(taken[-1]) or numpy_gpu.attention(*a, **o)
    )
    assert _verify(path, sources=(SM80,), also_cubins=Path("folder"), resume=True).passed
    assert set(ran) == {True}  # the first version's cases were there
    assert SM80 not in attestation.stale(path)


def test_a_run_that_finds_nothing_left_compares_the_folders_not_the_compiler_of_this_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_versions(monkeypatch)
    assert _verify(path, sources=(SM80,), also_cubins=Path("folder")).passed
    first = cache.Kernels(SimpleNamespace(nvrtc=(13, 0)), 1)
    monkeypatch.setattr(cache, "current", lambda: first)
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    found = _verify(path, sources=(SM80,), also_cubins=Path("folder"), resume=True)
    assert found.passed
    assert found.nothing_left


def test_two_versions_must_be_two(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _two_versions(monkeypatch, ("12.9", "12.9"))
    with pytest.raises(ValueError, match=r"expected kernels of another NVRTC than 12\.9, got the same"):
        _verify(path, sources=(SM80,), also_cubins=Path("folder"))


def test_a_kernel_that_the_other_folder_lacks_ends_the_run_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = _two_versions(monkeypatch)
    entry = cache.entry

    def lacking(spec: Any) -> Any:
        if taken and taken[-1]:
            raise UnsupportedError("its cubin is missing")
        return entry(spec)

    monkeypatch.setattr(cache, "entry", lacking)
    with pytest.raises(UnsupportedError, match="its cubin is missing"):
        _verify(path, sources=(SM80,), also_cubins=Path("folder"))
    assert taken[-1] is False
    assert not path.exists()


def test_cases_that_need_most_of_the_memory_are_left_for_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tuple(case for case in special_cases.CASES if case.tag.startswith("big"))
    monkeypatch.setattr(verify_run, "every_case", lambda sweep: (*SMALL, *big))
    settings = Settings(sweep=0, timing=False)
    assert {case.id for case in verify_run.gpu_cases(settings)} == {case.id for case in (*SMALL, *big)}
    assert verify_run.gpu_cases(replace(settings, beside=True)) == list(SMALL)
    assert {case.tag for case in backward_special.CASES if case.tag.startswith("big")} <= set(
        special_cases.BIG
    )


def test_few_cases_are_written_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attesting, "WRITE_AGAIN_S", -1.0)
    writes = []
    monkeypatch.setattr(attestation.Record, "write", lambda self: writes.append(self))
    _verify(path, sources=(SM80,))
    assert len(writes) == len(SMALL)
