// kernels/omni/exchange/ptx.cuh for the host, where a rank is a thread of the system, or a process. The kernel is its own
// library for each rank, and memory that ranks share is ordered as on a device.
#pragma once

#include <sched.h>
#include <time.h>

#include "omni/params.cuh"

namespace omni {

inline u64 nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1000000000ull * now.tv_sec + now.tv_nsec;
}

// Others of the thread block, then other ranks, have a turn.
inline u32 load_acquire(u32 const* g_flag) {
  cpu::yield();
  u32 const value = __atomic_load_n(g_flag, __ATOMIC_ACQUIRE);
  sched_yield();
  return value;
}

inline void fence_system() { __atomic_thread_fence(__ATOMIC_ACQ_REL); }

inline void store_flag(u32* g_flag, u32 value) { __atomic_store_n(g_flag, value, __ATOMIC_RELAXED); }

inline uint4 load_once(uint4 const* g_source) { return *g_source; }
inline uint4 load_arrived(uint4 const* g_source) { return *g_source; }

inline void let_next_kernel_come_up() {}

}  // namespace omni
