"""trust.py and its users: nothing is taken that another user could have written; nothing of it hangs or raises."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_kernels as kernels

from omnicupy.choose import saved
from omnicupy.jit import cache, files, trust

SPEC = kernels.SPEC
DEEP = b"[" * 200_000 + b"]" * 200_000

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no owners to ask for")


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, this process is somebody else: what lies there is another user's, what it makes its own."""

    def become_another() -> None:
        theirs = {path.lstat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}
        monkeypatch.setattr(trust, "_is_owner", lambda found: found.st_ino not in theirs)

    return become_another


@pytest.fixture(autouse=True)
def _private_folder() -> Iterator[None]:
    cache._private_folder_of.cache_clear()
    yield
    cache._private_folder_of.cache_clear()


def _written(path: Path, content: bytes = b"{}", mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def _bad_files(folder: Path) -> dict[str, Path]:
    """Files that must not be read, by what is wrong with them."""
    good = _written(folder / "good")
    (folder / "link").symlink_to(good)
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    large = _written(folder / "large")
    os.truncate(large, trust.MAX_BYTES + 1)
    _written(folder / "group", mode=0o660)
    _written(folder / "world", mode=0o602)
    names = ("link", "pipe", "folder", "large", "group", "world", "missing")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "large", "group", "world", "missing"])
def test_what_is_not_read(tmp_path: Path, what: str) -> None:
    with pytest.raises(OSError, match=f"/{what}"):
        trust.read_trusted(_bad_files(tmp_path)[what])


def test_what_is_read(tmp_path: Path, foreign: Callable[[], None]) -> None:
    path = _written(tmp_path / "file", b"content", 0o644)
    assert trust.read_trusted(path) == b"content"
    foreign()
    with pytest.raises(PermissionError, match="could have been written by another user"):
        trust.read_trusted(path)
    assert trust.read_trusted(path, from_anyone=True) == b"content"


def test_files_of_root_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(tmp_path / "file", b"content")
    real = os.fstat

    def of_root(file: int) -> os.stat_result:
        found = list(real(file))
        found[4] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(trust, "_user", lambda: 4242)
    assert trust.read_trusted(path) == b"content"


def _damage(entry: cache.Entry, how: str) -> None:
    record, cubin = entry.path.with_suffix(".json"), entry.path
    at = record if how.startswith("record") else cubin
    if how.endswith("pipe"):
        at.unlink()
        os.mkfifo(at)
    elif how.endswith("link"):
        at.rename(at.with_suffix(".elsewhere"))
        at.symlink_to(at.with_suffix(".elsewhere"))
    elif how.endswith("writable"):
        at.chmod(0o666)
    else:
        fields = json.loads(record.read_bytes())
        text = DEEP.decode() if how.endswith("deep") else "1e999"
        changed = json.dumps({**fields, "registers": "HERE"}).replace('"HERE"', text)
        record.write_text(changed)


@pytest.mark.parametrize(
    "how",
    [
        "record pipe",
        "cubin pipe",
        "record link",
        "cubin link",
        "record writable",
        "cubin writable",
        "record deep",
        "record infinite",
    ],
)
def test_an_entry_that_is_not_ours_alone_is_a_miss_and_made_again(
    isolated_cache: Path, compiler: kernels.Compiler, how: str
) -> None:
    made = cache.entry(SPEC, compiler)
    _damage(made, how)
    again = cache.entry(SPEC, compiler)
    assert len(compiler.calls) == 2
    assert again == made
    assert cache.entry(SPEC, compiler) == made
    assert len(compiler.calls) == 2


@pytest.mark.parametrize("in_our_part", [False, True])
def test_a_planted_cubin_is_not_loaded(
    isolated_cache: Path, compiler: kernels.Compiler, foreign: Callable[[], None], in_our_part: bool
) -> None:
    """Neither beside ours, nor in the part of a shared folder that would be ours."""
    planted = cache.entry(SPEC, compiler).path
    part = isolated_cache / f"user-{os.getuid()}"
    if in_our_part:
        part.mkdir()
        for path in (planted, planted.with_suffix(".json")):
            path.rename(part / path.name)
    isolated_cache.chmod(0o777)
    foreign()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = cache.entry(SPEC, compiler).path
    assert len(compiler.calls) == 2
    assert (found.parent == part) == (not in_our_part)
    assert ["belongs to another user" in str(one.message) for one in said] == [True] * in_our_part


