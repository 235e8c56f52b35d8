// One function, one instruction: what thread blocks read of each other in global memory, how they count, and lines that
// are asked for ahead.
#pragma once

#include "omni/address.cuh"

namespace omni {

// Counts to `last`, then from 0 again. Nobody waits for it.
__device__ __forceinline__ void count_round(int* g_counter, int last) {
  asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(g_counter), "r"(last) : "memory");
}

__device__ __forceinline__ void prefetch_to_l2(void const* g_line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(g_line));
}

// A number that other thread blocks add to, and what they wrote before they did.
__device__ __forceinline__ int load_acquire(int const* g_source) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(g_source) : "memory");
  return v;
}

__device__ __forceinline__ void store_release(int* g_target, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(g_target), "r"(x) : "memory");
}

__device__ __forceinline__ void add_release(int* g_target, int x) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(g_target), "r"(x) : "memory");
}

// A vector that other multiprocessors wrote: not from this one's cache.
__device__ __forceinline__ float4 load_past_l1(float4 const* g_source) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(g_source)
               : "memory");
  return v;
}

__device__ __forceinline__ float2 load_past_l1(float2 const* g_source) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(g_source) : "memory");
  return v;
}

// The same where it exists, else zeros: nothing is read then.
__device__ __forceinline__ float4 load_past_l1_or_zeros(float4 const* g_source, bool exists) {
  float4 v;
  asm volatile(
      "{ .reg .pred exists;\n"
      "setp.ne.s32 exists, %5, 0;\n"
      "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "@exists ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4]; }"
      : "=&f"(v.x), "=&f"(v.y), "=&f"(v.z), "=&f"(v.w)
      : "l"(g_source), "r"(static_cast<int>(exists))
      : "memory");
  return v;
}

// Adds one, and returns what was there; what this thread knows to be written comes before, what others had written
// when they added before is seen behind.
__device__ __forceinline__ u32 count_arrival(u32* g_counter) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(g_counter) : "memory");
  return before;
}

// 16 bytes that no thread of the kernel writes, past L1, or zeros where there are none: nothing is read then.
__device__ __forceinline__ uint4 load_16_or_zeros(void const* g_source, bool exists) {
  uint4 v;
  asm volatile(
      "{ .reg .pred exists;\n"
      "setp.ne.s32 exists, %5, 0;\n"
      "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "@exists ld.global.cg.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(g_source), "r"(static_cast<int>(exists)));
  return v;
}

}  // namespace omni
