"""What the README shows works: code blocks run, commands parse, the support table is choose/pick.py's."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import pick
from omnicupy.jit import archs
from omnicupy.jit.nvrtc import ATTESTED
from omnicupy.tools.cli.main import main
from omnicupy.tools.verify.plan import planned
from omnicupy.tools.verify.source_digest import BACKWARD, SOURCES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
TESTS = "python -m pytest -q -n 2"
SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[cuda12,test]' && "


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    lines = [line.removeprefix(SETUP) for block in _blocks("sh") for line in block.splitlines()]
    return [line.removeprefix("python cli.py") for line in lines if line.startswith("python cli.py")]


OPTIONAL = ("transformers", "torch")  # a block belongs to the first that it imports


def _library(block: str) -> str | None:
    """The optional library that a block shows."""
    return next((name for name in OPTIONAL if re.search(rf"^(?:import|from) {name}\b", block, re.M)), None)


def _run_code(names: dict[str, Any]) -> None:
    """The blocks in their order, but for those of optional libraries, which have a test of their own."""
    for block in _blocks("python"):
        if _library(block) is None:
            exec(compile(block, "README.md", "exec"), names)


def test_the_code_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cupy", np)  # without a device; the gpu test runs it as it stands
    names: dict[str, Any] = {}
    _run_code(names)
    assert names["out"].dtype.name == "bfloat16"
    assert "1195 rows x 1195 keys" in capsys.readouterr().out


@pytest.mark.parametrize("library", OPTIONAL)
def test_the_code_of_an_optional_library_runs(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    (block,) = (block for block in _blocks("python") if _library(block) == library)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.gpu
def test_the_code_runs_on_a_gpu() -> None:
    names: dict[str, Any] = {}
    _run_code(names)
    assert type(names["out"]).__module__.startswith("cupy")


def test_it_is_short_enough_to_be_read() -> None:
    lines = README.splitlines()
    assert len(lines) <= 220
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_there_are_two_commands_for_a_fresh_checkout() -> None:
    first = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith(SETUP)]
    assert first == [f"{SETUP}python cli.py verify", SETUP + TESTS]


def test_ci_runs_the_readme_s_tests() -> None:
    assert TESTS.removeprefix("python") in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("line", _commands())
def test_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = main.commands[name]
    assert isinstance(command.make_context(name, arguments), click.Context)


QUICK = [
    line
    for line in _commands()
    if line.split()[0] in ("show", "env", "bench", "explain") and "--out" not in line
]


@pytest.mark.parametrize("line", QUICK)
def test_commands_that_need_no_gpu_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(line, comments=True))
    assert (done.exit_code, done.exception) == (0, None), done.output
    assert ("--png" in line) == (tmp_path / "mask.png").exists()


def test_the_mask_table_has_every_constructor() -> None:
    listed = re.findall(r"^\| `(\w+)\(", README, re.MULTILINE)
    others = {
        "AttnSpec",
        "BackwardSpec",
        "BlockMask",
        "CompileError",
        "Mask",
        "TileShape",
        "UnsupportedError",
    }
    others |= {"attention", "attention_backward", "prepare", "presets"}
    others |= {
        "CachedKV",
        "PagedKV",
        "CachedRule",
        "CachedStep",
        "append",
        "cached",
        "plan",
    }  # what caches of any length get for a mask
    assert sorted(listed) == sorted(set(oc.__all__) - others)


def test_the_model_table_has_every_preset() -> None:
    assert set(re.findall(r"`presets\.(\w+)\(", README)) == set(oc.presets.__all__)


def test_the_support_table_is_tune_s() -> None:
    lines = re.findall(r"^\| ((?:`sm_\d+`,? )+)\|[^|]*\| (\d+)-(\d+) \| `(\w+)` \|$", README, re.MULTILINE)
    rows = [(arch, *rest) for names, *rest in lines for arch in re.findall(r"sm_\d+", names)]
    assert {arch for arch, *_ in rows} == set(archs.ARCHES)
    for arch in archs.ARCHES:
        covered = {}
        for least, greatest, kernel in (row[1:] for row in rows if row[0] == arch):
            covered |= dict.fromkeys(range(int(least), int(greatest) + 1, 8), kernel)
        assert sorted(covered) == list(range(8, 1025, 8))
        for head_dim, kernel in covered.items():
            problem = Problem(1, 64, 64, 8192, 8192, head_dim, "bfloat16")
            assert pick.pick(arch, problem, (oc.full(1),), 132).kernel == kernel, (arch, head_dim)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_the_gradients_that_are_verified_are_counted_as_they_are(name: str) -> None:
    """A run on a GPU adds to the attestation: where a document counts its cases, it follows."""
    held = json.loads((ROOT / "tests/attestation.json").read_text())["sources"]
    sources = [name for name, source in SOURCES.items() if source.launch is BACKWARD]
    cases = {case for source in sources for case in planned(source)}
    missing = {
        case
        for source in sources
        for case in planned(source)
        if set(held[source]["cases"].get(case, ())) != set(ATTESTED)
    }
    said = re.findall(r"([\d,]+)\s+of\s+([\d,]+)\s+cases", (ROOT / name).read_text())
    assert said in ([], [(f"{len(cases - missing):,}", f"{len(cases):,}")] if missing else [])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCUMENTS])
def test_no_merge_is_left_half_done(name: str) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", (ROOT / name).read_text(), re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """What links may name behind a #: the headings, as Markdown pages spell them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCUMENTS])
def test_links_and_paths_exist(name: str) -> None:
    path = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
        if not target.startswith("http"):
            page = path.parent / target if target else path
            assert page.exists(), f"{name} links to {target}"
            assert not anchor or anchor in _anchors(page), f"{name} links to #{anchor} of {page.name}"
