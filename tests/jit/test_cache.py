"""jit/cache.py: keys, damaged entries, races, folders that cannot be written, cubins built elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_kernels as kernels

from omnicupy.errors import CompileError
from omnicupy.jit import cache, files, nvrtc, source
from omnicupy.jit.nvrtc import Cubin
from omnicupy.jit.source import Source
from omnicupy.jit.spec import AttnSpec

SPEC = kernels.SPEC


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernel sources of the test's own: an entry file and one header."""
    root = tmp_path / "kernels"
    (root / "omni").mkdir(parents=True)
    (root / SPEC.source).write_bytes(kernels.ADD)
    (root / "omni/one.cuh").write_text("inline float plus_one(float x) { return x + 1.f; }\n")
    monkeypatch.setattr(source, "kernels_dir", lambda: root)
    return root


@pytest.mark.usefixtures("isolated_cache")
def test_compiles_once_and_reports(compiler: kernels.Compiler) -> None:
    first, second = cache.entry(SPEC, compiler), cache.entry(SPEC, compiler)
    assert first == second
    assert len(compiler.calls) == 1
    assert first.path.read_bytes() == f"\x7fELF {SPEC}".encode()
    assert (first.registers, first.spill_bytes, first.warnings) == (40, 0, ("ptxas warning : w",))
    assert first.nvrtc == nvrtc.version()
    assert cache.cubin(SPEC, compiler) == first.path


def test_a_real_kernel(isolated_cache: Path, tree: Path) -> None:
    found = cache.entry(SPEC)
    assert found.path.parent == isolated_cache
    assert found.path.read_bytes().startswith(b"\x7fELF")
    assert found.registers > 0
    assert [p for p in isolated_cache.iterdir() if p.name.startswith(".")] == []


@pytest.mark.usefixtures("isolated_cache")
def test_a_failed_compilation_leaves_nothing(isolated_cache: Path) -> None:
    def fail(spec: AttnSpec, _: Source) -> Cubin:
        raise CompileError(str(spec), "log")

    with pytest.raises(CompileError):
        cache.entry(SPEC, fail)
    assert [p.suffix for p in isolated_cache.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "field", ["arch", "dtype", "head_dim", "br", "bc", "stages", "warps", "share_kv", "swizzle"]
)
def test_every_field_of_the_spec_is_in_the_key(field: str) -> None:
    base = AttnSpec(arch="sm_80", kernel="sm80", dtype="float16", head_dim=64, br=64, bc=64)
    other: dict[str, dict[str, Any]] = {
        "arch": {"arch": "sm_90"},
        "dtype": {"dtype": "bfloat16"},
        "head_dim": {"head_dim": 128},
        "br": {"br": 128},
        "bc": {"bc": 128},
        "stages": {"stages": 2},
        "warps": {"warps": 2},
        "share_kv": {"share_kv": True},
        "swizzle": {"swizzle": False},
    }
    changed = replace(base, **other[field])
    assert cache.key_of(base, "digest", (12, 9)) != cache.key_of(changed, "digest", (12, 9))


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("name", [SPEC.source, "omni/one.cuh"])
def test_a_changed_source_or_header_byte_is_a_miss(tree: Path, compiler: kernels.Compiler, name: str) -> None:
    cache.entry(SPEC, compiler)
    (tree / name).write_bytes((tree / name).read_bytes() + b"\n")
    cache.entry(SPEC, compiler)
    assert len(compiler.calls) == 2


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("what", ["version", "options"])
def test_another_nvrtc_or_other_options_are_a_miss(
    compiler: kernels.Compiler, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    cache.entry(SPEC, compiler)
    if what == "version":
        monkeypatch.setattr(nvrtc, "version", lambda: (99, 1))
    else:
        monkeypatch.setattr(nvrtc, "options", lambda spec: ("-arch=sm_80",))
    cache.entry(SPEC, compiler)
    assert len(compiler.calls) == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cubin-bit-flipped": (".cubin", _flip),
    "cubin-truncated": (".cubin", lambda p: p.write_bytes(p.read_bytes()[:-3])),
    "cubin-empty": (".cubin", lambda p: p.write_bytes(b"")),
    "cubin-gone": (".cubin", lambda p: p.unlink()),
    "record-truncated": (".json", lambda p: p.write_bytes(p.read_bytes()[:20])),
    "record-empty": (".json", lambda p: p.write_bytes(b"")),
    "record-gone": (".json", lambda p: p.unlink()),
    "record-not-text": (".json", lambda p: p.write_bytes(b"\xff\xfe\x00")),
    "record-foreign": (".json", lambda p: p.write_text("[1, 2]")),
    "record-other-key": (".json", lambda p: p.write_text(p.read_text().replace('"key": "', '"key": "0'))),
    "record-old-schema": (
        ".json",
        lambda p: p.write_text(p.read_text().replace('"schema": ', '"schema": 9')),
    ),
    "record-without-field": (".json", lambda p: p.write_text(p.read_text().replace("registers", "r"))),
}


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_a_miss_and_is_rebuilt(compiler: kernels.Compiler, damage: str) -> None:
    good = cache.entry(SPEC, compiler)
    suffix, harm = DAMAGE[damage]
    harm(good.path.with_suffix(suffix))
    assert cache.entry(SPEC, compiler) == good
    assert len(compiler.calls) == 2
    assert cache.entry(SPEC, compiler) == good
    assert len(compiler.calls) == 2


