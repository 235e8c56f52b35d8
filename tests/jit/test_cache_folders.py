"""jit/cache.py: folders that cannot be written, and where the cache lies."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_kernels as kernels

from omnicupy.jit import cache, files

SPEC = kernels.SPEC


def _refuse_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder, also for root, whom permissions do not stop."""
    real = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(os.fsdecode(path)).parent == folder and flags & (os.O_CREAT | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)


@pytest.fixture
def private_folder() -> Iterator[None]:
    cache._private_folder_of.cache_clear()
    yield
    cache._private_folder_of.cache_clear()


@pytest.mark.usefixtures("private_folder")
@pytest.mark.parametrize("how", ["read-only", "a file in its place", "full disk"])
def test_a_folder_that_cannot_be_written_warns_once_and_works(
    isolated_cache: Path, compiler: kernels.Compiler, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    reason = {
        "read-only": "Permission denied",
        "a file in its place": "File exists",
        "full disk": "No space left",
    }
    if how == "a file in its place":
        isolated_cache.write_text("not a folder")
    else:
        isolated_cache.mkdir()
    if how == "read-only":
        _refuse_writes(isolated_cache, monkeypatch)
    if how == "full disk":
        monkeypatch.setattr(cache, "replace_file", _full_below(isolated_cache, files.replace_file))
    with pytest.warns(RuntimeWarning) as seen:
        first, again, _ = (cache.entry(spec, compiler) for spec in (SPEC, SPEC, replace(SPEC, bc=128)))
    assert len(seen) == 1
    text = str(seen[0].message)
    assert text.startswith(f"the kernel cache {isolated_cache} cannot be written ({reason[how]}")
    assert text.endswith(
        "); compiling into a private temporary folder (set OMNICUPY_CACHE_DIR to keep kernels)"
    )
    assert first == again
    assert first.path.is_file()
    assert isolated_cache not in first.path.parents


def _full_below(folder: Path, write: Callable[..., None]) -> Callable[..., None]:
    def full(path: Path, content: bytes, mode: int) -> None:
        if folder in path.parents:
            raise OSError(28, "No space left on device", str(path))
        write(path, content, mode)

    return full


def test_a_read_only_folder_with_the_entry_is_used_as_it_is(
    isolated_cache: Path, compiler: kernels.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cache.entry(SPEC, compiler)
    _refuse_writes(isolated_cache, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.entry(SPEC, compiler) == made
    assert len(compiler.calls) == 1


@pytest.mark.usefixtures("private_folder")
def test_no_folder_at_all_says_what_to_do(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache.write_text("not a folder")
    monkeypatch.setattr(cache, "_private_folder", lambda _: isolated_cache)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(OSError, match="set OMNICUPY_CACHE_DIR to a folder that can"),
    ):
        cache.entry(SPEC, kernels.Compiler())


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"OMNICUPY_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/omnicupy"),
        ({"HOME": "/h"}, "/h/.cache/omnicupy"),
    ],
)
def test_directory(variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("OMNICUPY_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert files.directory() == Path(folder)


CHILD = """
import os, sys
from omnicupy.jit import cache
folder = cache._private_folder(os.getpid())
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that a process does at its end
assert os.waitpid(child, 0)[1] == 0
print(folder.is_dir(), folder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_its_parent_the_private_folder() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    there, folder = done.stdout.split()
    assert there == "True"
    assert not Path(folder).exists(), "the parent removes it at its own end"
