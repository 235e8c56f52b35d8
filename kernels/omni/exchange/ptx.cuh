// One function, one instruction or two: what several GPUs read and write (PTX ISA 8.x: memory consistency model).
#pragma once

#include "omni/params.cuh"

namespace omni {

// What a peer wrote ahead of `fence_system` and `store_flag`, the caller reads after this.
__device__ __forceinline__ u32 load_acquire(u32 const* g_flag) {
  u32 value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(g_flag) : "memory");
  return value;
}

__device__ __forceinline__ void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// Of memory that no kernel writes meanwhile, and that is not read again soon.
__device__ __forceinline__ uint4 load_once(uint4 const* g_source) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(g_source));
  return x;
}

// Of memory that others write: from where their writes arrive, which is the L2 cache of its device.
__device__ __forceinline__ uint4 load_arrived(uint4 const* g_source) {
  uint4 x;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(g_source)
               : "memory");
  return x;
}

__device__ __forceinline__ u64 nanoseconds() {
  u64 now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// Of a peer, or of the host.
__device__ __forceinline__ void store_flag(u32* g_flag, u32 value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(g_flag), "r"(value) : "memory");
}

__device__ __forceinline__ void let_next_kernel_come_up() {
  if constexpr (__CUDA_ARCH__ >= 900) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace omni
