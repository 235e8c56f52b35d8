"""Small kernels that tests compile in place of the real ones, and the spec that names them."""

from __future__ import annotations

from omnicupy.jit.nvrtc import Cubin
from omnicupy.jit.source import Source
from omnicupy.jit.spec import AttnSpec

SPEC = AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)

ADD = b"""
#include "omni/one.cuh"
static_assert(OMNI_HEAD_DIM == 64 && OMNI_BF16 == 1 && OMNI_PARAMS_BYTES > 0, "macros");
extern "C" __global__ void add(float* x) { x[threadIdx.x] = plus_one(x[threadIdx.x]); }
"""

# 300 values alive across a barrier do not fit 255 registers.
SPILL = b"""
extern "C" __global__ void __launch_bounds__(1024) spill(float* x) {
  float v[300];
#pragma unroll
  for (int i = 0; i < 300; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 300; ++i) x[i * 1024 + threadIdx.x] = v[i] * v[299 - i];
}
"""


def source(
    text: bytes = ADD,
    header: bytes = b"constexpr float kOne = 1.f;\nfloat plus_one(float x) { return x + kOne; }\n",
) -> Source:
    """A translation unit; its digest is not computed, since only the cache looks at it."""
    return Source("test.cu", text, (("omni/one.cuh", header),), "digest")


def fake_cubin(image: bytes = b"\x7fELF fake") -> Cubin:
    """What a compiler stand-in returns."""
    return Cubin(
        image, registers=40, spill_bytes=0, warnings=("ptxas warning : w",), log="log\nptxas warning : w"
    )


class Compiler:
    """Stands in for NVRTC: counts its calls, takes no time."""

    def __init__(self) -> None:
        self.calls: list[AttnSpec] = []

    def __call__(self, spec: AttnSpec, _: Source) -> Cubin:
        self.calls.append(spec)
        return fake_cubin(f"\x7fELF {spec}".encode())
