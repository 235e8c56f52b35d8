// Instructions that packed tiles of two warpgroups alone use.
#pragma once

#include "omni/sm90/ptx.cuh"

namespace omni {

// Adds so many, and returns what was there; orders what was written as count_arrival does.
__device__ __forceinline__ u32 count_arrivals(u32* g_counter, u32 more) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(g_counter), "r"(more) : "memory");
  return before;
}

}  // namespace omni
