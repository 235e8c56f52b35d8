"""`.ci/attest.py`: parts side by side, joined into one file, and what is left by one process."""

from __future__ import annotations

import importlib.util
import json
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
    target = _target(tmp_path)
    assert attest.main(str(target), "3", "50", "--", "--commit", "a" * 40) == 0
    cases = json.loads(target.read_text())["sources"][SOURCE]["cases"]
    assert set(cases) == {"case 1/3", "case 2/3", "case 3/3", "case alone"}
    assert "2: exit status 0: done 2/3" in capsys.readouterr().out


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
