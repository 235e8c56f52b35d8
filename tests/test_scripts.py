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


def programs() -> list[tuple[str, ast.Module]]:
    """(file and line, the program): scripts, and each string that is a program and imports the library."""
    found = []
    for file in FILES:
        if file.parent.name == ".ci":
            found.append((file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())))
        for node in ast.walk(ast.parse(file.read_text())):
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


@pytest.mark.parametrize(
    ("where", "program"), programs(), ids=lambda one: one if isinstance(one, str) else ""
)
def test_what_it_imports_is_there(where: str, program: ast.Module) -> None:
    assert missing(program) == [], where


def test_the_programs_are_found() -> None:
    files = {where.rstrip("0123456789") for where, _ in programs()}
    assert {".ci/counters.py", ".ci/counters.py:", "tests/torch/test_attention.py:"} <= files
