"""jit/cache.py: cubins built elsewhere, by another NVRTC."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import small_kernels as kernels

from omnicupy.errors import UnsupportedError
from omnicupy.jit import cache, nvrtc, source
from omnicupy.jit.nvrtc import Cubin
from omnicupy.jit.source import Source
from omnicupy.jit.spec import AttnSpec

SPEC = kernels.SPEC


@pytest.mark.usefixtures("isolated_cache")
def test_exported_cubins_are_used_under_another_nvrtc(
    compiler: kernels.Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(SPEC, bc=128)
    assert cache.export([SPEC, other, SPEC], tmp_path / "cubins", compiler) == 2
    built_by = nvrtc.version()
    before = cache.epoch
    cache.compiled_elsewhere(tmp_path / "cubins")
    assert cache.epoch > before
    monkeypatch.setattr(nvrtc, "version", _no_nvrtc)
    found = cache.entry(SPEC, _never)
    assert found.path.parent == tmp_path / "cubins"
    assert found.nvrtc == built_by
    assert cache.entry(other, _never).path.read_bytes() == f"\x7fELF {other}".encode()
    with pytest.raises(RuntimeError, match=r"call use_cubins\(None\) first"):
        cache.export([SPEC], tmp_path / "again")


@pytest.mark.usefixtures("isolated_cache")
def test_an_export_adds_to_what_the_folder_holds(
    compiler: kernels.Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of other sources are exported one after the other; a folder is of one NVRTC."""
    folder, other = tmp_path / "cubins", replace(SPEC, bc=128)
    assert cache.export([SPEC], folder, compiler) == cache.export([other], folder, compiler) == 1
    version = nvrtc.version()
    with monkeypatch.context() as patched:
        patched.setattr(nvrtc, "version", lambda: (11, 8))
        with pytest.raises(
            ValueError, match=rf"holds those of NVRTC {version[0]}.{version[1]}, got 11.8; name another"
        ):
            cache.export([SPEC], folder, compiler)
    cache.compiled_elsewhere(folder)
    assert {cache.entry(spec, _never).path.parent for spec in (SPEC, other)} == {folder}


@pytest.mark.usefixtures("isolated_cache")
def test_a_cubin_that_is_missing_or_corrupt_is_refused(compiler: kernels.Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "cubins"
    cache.export([SPEC], folder, compiler)
    cache.compiled_elsewhere(folder)
    missing = replace(SPEC, bc=128)
    with pytest.raises(UnsupportedError) as error:
        cache.entry(missing, _never)
    major, minor = nvrtc.version()
    key = cache.key_of(missing, source.load(SPEC.source).digest, (major, minor))
    assert str(error.value) == (
        f"{missing}: its cubin {key} is missing in {folder} (1 cubins of NVRTC {major}.{minor}); "
        "export it again from these sources"
    )
    cache.entry(SPEC, _never).path.write_bytes(b"\x7fELF other")
    with pytest.raises(UnsupportedError, match="is corrupt in"):
        cache.entry(SPEC, _never)
    cache.compiled_elsewhere(None)
    assert cache.entry(missing, compiler).path.is_file()


@pytest.mark.usefixtures("isolated_cache")
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        cache.compiled_elsewhere(tmp_path)
    assert str(error.value) == (
        f"cubins: expected the file {tmp_path / 'manifest.json'}; make the folder with cache.export"
    )
    for content in (
        "{",
        json.dumps({"schema": 99, "nvrtc": [12, 9], "cubins": {}}),
        json.dumps({"schema": 1}),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"is not a manifest of cache\.export"):
            cache.compiled_elsewhere(tmp_path)


def _never(spec: AttnSpec, _: Source) -> Cubin:
    raise AssertionError("compiled")


def _no_nvrtc() -> tuple[int, int]:
    raise UnsupportedError("no NVRTC")
