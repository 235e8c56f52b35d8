"""The documents name files that exist, and all folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omnicupy.choose import backward_table, table

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
    missing += [
        f"kernels/omni/{path.name}/"
        for path in (ROOT / "kernels/omni").iterdir()
        if path.is_dir() and f"`kernels/omni/{path.name}/`" not in text
    ]
    assert missing == []
    files = sorted(path.name for path in (ROOT / "omnicupy").glob("*.py"))
    assert [name for name in files if f"`omnicupy/{name}`" not in text] == ["__main__.py"]


def _tiles_in_the_document(heading: str) -> list[list[str]]:
    """The cells of the lines of a table of docs/kernels.md, below its heading."""
    lines = (ROOT / "docs/kernels.md").read_text().split(heading)[1].splitlines()[2:]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[: next(i for i, line in enumerate(lines) if not line)]
    ]


def _bound(greatest: int) -> str:
    return "above 256" if greatest > 256 else f"up to {greatest}"


def _staged(tile: str, stages: int, least: int = 1) -> re.Pattern[str]:
    """The tile, and behind it its stages where they are more than `least`."""
    return re.compile(re.escape(tile) + (rf"[^|]*\b{stages} stages" if stages > least else ""))


@pytest.mark.parametrize("row", backward_table.TABLE, ids=lambda row: f"{row.kernel}-{row.head_dims[1]}")
def test_the_tiles_of_gradients_are_those_of_the_table(row: backward_table.BackwardRow) -> None:
    lines = _tiles_in_the_document("| kernel | head_dim | dK and dV | dQ |")
    of_sizes = {"small": backward_table.SMALL, "large": backward_table.LARGE}
    others = [size for size, archs in of_sizes.items() if not set(archs) & set(row.archs)]
    fitting = [
        line
        for line in lines
        if ("Hopper" in line[0]) == (row.kernel == "sm90")
        and not any(size in line[0] for size in others)
        and _bound(row.head_dims[1]) in line[1].split("; ")
    ]
    shapes = {"dkdv": (row.dkdv, 2), "dq": (row.dq, 3), "fused": (row.fused, 2)}
    for part, (shape, column) in shapes.items():
        if shape is None:
            continue
        tile = f"**{shape.br}** x {shape.bc}" if part == "dq" else f"{shape.br} x **{shape.bc}**"
        mine = [line for line in fitting if ("any order" in line[0]) == (part == "fused")]
        assert any(_staged(tile, shape.stages).search(line[column]) for line in mine), (part, tile, mine)


@pytest.mark.parametrize("row", table.TABLE, ids=lambda row: f"{row.kernel}-{row.head_dims[1]}-{row.shape}")
def test_the_tiles_of_the_forward_pass_are_those_of_the_table(row: table.Row) -> None:
    lines = _tiles_in_the_document("| kernel | head_dim | tile |")
    words = {"packed": "packed", "shared": "few query rows", "small": "few query rows"}
    words |= {"pair": "of two warpgroups", "turns": "in turn", "short": "short block rows"}
    fitting = [
        line
        for line in lines
        if ("Hopper" in line[0] and "on Hopper" not in line[0]) == (row.kernel == "sm90")
        or ("`mma.sync`" in line[0] and row.kernel == "sm80")
        if words.get(row.shape, "") in " ".join(line[:2])
        if _bound(row.head_dims[1]) in re.split("[;,] | and ", line[1])
        or (row.value_dim and "values of" in line[1])
    ]
    tile = _staged(f"{row.br} x {row.bc}", row.stages)
    assert any(tile.search(line[2]) for line in fitting), (tile.pattern, fitting)


def _files(base: str) -> list[Path]:
    return (
        [path for path in (ROOT / base).rglob("*.*") if ".git" not in path.parts]
        if base != "."
        else list(ROOT.iterdir())
    )


def _exists(path: str) -> bool:
    return any((ROOT / base / path).exists() for base in BASES)
