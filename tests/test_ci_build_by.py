""".ci/build_by.py: an NVRTC that a folder holds compiles what cuda.bindings' compiles, byte for byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from omnicupy.errors import CompileError
from omnicupy.jit import nvrtc, source
from omnicupy.jit.append_spec import AppendSpec

SCRIPT = Path(__file__).parent.parent / ".ci" / "build_by.py"


@pytest.fixture
def build_by(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_by", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(nvrtc, "_library", nvrtc._library)  # which it replaces
    return module


def test_it_compiles_what_the_environment_s_own_library_does(build_by: ModuleType) -> None:
    folder = Path(pytest.importorskip("nvidia.cuda_nvrtc").__path__[0]) / "lib"
    spec = AppendSpec(arch="sm_90")
    text = source.load(spec.source)
    version, own = nvrtc.version(), nvrtc.compile(spec, text)
    assert build_by.use(folder) == version
    made = nvrtc.compile(spec, text)
    assert (made.image, made.registers) == (own.image, own.registers)
    assert isinstance(nvrtc._library()[0], build_by.Library)
    broken = source.Source(text.name, text.text + b"\nno C++", text.headers, text.digest)
    with pytest.raises(CompileError, match="NVRTC_ERROR_COMPILATION"):
        nvrtc.compile(spec, broken)


def test_a_folder_without_a_library_is_named(build_by: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^expected one libnvrtc-builtins\.so\.\* in .*, found 0; unpack one wheel"
    ):
        build_by.use(tmp_path)
