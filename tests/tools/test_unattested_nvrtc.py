"""`env` and `verify` say once that kernels of this NVRTC were never verified on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnicupy.jit import nvrtc
from omnicupy.tools.cli.main import main

NOTE = "Kernels of NVRTC 14.3 were not verified for this release"
COMMANDS = (("env",), ("verify", "--case", "d64-bf16-causal-q333k"))


def _run(*arguments: str) -> str:
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_what_is_attested_is_what_the_attestation_says() -> None:
    attestation = json.loads((Path(__file__).parents[1] / "attestation.json").read_text())
    assert nvrtc.ATTESTED
    for entry in attestation["sources"].values():
        assert set(nvrtc.ATTESTED) <= {run["nvrtc"] for run in entry["runs"]}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_it_is_said_once(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: tuple(map(int, nvrtc.ATTESTED[0].split("."))))
    assert "were not verified" not in _run(*command)
    monkeypatch.setattr(nvrtc, "version", lambda: (14, 3))
    assert _run(*command).count(NOTE) == 1
    content = json.loads(_run(*command, "--json"))
    assert content["nvrtc"] == "14.3"
    assert content["nvrtc_attested"] is False


def test_without_nvrtc_nothing_is_said() -> None:
    assert nvrtc.unattested("") == ""
    assert all(nvrtc.unattested(known) == "" for known in nvrtc.ATTESTED)
