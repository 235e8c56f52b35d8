// Elements of e4m3 as float16, and copies of eight of them. Hosts have another file in place of this one.
#pragma once

#include "omni/params.cuh"

namespace omni {

// The four e4m3 of a word, lowest first, as float16, two a register: exact.
__device__ __forceinline__ void cvt_f16x4_e4m3x4(u32 four, u32& low, u32& high) {
  asm("{\n"
      ".reg .b16 a, b;\n"
      "mov.b32 {a, b}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, a;\n"
      "cvt.rn.f16x2.e4m3x2 %1, b;\n"
      "}"
      : "=r"(low), "=r"(high)
      : "r"(four));
}

// cp.async.ca: 8 bytes.
__device__ __forceinline__ void cp_async_8(u32 s_target, void const* g_source, int bytes) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8, %2;" ::"r"(s_target), "l"(g_source), "r"(bytes)
               : "memory");
}

}  // namespace omni