def test_a_shared_folder_has_a_part_for_each_user(isolated_cache: Path, compiler: kernels.Compiler) -> None:
    isolated_cache.mkdir()
    isolated_cache.chmod(0o1777)
    made = cache.entry(SPEC, compiler)
    assert made.path.parent == isolated_cache / f"user-{os.getuid()}" == files.own_directory()
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    assert saved.path().parent == made.path.parent
    assert cache.entry(SPEC, compiler) == made
    assert len(compiler.calls) == 1


def test_a_part_that_others_can_write_to_is_not_read(
    isolated_cache: Path, compiler: kernels.Compiler
) -> None:
    """Its files may be ours still, but could be exchanged before they are loaded."""
    isolated_cache.mkdir()
    isolated_cache.chmod(0o1777)
    made = cache.entry(SPEC, compiler)
    made.path.parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="private temporary folder"):
        again = cache.entry(SPEC, compiler)
    assert len(compiler.calls) == 2
    assert again.path != made.path


@pytest.mark.parametrize("how", ["writable", "link"])
def test_a_part_that_another_user_made_is_not_used(
    isolated_cache: Path, tmp_path: Path, compiler: kernels.Compiler, how: str
) -> None:
    isolated_cache.mkdir()
    isolated_cache.chmod(0o1777)
    part = isolated_cache / f"user-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if how == "link":
        part.symlink_to(elsewhere)
    else:
        part.mkdir()
        part.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="private temporary folder"):
        made = cache.entry(SPEC, compiler)
    assert isolated_cache not in made.path.parents
    assert not list(elsewhere.iterdir())
    assert not list(part.iterdir())


def test_new_folders_and_files_are_the_user_s_alone(isolated_cache: Path, compiler: kernels.Compiler) -> None:
    before = os.umask(0)
    try:
        made = cache.entry(SPEC, compiler)
    finally:
        os.umask(before)
    assert stat.S_IMODE(isolated_cache.stat().st_mode) == 0o700
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in isolated_cache.iterdir()}
    assert modes == {".cubin": 0o600, ".json": 0o600, ".lock": 0o600}
    assert made.path.is_file()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_no_link_and_no_pipe(tmp_path: Path, kind: str) -> None:
    lock, elsewhere = tmp_path / "lock", tmp_path / "elsewhere"
    if kind == "link":
        lock.symlink_to(elsewhere)
    else:
        os.mkfifo(lock)
    with pytest.raises(OSError), files.held(lock, 1.0):
        pytest.fail("it was taken")
    assert not elsewhere.exists()


def test_a_link_of_the_user_s_own_is_followed(
    isolated_cache: Path, tmp_path: Path, compiler: kernels.Compiler
) -> None:
    (tmp_path / "scratch").mkdir(mode=0o700)
    isolated_cache.symlink_to(tmp_path / "scratch")
    assert cache.entry(SPEC, compiler).path.parent == tmp_path / "scratch"


def test_cubins_made_elsewhere_may_be_another_user_s(
    isolated_cache: Path, tmp_path: Path, compiler: kernels.Compiler, foreign: Callable[[], None]
) -> None:
    cache.export([SPEC], tmp_path / "cubins", compiler)
    foreign()
    cache.compiled_elsewhere(tmp_path / "cubins")
    assert cache.entry(SPEC, compiler).path.parent == tmp_path / "cubins"
    assert len(compiler.calls) == 1


NO_HOME = """
import os, pathlib, tempfile
def no_home(*_): raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = pathlib.Path.expanduser = no_home
from omnicupy.jit import files, trust
found = files.own_directory()
trust.make_folder(found)
print(found == pathlib.Path(tempfile.gettempdir()) / f"omnicupy-{os.getuid()}", oct(found.stat().st_mode))
"""


@pytest.mark.parametrize("named", [None, "~/cache"])
def test_a_user_without_a_name_or_a_home_has_a_folder(tmp_path: Path, named: str | None) -> None:
    variables = {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    if named:
        variables["OMNICUPY_CACHE_DIR"] = named
    done = subprocess.run(
        [sys.executable, "-c", NO_HOME], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "0o40700"]
