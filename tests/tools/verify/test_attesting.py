"""Runs that attest, on a fake GPU: what they write, when they write it, and what they leave for the next run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest

from omnicupy.jit import build, nvrtc
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
