""".ci/mutate.py: every fault of its list can be put into the code as it is, and several are tried at once."""

from __future__ import annotations

import ast
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / ".ci" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


MUTATE = _loaded()


@pytest.mark.parametrize("fault", MUTATE.FAULTS, ids=range(len(MUTATE.FAULTS)))
def test_a_fault_is_a_change_of_the_code_that_stands_there_once(fault: Any) -> None:
    changed = MUTATE.text_with(fault)
    before = (ROOT / "omnicupy" / fault.file).read_text()
    if fault.file.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(before))
    assert changed != before
    assert all((ROOT / test).is_file() for test in fault.tests.split())


def _fault(number: int) -> Any:
    return MUTATE.Fault(f"file{number}.py", f"text {number}", "", f"tests/test_{number}.py")


@pytest.fixture
def no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MUTATE, "copy_of_tree", lambda copy: copy)


@pytest.mark.usefixtures("no_tree")
def test_faults_are_tried_at_once_in_copies_of_their_own_and_printed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [_fault(number) for number in range(6)]
    meet = threading.Barrier(3, timeout=60)
    together: list[Path] = []
    shares: list[list[str]] = []

    def is_found(fault: Any, copy: Path) -> bool:
        together.append(copy)
        meet.wait()
        return fault is not faults[4]

    def passes(copy: Path, tests: list[str]) -> bool:
        shares.append(tests)
        return False

    monkeypatch.setattr(MUTATE, "is_found", is_found)
    monkeypatch.setattr(MUTATE, "_failed", passes)
    assert MUTATE.survivors_of(faults, tmp_path, 3) == 1
    assert sorted(test for share in shares for test in share) == [fault.tests for fault in faults]
    assert set(together[:3]) == set(together[3:]) == {tmp_path / name for name in "012"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["SURVIVES" if number == 4 else "found", f"file{number}.py", "text", str(number)]
        for number in range(6)
    ]


@pytest.mark.usefixtures("no_tree")
def test_a_test_that_fails_without_a_fault_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MUTATE, "_failed", lambda copy, tests: "tests/test_1.py" in tests)
    with pytest.raises(RuntimeError, match="fail already without any fault"):
        MUTATE.survivors_of([_fault(0), _fault(1)], tmp_path, 2)


def test_cases_that_take_turns_elsewhere_all_look_for_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> Any:
        assert command[-2:] == ["--every-case", "tests/test_1.py"]
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(MUTATE.subprocess, "run", run)
    assert MUTATE._failed(tmp_path, ["tests/test_1.py"])


def test_a_copy_has_what_tests_need(tmp_path: Path) -> None:
    copy = MUTATE.copy_of_tree(tmp_path / "0")
    assert sorted(path.name for path in copy.iterdir()) == sorted(MUTATE.COPIED)
    fault = MUTATE.FAULTS[0]
    assert MUTATE.text_with(fault, copy) == MUTATE.text_with(fault)
