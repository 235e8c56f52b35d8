"""What `env` and `verify` say of versions, and which commit a checkout is of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import omnicupy
from omnicupy.jit import nvrtc as jit_nvrtc
from omnicupy.tools import environment

NEW = "NVRTC 13.5 compiles for a newer CUDA than the driver's, 12.8, which may refuse its kernels"
BINDINGS = "cuda-bindings 13.5.0 is made for a newer CUDA than the driver's, 12.8: update the driver"
UNKNOWN = "Kernels of NVRTC 99.1 were not verified for this release"
TWICE = "cupy-cuda12x and cupy-cuda13x overwrite each other: uninstall both, then install one"


@pytest.mark.parametrize(
    ("nvrtc", "driver", "packages", "begins"),
    [
        ("", "", {}, []),
        ("12.9", "", {"cupy-cuda12x": "14.2.0", "cuda-bindings": "13.5.0"}, []),
        ("12.9", "13.0", {"cupy-cuda12x": "14.2.0", "cuda-bindings": "12.9.10"}, []),
        ("13.0", "13.0", {"cupy-cuda13x": "14.2.0", "cuda-bindings": "13.5.0"}, []),
        ("13.5", "12.8", {"cupy-cuda12x": "14.2.0"}, [NEW]),
        ("12.9", "12.8", {"cuda-bindings": "13.5.0"}, [BINDINGS]),
        ("99.1", "", {}, [UNKNOWN]),
        ("12.9", "12.9", {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}, [TWICE]),
    ],
)
def test_what_is_unusual_is_said_once(
    nvrtc: str, driver: str, packages: dict[str, str], begins: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit_nvrtc, "ATTESTED", ("12.9", "13.0"))
    found = environment.notes(nvrtc, driver, packages)
    assert len(found) == len(begins)
    assert all(one.startswith(start) for one, start in zip(found, begins, strict=True))


def test_a_changed_file_marks_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkout"
    (root / "omnicupy" / "tools").mkdir(parents=True)
    for name in ("a.txt", "record.json"):
        (root / name).write_text("1")
    settings = ("-c", "user.name=x", "-c", "user.email=x@y.z", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), (*settings, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True, timeout=60)
    monkeypatch.setattr(environment, "__file__", str(root / "omnicupy" / "tools" / "environment.py"))
    commit = environment.commit()
    assert len(commit) == 40
    (root / "record.json").write_text("2")
    assert environment.commit() == f"{commit}+"
    assert environment.commit(root / "record.json") == commit
    assert environment.commit(tmp_path / "elsewhere.json") == f"{commit}+"
    (root / "a.txt").write_text("2")
    assert environment.commit(root / "record.json") == f"{commit}+"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "installed" / "omnicupy" / "tools" / "x.py"))
    assert environment.commit() == ""


def test_a_child_imports_this_very_package(tmp_path: Path) -> None:
    (tmp_path / "omnicupy.py").write_text("raise SystemExit('of the current folder')")
    told = "import omnicupy; print(omnicupy.__file__)"
    for words in (["-c", told], ["-m", "omnicupy", "--version"]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment.of_child(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert words[0] == "-m" or Path(done.stdout.strip()) == Path(omnicupy.__file__)
