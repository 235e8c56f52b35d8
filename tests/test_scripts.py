"""Python that no test runs without a GPU, scripts and text for other processes: what it imports is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file
    for place in (".ci", "omnicupy", "tests")
    for file in sorted((ROOT / place).rglob("*.py"))
    if file != Path(__file__)
]


def programs(file: Path) -> list[tuple[str, ast.Module]]:
    """(file and line, the program): scripts, and each string that is a program and imports the library."""
    found, tree = [], ast.parse(file.read_text())
    if file.parent.name == ".ci":
        found.append((file.relative_to(ROOT).as_posix(), tree))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        if "import" not in node.value or "omnicupy" not in node.value:
            continue
        try:
            program = ast.parse(node.value)
        except SyntaxError:  # words
            continue
        found.append((f"{file.relative_to(ROOT).as_posix()}:{node.lineno}", program))
    return found


def missing(program: ast.Module) -> list[str]:
    """What it imports of the library that is not there. Modules that need a library that is missing are there."""
    names = []
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "omnicupy":
            names += [(node.module, one.name) for one in node.names]
        elif isinstance(node, ast.Import):
            names += [(one.name, "") for one in node.names if one.name.split(".")[0] == "omnicupy"]
    return [f"{module} {name}".rstrip() for module, name in names if not _is_there(module, name)]


def _is_there(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
        return not name or hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError as error:
        return (error.name or "").split(".")[0] != "omnicupy"


def test_a_missing_name_is_found() -> None:
    program = ast.parse(
        "import omnicupy.nowhere\nfrom omnicupy import api, nothing\nfrom omnicupy.api import no\n"
    )
    assert missing(program) == ["omnicupy.nowhere", "omnicupy nothing", "omnicupy.api no"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_it_imports_is_there(file: Path) -> None:
    assert not {where: missing(program) for where, program in programs(file) if missing(program)}


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (".ci/counters.py", {".ci/counters.py", ".ci/counters.py:"}),
        ("tests/torch/test_attention.py", {"tests/torch/test_attention.py:"}),
    ],
)
def test_the_programs_are_found(file: str, found: set[str]) -> None:
    assert {where.rstrip("0123456789") for where, _ in programs(ROOT / file)} == found
