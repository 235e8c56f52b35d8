"""What a verification run is asked for: without a GPU, without NVRTC, and the commit that an attestation names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from omnicupy import errors
from omnicupy.tools.verify import attesting
from omnicupy.tools.verify import run as verify_run
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.run import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_without_a_gpu_cases_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_run.environment, "has_gpu", lambda: False)
    found = verify_run.verify(Settings(cases=("d64-bf16-causal-q1",)))
    assert found.passed
    assert found.where.startswith("the CPU engine")
    assert {line["kernel"] for line in found.lines()} == {"CPU engine", "CPU engine, gradients"}
    with pytest.raises(ValueError, match="--attest, --cubins, --kernel, --source and --part need a GPU"):
        verify_run.verify(Settings(attest=Path("x")))


@pytest.mark.parametrize(
    ("known", "given", "outcome"),
    [
        ("", COMMIT, COMMIT),
        ("", COMMIT.upper(), COMMIT),
        (COMMIT, None, COMMIT),
        (COMMIT, COMMIT, COMMIT),
        ("", None, "there is no git here that tells; give it as --commit"),
        ("", "abc", "--commit: expected the 40 hexadecimal digits of a commit, got 'abc'"),
        (f"{COMMIT}+", COMMIT, f"files differ from {COMMIT}; commit them"),
        (f"{COMMIT}+", None, f"files differ from {COMMIT}; commit them"),
        (COMMIT, "1" * 40, f"--commit: expected {COMMIT}, which is checked out here, got {'1' * 40}"),
    ],
)
def test_an_attestation_names_one_clean_commit(
    known: str, given: str | None, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attesting.environment, "commit", lambda apart_from=None: known)
    file = Path("tests/attestation.json")
    if re.fullmatch("[0-9a-f]{40}", outcome):
        assert attesting.attested_commit(file, given) == outcome
        return
    with pytest.raises(ValueError, match=re.escape(outcome)):
        attesting.attested_commit(file, given)


def test_without_nvrtc_that_is_said_and_no_kernel_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise errors.UnsupportedError("no NVRTC library could be loaded")

    monkeypatch.setattr(verify_run.environment, "has_gpu", lambda: False)
    monkeypatch.setattr(verify_run.nvrtc, "version", missing)
    monkeypatch.setattr(
        verify_run.on_cpu, "run", lambda cases, track: [Outcome(cases[0], "CPU engine", (), 0.5)]
    )
    found = verify_run.verify(Settings())
    assert found.passed
    assert "no GPU and no NVRTC here, so none was compiled either" in verify_run.summary(found)
    with pytest.raises(errors.UnsupportedError):
        verify_run.verify(Settings(all_specs=True))
