"""The documents name files that exist, and all folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Where a path that a document names may begin; docs/tries.md tells of files that have gone, too.
BASES = ("", "omnicupy", "kernels", "kernels/omni", "tests", "docs", "docs/results")
FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|cu|cuh|json|toml|md|yml|txt))`")


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - {"docs/tries.md"}))
def test_files_that_a_document_names_exist(name: str) -> None:
    named = set(FILE.findall((ROOT / name).read_text()))
    every = {
        path.name for base in ("omnicupy", "kernels", "tests", "docs", ".ci", ".") for path in _files(base)
    }
    missing = [one for one in named if not _exists(one) and not ("/" not in one and one in every)]
    assert not missing, f"{name} names {', '.join(sorted(missing))}, which do not exist"


def test_contributors_are_told_of_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "omnicupy").rglob("__init__.py")}
    missing = [
        f"{one}/" for one in sorted(folders) if f"`{one}/`" not in text and str(one) != "omnicupy/tools"
    ]
    assert missing == []
    files = sorted(path.name for path in (ROOT / "omnicupy").glob("*.py"))
    assert [name for name in files if f"`omnicupy/{name}`" not in text] == ["__main__.py"]


def _files(base: str) -> list[Path]:
    return (
        [path for path in (ROOT / base).rglob("*.*") if ".git" not in path.parts]
        if base != "."
        else list(ROOT.iterdir())
    )


def _exists(path: str) -> bool:
    return any((ROOT / base / path).exists() for base in BASES)
