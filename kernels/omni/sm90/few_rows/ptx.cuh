// Instructions that this kernel alone uses. Hosts have another file in place of this one.
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

// Transposes an 8 x 8 matrix of 16-bit numbers over the lanes: lane 4 * r + c has columns 2 c and 2 c + 1 of row r.
__device__ __forceinline__ u32 transpose_8x8(u32 pair) {
  u32 found;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(found) : "r"(pair));
  return found;
}

// What nobody reads again is first to leave L2, so that what others left there stays: a policy as
// createpolicy.fractional.L2::evict_first makes it.
constexpr unsigned long long kReadOnce = 0x12f0000000000000ull;

// 16 bytes to shared memory, past L1; bytes = 0 writes zeros and reads nothing.
__device__ __forceinline__ void cp_async_16_once(u32 s_target, void const* g_source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(s_target),
               "l"(g_source), "r"(bytes), "l"(kReadOnce)
               : "memory");
}

// `bytes` contiguous bytes, a multiple of 16, by the copy engine; completes on the barrier.
__device__ __forceinline__ void bulk_load_once(u32 s_target, void const* g_source, int bytes, u32 s_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
      "%4;" ::"r"(s_target),
      "l"(g_source), "r"(bytes), "r"(s_barrier), "l"(kReadOnce)
      : "memory");
}

// True in one lane of a whole warp, as ptxas knows: operands that have to be uniform need no loop over lanes then.
__device__ __forceinline__ bool elect_one() {
  u32 mine;
  asm volatile("{\n.reg .pred mine;\nelect.sync _|mine, 0xffffffff;\nselp.u32 %0, 1, 0, mine;\n}" : "=r"(mine));
  return mine != 0;
}

}  // namespace omni
