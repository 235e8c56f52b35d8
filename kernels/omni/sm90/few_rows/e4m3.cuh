// Elements of e4m3 as float16. Hosts have another file in place of this one.
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

}  // namespace omni
