"""What is installed: extras and their platforms, the wheel's and the sdist's content, the workflow's actions."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CUDA = re.compile(r"cupy|cuda-|nvidia-")
NEWEST = {"torch": "2.15.0", "transformers": "5.24.0"}
CUDA12 = {"cupy-cuda12x": "14.2.0", "cuda-bindings": "13.5.0", "nvidia-cuda-nvrtc-cu12": "12.9.86"}
CUDA13 = {"cupy-cuda13x": "14.2.0", "cuda-bindings": "13.5.0", "nvidia-cuda-nvrtc": "13.2.86"}
LINUX, MACOS = "x86_64-manylinux_2_28", "aarch64-apple-darwin"


@pytest.fixture(scope="module")
def resolve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resolve", ROOT / ".ci" / "resolve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_alone_needs_no_cuda_package() -> None:
    assert not [one for one in PROJECT["dependencies"] if CUDA.match(one)]


def test_extras_other_than_cuda_s_go_with_either_and_macos_gets_no_cuda_package() -> None:
    for name, needs in EXTRAS.items():
        cuda = [one for one in needs if CUDA.match(one)]
        assert bool(cuda) == (name in ("cuda12", "cuda13")), name
        assert all(one.endswith("; sys_platform != 'darwin'") for one in cuda), name


def test_every_extra_is_resolved(resolve: ModuleType) -> None:
    combined = resolve.combinations()
    assert {name for extras in combined for name in extras} == set(EXTRAS)
    assert {extras[0] for extras in combined} == set(resolve.WANTED)
    assert {"torch", "transformers"} <= set(combined[1])


@pytest.mark.parametrize(
    ("extras", "platform", "found", "wrong"),
    [
        (("cuda12",), LINUX, CUDA12, []),
        (("cuda13", "torch"), LINUX, CUDA13 | NEWEST, []),
        (("cuda12", "torch"), LINUX, CUDA12 | NEWEST | {"nvidia-cuda-nvrtc": "13.2.86"}, []),
        (("cuda12", "torch"), MACOS, NEWEST, []),
        (("cuda12",), MACOS, {"nvidia-cublas": "13.4"}, ["nvidia-cublas is a CUDA package"]),
        (
            ("cuda12", "torch"),
            LINUX,
            CUDA12 | NEWEST | {"torch": "2.10.0", "nvidia-cuda-nvrtc-cu12": "12.8.93"},
            ["nvidia-cuda-nvrtc-cu12 12.8.93 is older than 12.9", "torch is 2.10.0, alone it is 2.15.0"],
        ),
        (
            ("cuda13",),
            LINUX,
            CUDA12,
            [
                "cupy-cuda12x is another CuPy than cupy-cuda13x",
                "cupy-cuda13x is missing",
                "nvidia-cuda-nvrtc is missing",
            ],
        ),
    ],
)
def test_what_a_resolution_must_hold(
    resolve: ModuleType, extras: tuple[str, ...], platform: str, found: dict[str, str], wrong: list[str]
) -> None:
    assert resolve.problems(extras, platform, found, NEWEST) == wrong


def test_without_an_index_nothing_is_resolved_and_that_is_said(
    resolve: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **options: object) -> object:
        return subprocess.CompletedProcess([], 2, "", said)

    monkeypatch.setattr(resolve.subprocess, "run", fails)
    said = "error: Failed to fetch: numpy; dns error"
    assert resolve.main() == 0
    assert capsys.readouterr().out.startswith("SKIPPED: no package index answers")
    said = "error: No solution found when resolving dependencies"
    assert resolve.main() == 1
    assert "No solution found" in capsys.readouterr().out


def test_ci_resolves() -> None:
    assert ".ci/resolve.py" in (ROOT / ".ci" / "run").read_text()


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "omnicupy", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("Usage: python -m omnicupy [OPTIONS] COMMAND")


def test_no_message_sends_anybody_to_an_index_where_we_are_not() -> None:
    files = [path for folder in ("omnicupy", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 60
    for path in files:
        assert not re.search(r"pip install [^\n]*\bomnicupy\b", path.read_text()), path


def test_the_workflow_may_only_read_and_its_actions_are_pinned() -> None:
    texts = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    assert texts
    for text in texts:
        assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
        used = re.findall(r"uses: (.*)", text)
        assert used
        assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in used), used


def test_the_sdist_carries_what_its_tests_read(tmp_path: Path) -> None:
    """Built, unpacked, and tests that read files of all kinds are run there."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    names = {
        str(path.relative_to(ROOT))
        for part in ("omnicupy", "kernels", "tests", "docs", "examples", ".ci", ".github")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    top = ("LICENSE", "*.md", "*.toml", "*.py", ".*")  # else it holds what a command of the README wrote
    names |= {path.name for word in top for path in ROOT.glob(word) if path.is_file() and path.name != ".git"}
    assert not {name for name in names if not (folder / name).exists()}
    chosen = ["tests/test_ci_counters.py", "tests/jit/test_source.py"]
    chosen += ["tests/test_cuda_format.py::test_linters_are_content_with_cuda"]
    chosen += [
        f"tests/test_readme.py::{name}" for name in ("test_links_and_paths_exist", "test_commands_parse")
    ]
    chosen += ["tests/tools/report/test_committed.py::test_the_report_has_every_block_once"]
    chosen += [
        f"tests/test_install.py::{name}" for name in ("test_every_extra_is_resolved", "test_ci_resolves")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
