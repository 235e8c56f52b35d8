"""`.ci/attest.py`: parts side by side, joined into one file, and what is left by one process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from omnicupy.tools.verify import attestation, source_digest

SOURCE = "attention_naive.cu"
# In place of `cli.py verify`: writes what the part's process would, or stops.
WORK = """
import json, sys
target, part = sys.argv[1], sys.argv[2]
if part == "slow":
    import time
    time.sleep(60)
content = json.load(open(target))
content["sources"]["{source}"]["cases"]["case " + part] = {{"13.0": 0.5}}
json.dump(content, open(target, "w"))
print("done", part)
"""


@pytest.fixture
def attest() -> ModuleType:
    path = Path(__file__).parents[1] / ".ci" / "attest.py"
    spec = importlib.util.spec_from_file_location("attest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _target(tmp_path: Path) -> Path:
    entry = {"digest": source_digest.digest(SOURCE), "kernels": [], "runs": [], "cases": {}}
    target = tmp_path / "attestation.json"
    target.write_text(json.dumps({"schema": attestation.SCHEMA, "sources": {SOURCE: entry}}))
    return target


def test_parts_are_joined_and_the_rest_runs_alone(
    tmp_path: Path, attest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work.py"
    work.write_text(WORK.format(source=SOURCE))

    def command(target: Path, options: list[str]) -> list[str]:
        part = options[1] if "--part" in options else "alone"
        return [sys.executable, str(work), str(target), part]

    monkeypatch.setattr(attest, "command", command)
    compiled = [sys.executable, "-c", "print('802 kernels')"]
    monkeypatch.setattr(attest, "compiling", lambda folder, options: compiled)
    target = _target(tmp_path)
    assert attest.main(str(target), "3", "50", "--", "--commit", "a" * 40) == 0
    cases = json.loads(target.read_text())["sources"][SOURCE]["cases"]
    assert set(cases) == {"case 1/3", "case 2/3", "case 3/3", "case alone"}
    said = capsys.readouterr().out
    assert "2: exit status 0: done 2/3" in said
    assert re.search(r"compiling: exit status 0 in \d+ s: 802 kernels", said)


def test_processes_are_dealt_out_to_gpus(
    tmp_path: Path, attest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, str] = {}
    say = [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"]
    monkeypatch.setattr(attest, "command", lambda target, options: say)
    monkeypatch.setattr(attest, "_last_line", lambda log: ran.setdefault(log.stem, log.read_text().strip()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    target = _target(tmp_path)
    for gpus, expected in (((), ["7"] * 3), (("--gpus", "2"), ["0", "1", "0"])):
        ran.clear()
        assert attest.main(str(target), "3", "50", *gpus, "--", "--cubins", "x") == 0
        assert [ran[name] for name in "123"] == expected


def test_options_of_verify_stand_behind_two_dashes(tmp_path: Path, attest: ModuleType) -> None:
    said = "expected -- ahead of verify's options, got '--mps --cubins x'"
    with pytest.raises(ValueError, match=said):
        attest.main(str(_target(tmp_path)), "3", "50", "--mps", "--cubins", "x")


def test_what_parts_wrote_is_kept_when_the_time_is_over(
    tmp_path: Path, attest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work.py"
    work.write_text(WORK.format(source=SOURCE))

    def command(target: Path, options: list[str]) -> list[str]:
        assert "--beside" in options  # nothing runs alone any more
        return [sys.executable, str(work), str(target), "slow" if options[1] == "1/2" else options[1]]

    monkeypatch.setattr(attest, "command", command)
    monkeypatch.setattr(attest, "SAY_S", 0.5)
    target, begin = _target(tmp_path), time.monotonic()
    assert attest.main(str(target), "2", str(attest.RESERVE_S + 4), "--", "--cubins", "x") == 1
    assert time.monotonic() - begin < attest.RESERVE_S + 4
    assert set(json.loads(target.read_text())["sources"][SOURCE]["cases"]) == {"case 2/2"}
    said = capsys.readouterr().out
    assert "1: exit status -9: no output" in said
    assert re.search(r"\d s: 1: no output, 2: 1$", said, re.MULTILINE)  # of one case of one version
    assert "what needs the GPU alone is not run" in said


def test_what_is_compiled_first(tmp_path: Path, attest: ModuleType) -> None:
    line = attest.compiling(tmp_path, ["--commit", "a", "--source", SOURCE, "--also-cubins", "x"])
    assert line[2:] == ["verify", "--build", str(tmp_path / "kernels"), "--source", SOURCE]
    assert attest.compiling(tmp_path, ["--cubins", "folder"]) is None


def test_without_the_multi_process_service_it_is_said(
    tmp_path: Path, attest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attest, "MPS", "no-such-program")
    with attest.multi_process_service(True, tmp_path / "mps"):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert "no-such-program is not installed: the processes take turns" in capsys.readouterr().out
    program = tmp_path / "no-such-program"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -d ] || cat >> {tmp_path}/asked; echo "$1" >> {tmp_path}/asked\n'
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with attest.multi_process_service(True, tmp_path / "mps"):
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps" / "pipe")
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert (tmp_path / "asked").read_text().split() == ["-d", "quit"]


def test_processes_have_cupy_s_settings_unless_others_are_given(
    tmp_path: Path, attest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [sys.executable, "-c", "import os; print(repr(os.environ['CUPY_ACCELERATORS']))"]
    monkeypatch.delenv("CUPY_ACCELERATORS", raising=False)
    for expected in ("", "cub"):
        assert attest.run([(tmp_path / "log.txt", line)], time.monotonic() + 30) == [0]
        assert (tmp_path / "log.txt").read_text().strip() == repr(expected)
        monkeypatch.setenv("CUPY_ACCELERATORS", "cub")


def test_what_takes_too_long_is_stopped(tmp_path: Path, attest: ModuleType) -> None:
    work = tmp_path / "work.py"
    work.write_text(WORK.format(source=SOURCE))
    line = [sys.executable, str(work), str(_target(tmp_path)), "slow"]
    assert attest.run([(tmp_path / "log.txt", line)], time.monotonic() + 0.5) == [-9]


def test_the_command_resumes(attest: ModuleType) -> None:
    line = attest.command(Path("file.json"), ["--part", "1/2", "--commit", "x"])
    assert line[2:] == [
        "verify",
        "--attest",
        "file.json",
        "--resume",
        "--no-timing",
        "--part",
        "1/2",
        "--commit",
        "x",
    ]
