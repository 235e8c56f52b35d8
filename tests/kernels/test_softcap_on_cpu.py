"""What softcap.cuh makes of single scores, its own source run on the CPU, against tanh in float64."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import cuda_on_cpu
import host_compiler
import numpy as np
import pytest
from numpy.typing import NDArray

from omnicupy.jit import source
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference.budget import ROUNDOFF, TANH

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

NEAR, FAR = 0.25, 0.7  # of the arguments of tanh: where another way begins
SCALES = (1.0, 2.0**-9.3, 0.37, 1000.0, 2.0**-24, 2.0**24)
MAIN = """
#include "cuda.h"
#include "omni/softcap.cuh"

extern "C" void each(float* x, int count, float scale, int how) {
  omni::Tanh const tanh(scale);
  for (int i = 0; i < count; ++i) x[i] = how == 0 ? tanh.near(x[i]) : how == 1 ? tanh.middle(x[i]) : tanh.any(x[i]);
}

// 0: all are small. 1: none is large.
extern "C" int kind(float x, float scale) {
  omni::Tanh const tanh(scale);
  float const above = tanh.above(x * x);
  return tanh.is_near(above) ? 0 : tanh.is_far(above) ? 2 : 1;
}
"""
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("softcap")
    for name, text in source.load("attention_fwd_sm80.cu").headers:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(cuda_on_cpu._for_host(name, text.decode()))
    (folder / "main.cpp").write_text(MAIN)
    spec = AttnSpec(arch="sm_80", kernel="sm80", dtype="float16", head_dim=64, br=64, bc=64, softcap=True)
    macros = [f"-D{name}={value}" for name, value in spec.defines().items()]
    files = [str(folder / "main.cpp"), "-o", str(folder / "softcap.so")]
    options = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", f"-I{host_compiler.HOST}"]
    subprocess.run(["g++", *options, f"-I{folder}", *macros, *files], check=True, timeout=300)
    return ctypes.CDLL(str(folder / "softcap.so"))


def _each(library: Any, scores: Array, scale: float, how: int) -> Array:
    found = scores.copy()
    address = found.ctypes.data_as(ctypes.c_void_p)
    library.each(address, len(found), ctypes.c_float(scale), how)
    return found


def _arguments(scale: float) -> Array:
    """Scores whose tanh has arguments from 0 to 12, of both signs, and next to where another way begins."""
    edges = np.concatenate([np.float32(one) + np.arange(-40, 41) * 2.0**-24 for one in (NEAR, FAR)])
    x = np.concatenate([np.linspace(0, 1, 200_001), np.geomspace(1e-30, 12, 50_001), edges, [0.0]])
    return (np.concatenate([x, -x]) / scale).astype(np.float32)


@pytest.mark.parametrize("scale", SCALES)
def test_the_error_is_within_what_budgets_allow(scale: float, library: Any) -> None:
    scores, scale = _arguments(scale), float(np.float32(scale))
    found = _each(library, scores, scale, 2)
    wanted = np.tanh(scores.astype(np.float64) * scale)
    assert np.abs(found - wanted).max() < TANH * ROUNDOFF["float32"]
    small = np.abs(wanted) < 2.0**-7
    with np.errstate(invalid="ignore"):
        relative = np.abs(found - wanted)[small] / np.abs(wanted)[small]
    assert np.nanmax(relative) < 4 * ROUNDOFF["float32"]


@pytest.mark.parametrize("scale", SCALES)
def test_each_way_gives_the_same_bits_where_it_may_be_taken(scale: float, library: Any) -> None:
    scores = _arguments(scale)
    kinds = np.array([library.kind(ctypes.c_float(x), ctypes.c_float(scale)) for x in scores[::11]])
    size = np.abs(scores[::11] * np.float32(scale))
    assert (kinds[size < NEAR * (1 - 1e-6)] == 0).all()
    assert (kinds[size > FAR * (1 + 1e-6)] == 2).all()
    for way in (0, 1):
        here = scores[::11][kinds <= way]
        assert len(here) > 1000
        assert (_each(library, here, scale, way) == _each(library, here, scale, 2)).all()


def test_numbers_that_are_none(library: Any) -> None:
    scores = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0], np.float32)
    found = _each(library, scores, 0.02, 2)
    np.testing.assert_array_equal(found, np.array([np.nan, 1, -1, 1, -1, 0, -0.0], np.float32))
    assert np.signbit(found[6])
