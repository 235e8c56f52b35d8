"""jit/nvrtc.py: compiling without a GPU, the resource report, errors."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import small_kernels as kernels

from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.jit import nvrtc
from omnicupy.jit.params import params_bytes


def test_compiles_with_headers_from_memory() -> None:
    found = nvrtc.compile(kernels.SPEC, kernels.source())
    assert found.image.startswith(b"\x7fELF")
    assert 0 < found.registers <= 32
    assert found.spill_bytes == 0
    assert found.warnings == ()
    assert "Compiling entry function 'add' for 'sm_80'" in found.log


def test_spills_are_counted() -> None:
    found = nvrtc.compile(kernels.SPEC, kernels.source(kernels.SPILL))
    assert found.registers <= 64
    assert found.spill_bytes > 0


def test_serialised_wgmma_is_a_warning() -> None:
    log = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
        "ptxas info    : Used 168 registers, used 2 barriers\n"
        "a.cu(3): warning #177-D: variable declared but never referenced"
    )
    found = nvrtc._report(b"", log)
    assert len(found.warnings) == 2
    assert found.registers == 168


def test_compile_error_names_the_spec_first_and_carries_the_log() -> None:
    with pytest.raises(CompileError) as error:
        nvrtc.compile(kernels.SPEC, kernels.source(b"int x = undefined_name;"))
    first, *rest = str(error.value).splitlines()
    assert first == f"{kernels.SPEC}: NVRTC failed"
    assert rest[0] == "NVRTC_ERROR_COMPILATION"
    assert 'identifier "undefined_name" is undefined' in error.value.log
    assert error.value.spec == str(kernels.SPEC)


def test_unknown_header_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match=r"omni/other\.cuh"):
        nvrtc.compile(kernels.SPEC, kernels.source(b'#include "omni/other.cuh"\n'))


def test_options_name_all_that_the_spec_decides() -> None:
    options = nvrtc.options(kernels.SPEC)
    assert "-arch=sm_80" in options
    assert "--std=c++17" in options
    assert f"-DOMNI_PARAMS_BYTES={params_bytes('naive')}" in options
    for name, value in kernels.SPEC.defines().items():
        assert f"-D{name}={value}" in options
    assert options != nvrtc.options(replace(kernels.SPEC, bc=128))
    assert not any("fast" in option for option in options)


def test_threads_compile_side_by_side() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: nvrtc.compile(kernels.SPEC, kernels.source()), range(8)))
    assert all(one.image == found[0].image for one in found)
    assert all(one.registers == found[0].registers for one in found)


def test_version_is_a_pair() -> None:
    assert nvrtc.version() >= (12, 0)


@pytest.fixture
def _no_library() -> None:
    nvrtc._library.cache_clear()
    yield
    nvrtc._library.cache_clear()


@pytest.mark.usefixtures("_no_library")
def test_no_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UnsupportedError) as error:
        nvrtc.version()
    text = str(error.value)
    assert text.startswith(
        "GPU kernels are compiled at run time by NVRTC, but no NVRTC library could be loaded (Mod"
    )
    assert text.endswith(
        "in the checkout, pip install '.[cuda12]' or '.[cuda13]', or pass NumPy arrays for the CPU"
    )


@pytest.mark.usefixtures("_no_library")
def test_no_nvrtc_library(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = pytest.importorskip("cuda.bindings.nvrtc")

    def missing() -> None:
        raise RuntimeError("Failure finding libnvrtc.so\nmany more lines")

    monkeypatch.setattr(bindings, "nvrtcVersion", missing)
    with pytest.raises(UnsupportedError) as error:
        nvrtc.version()
    assert str(error.value) == (
        "GPU kernels are compiled at run time by NVRTC, but no NVRTC library could be loaded "
        "(RuntimeError: Failure finding libnvrtc.so); in the checkout, pip install '.[cuda12]' or '.[cuda13]', or "
        "pass NumPy arrays for the CPU"
    )