def _compile_slowly(folder: str, barrier: Any) -> None:
    os.environ["OMNICUPY_CACHE_DIR"] = folder

    def build(spec: AttnSpec, _: Source) -> Cubin:
        with open(Path(folder).parent / "calls", "a") as calls:
            calls.write("x")
        time.sleep(0.3)
        return kernels.fake_cubin()

    barrier.wait()
    assert cache.cubin(SPEC, build).is_file()


def test_processes_that_race_compile_once(isolated_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    racers = [context.Process(target=_compile_slowly, args=(str(isolated_cache), barrier)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert (isolated_cache.parent / "calls").read_text() == "x"


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("portable", [False, True])
def test_threads_that_race_compile_once(portable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if portable:
        monkeypatch.setattr(files, "fcntl", None)
    calls = []

    def build(spec: AttnSpec, _: Source) -> Cubin:
        calls.append(spec)
        time.sleep(0.1)
        return kernels.fake_cubin()

    threads = [threading.Thread(target=cache.cubin, args=(SPEC, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1


@pytest.mark.parametrize("portable", [False, True])
def test_a_lock_that_is_never_released_does_not_hang(
    isolated_cache: Path, compiler: kernels.Compiler, monkeypatch: pytest.MonkeyPatch, portable: bool
) -> None:
    if portable:
        monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_S", 0.2)
    isolated_cache.mkdir()
    key = cache.key_of(SPEC, source.load(SPEC.source).digest, nvrtc.version())
    with files.held(isolated_cache / f"{key}.lock", 1.0) as held:
        assert held
        with pytest.warns(RuntimeWarning, match="could not be locked"):
            made = cache.entry(SPEC, compiler)
    assert made.path.is_file()


def test_the_portable_lock_of_a_killed_process_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    lock = tmp_path / "x.lock"
    lock.touch()
    os.utime(lock, (time.time() - 100, time.time() - 100))
    with files.held(lock, 1.0) as held:
        assert held
    assert not lock.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It has the file of the lock open for as long as it lives."""
    reading, writing = os.pipe()
    with files.held(tmp_path / "lock", 1.0) as got, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        assert got
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent has tried
            os._exit(0)
    with files.held(tmp_path / "lock", 0.0) as again:
        os.close(writing)
        os.waitpid(child, 0)
        assert again
