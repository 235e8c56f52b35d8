"""Each script of `.ci` says how it is called: `--help`, and a call that cannot be meant, print its docstring."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CI = ROOT / ".ci"
SCRIPTS = sorted(path for path in CI.glob("*.py") if path.stem != "usage")


@pytest.fixture
def words() -> Callable[..., list[str]]:
    spec = importlib.util.spec_from_file_location("usage", CI / "usage.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., list[str]] = module.words
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_its_words_by_its_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert f".ci/{path.name}" in (ast.get_docstring(tree) or "")
    (block,) = (one for one in tree.body if isinstance(one, ast.If))
    calls = [one for one in ast.walk(block) if isinstance(one, ast.Call) and ast.unparse(one.func) == "words"]
    assert [ast.unparse(one.args[0]) for one in calls] == ["__doc__"]
    assert "sys.argv" not in ast.unparse(block)


def test_words_are_taken_refused_and_explained(
    words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(*given: str, **how: Any) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["x.py", *given])
        return words("What it does.\n", **how)

    assert called() == []
    assert called("a", "--help", least=2) == ["a", "--help"]
    assert called("sm90", "64", known=("sm90",)) == ["sm90", "64"]
    for asked in ("-h", "--help"):
        with pytest.raises(SystemExit) as stopped:
            called(asked, least=2)
        assert (stopped.value.code, capsys.readouterr().out) == (0, "What it does.\n")
    with pytest.raises(SystemExit, match=r"^What it does\.\n\nexpected at least 2 arguments, got 1$"):
        called("a", least=2)
    with pytest.raises(SystemExit, match=r"^What it does\.\n\nexpected sm80, sm90, numbers, got 'sm9'$"):
        called("sm80", "sm9", known=("sm80", "sm90"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("compare.py", "../nowhere", "5"),
            "compare.py: expected another checkout, with a cli.py, got ../nowhere",
        ),
        (
            ("same_code.py", "../nowhere"),
            "same_code.py: expected another checkout, with a folder kernels, got ../no",
        ),
        (
            ("mutate.py", "no fault has this"),
            "mutate.py: expected a word of a fault's file or text, got 'no fault ha",
        ),
        (("counters.py", "out.json"), "expected at least 2 arguments, got 1"),
    ],
)
def test_a_call_that_cannot_be_meant_is_a_line(given: tuple[str, ...], said: str) -> None:
    command = [sys.executable, str(CI / given[0]), *given[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
