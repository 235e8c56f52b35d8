// Reductions to global memory: floats are added to what lies there, and nothing comes back (PTX ISA, red).
#pragma once

#include "omni/params.cuh"

namespace omni {

__device__ __forceinline__ void red_add(float* g_target, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(g_target), "f"(x) : "memory");
}

// Four floats side by side, a multiple of 16 bytes: compute capability 9.0 and later.
__device__ __forceinline__ void red_add4(float* g_target, float const* x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(g_target), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}

}  // namespace omni
