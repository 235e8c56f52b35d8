// kernels/omni/sm90/ptx.cuh for the host. An mbarrier's word holds what is awaited of its phase; copies of the copy
// engine are done when they are asked for. A tensor map is {address, rank, lengths (5), strides in bytes (4), box (5)}.
#pragma once

#include "omni/address.cuh"

namespace omni {

struct HostBarrier {
  int bytes;
  unsigned pending : 15, count : 15, phase : 1;
};
static_assert(sizeof(HostBarrier) == 8, "the word of a barrier");

inline HostBarrier& host_barrier(u32 at) { return *reinterpret_cast<HostBarrier*>(shared_memory + at); }

inline void end_phase(HostBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.count;
}

inline void mbarrier_init(u32 at, int arrivals) {
  host_barrier(at) = {0, static_cast<unsigned>(arrivals), static_cast<unsigned>(arrivals), 0};
}

inline void fence_mbarrier_init() {}

inline void mbarrier_arrive(u32 at) {
  if (host_barrier(at).pending-- == 0) cpu::fail("mbarrier: one arrival too many");
  end_phase(host_barrier(at));
}

inline void mbarrier_arrive_when_copied(u32 at) {
  for (cpu::Copy const& copy : cpu::thread->open) copy_now(copy);
  cpu::thread->open.clear();
  mbarrier_arrive(at);
}

inline void mbarrier_wait(u32 at, int parity) {
  while (host_barrier(at).phase == parity) cpu::yield();
}

inline bool mbarrier_has_ended(u32 at, int parity) { return host_barrier(at).phase != parity; }

inline void mbarrier_meet(u32 at) {
  int const phase = host_barrier(at).phase;
  mbarrier_arrive(at);
  mbarrier_wait(at, phase);
}

inline void mbarrier_expect_tx(u32 at, int bytes) {
  host_barrier(at).bytes += bytes;
  mbarrier_arrive(at);
}

inline void copied(u32 at, int bytes) {
  host_barrier(at).bytes -= bytes;
  end_phase(host_barrier(at));
}

inline void prefetch_tensormap(void const*) {}
inline void count_round(int* counter, int last) { *counter = *counter >= last ? 0 : *counter + 1; }
inline void prefetch_to_l2(void const*) {}

// The swizzle of a row's bytes, 128, 64 or 32: chunks of 16 bytes change places by bits 7 to 9 of their address.
inline u32 swizzled(u32 at, u32 row_bytes) { return at ^ (at >> 3 & (row_bytes - 16)); }

inline void tma_load(u32 s_target, void const* map, u32 barrier, int rank, int const (&start)[5]) {
  u64 const* const words = static_cast<u64 const*>(map);
  if (words[1] != static_cast<u64>(rank)) cpu::fail("TMA: a map of another rank");
  u64 const* const lengths = words + 2;
  u64 const* const strides = words + 7;
  u64 const* const box = words + 11;
  u32 const row_bytes = 2 * static_cast<u32>(box[0]);
  bool const is_span = row_bytes == 128 || row_bytes == 64 || row_bytes == 32;
  if (!is_span || s_target % (8 * row_bytes)) cpu::fail("TMA: the box or its place");
  int rows = 1;
  for (int axis = 1; axis < rank; ++axis) rows *= box[axis];
  for (int row = 0; row < rows; ++row) {
    bool inside = true;
    i64 offset = 0;
    for (int axis = 1, rest = row; axis < rank; rest /= box[axis], ++axis) {
      i64 const at = start[axis] + rest % static_cast<int>(box[axis]);
      inside = inside && at >= 0 && at < static_cast<i64>(lengths[axis]);
      offset += at * static_cast<i64>(strides[axis - 1]);
    }
    for (int column = 0; column < static_cast<int>(box[0]); column += 8) {
      unsigned short values[8] = {};
      int const left = static_cast<int>(lengths[0]) - start[0] - column;
      if (inside && left > 0) {
        char const* const source = reinterpret_cast<char const*>(words[0]) + offset + 2 * (start[0] + column);
        memcpy(values, source, 2 * min(left, 8));
      }
      memcpy(shared_memory + swizzled(s_target + row_bytes * row + 2 * column, row_bytes), values, 16);
    }
  }
  copied(barrier, static_cast<int>(row_bytes) * rows);
}

inline void tma_load_4d(u32 s_target, void const* map, u32 barrier, int column, int token, int head, int batch) {
  tma_load(s_target, map, barrier, 4, {column, token, head, batch});
}

inline void tma_load_5d(
    u32 s_target, void const* map, u32 barrier, int column, int head, int token, int group, int batch) {
  tma_load(s_target, map, barrier, 5, {column, head, token, group, batch});
}

inline void bulk_load(u32 s_target, void const* source, int bytes, u32 barrier) {
  memcpy(shared_memory + s_target, source, bytes);
  copied(barrier, bytes);
}

inline void store_shared(u32 s_target, float x) {
  if (s_target % 4 || s_target + 4 > static_cast<u32>(cpu::smem_bytes)) cpu::fail("st: address");
  memcpy(shared_memory + s_target, &x, 4);
}

inline void bulk_add(float* target, u32 source, int bytes) {
  for (int i = 0; i < bytes / 16; ++i) {
    cpu::add(target + 4 * i, reinterpret_cast<float const*>(shared_memory + source) + 4 * i, 4);
  }
}
inline void bulk_store(float* target, u32 source, int bytes) { memcpy(target, shared_memory + source, bytes); }
inline void bulk_commit() {}
inline void bulk_wait_read() {}
template <int kPending = 0>
inline void bulk_wait() {}
inline void fence_proxy_async_global() {}
inline int load_acquire(int const* source) {
  cpu::yield();  // whoever asks again waits for another thread
  return __atomic_load_n(source, __ATOMIC_ACQUIRE);
}
inline void store_release(int* target, int x) { __atomic_store_n(target, x, __ATOMIC_RELEASE); }
inline void add_release(int* target, int x) { __atomic_fetch_add(target, x, __ATOMIC_RELEASE); }
inline int load_shared_volatile(u32 source) {
  cpu::yield();
  int x;
  memcpy(&x, shared_memory + source, 4);
  return x;
}
inline void store_shared_volatile(u32 target, int x) { memcpy(shared_memory + target, &x, 4); }
inline void store_shared4(u32 target, float const* x) { memcpy(shared_memory + target, x, 16); }

inline void stmatrix_x4_trans(u32 row, u32 const* pairs) {
  u32* const in = cpu::warp().in[cpu::lane()];
  memcpy(in, pairs, 16);
  in[4] = row;
  cpu::collective([](cpu::Warp& warp) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int e = 0; e < 2; ++e) {
          unsigned short const half = warp.in[lane][matrix] >> 16 * e;
          memcpy(shared_memory + warp.in[8 * matrix + 2 * (lane % 4) + e][4] + 2 * (lane / 4), &half, 2);
        }
      }
    }
  });
}

inline float2 load_shared_pair(float const* pair) { return {pair[0], pair[1]}; }
inline i64 load_shared_i64(i64 const* source) { return *source; }
inline void fence_proxy_async() {}

inline float4 cvt_f32x4_e4m3x4(u32 four) {
  float x[4];
  for (int e = 0; e < 4; ++e) {
    u32 const byte = four >> 8 * e & 255, magnitude = byte & 127;
    float const value = magnitude < 8 ? magnitude / 512.f : ldexpf(8 + magnitude % 8, magnitude / 8 - 10);
    x[e] = magnitude == 127 ? NAN : byte & 128 ? -value : value;
  }
  return {x[0], x[1], x[2], x[3]};
}
inline float4 load_past_l1(float4 const* source) { return *source; }
inline float2 load_past_l1(float2 const* source) { return *source; }
inline float4 load_past_l1_or_zeros(float4 const* source, bool exists) { return exists ? *source : float4{0, 0, 0, 0}; }
inline u32 count_arrival(u32* counter) { return atomicAdd(counter, 1u); }
inline uint4 load_16_or_zeros(void const* source, bool exists) {
  if (!exists) return {};
  if (reinterpret_cast<uintptr_t>(source) % 16) cpu::fail("ld: address");
  cpu::check_source(source, 16);
  return *static_cast<uint4 const*>(source);
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kPending>
void wgmma_wait() {}
template <int kRegisters>
void setmaxnreg_dec() {}
template <int kRegisters>
void setmaxnreg_inc() {}
inline void wait_for_kernel_ahead() {}
inline void let_next_kernel_come() {}

// Named barriers: who arrived of the round, and what any of them said.
struct Named {
  int arrived;
  unsigned round;
  bool any, said;
  unsigned block;  // in which of the thread blocks: each begins with barriers at rest
};

inline Named& named(int barrier) {
  static Named all[16];
  if (all[barrier].block != cpu::blocks_begun) all[barrier] = {0, 0, false, false, cpu::blocks_begun};
  return all[barrier];
}

template <int kThreads>
void bar_arrive(int barrier) {
  Named& mine = named(barrier);
  if (++mine.arrived < kThreads) return;
  mine.said = mine.any;
  mine.any = false;
  mine.arrived = 0;
  ++mine.round;
}

template <int kThreads>
void bar_sync(int barrier) {
  unsigned const round = named(barrier).round;
  bar_arrive<kThreads>(barrier);
  while (named(barrier).round == round) cpu::yield();
}

template <int kThreads>
bool bar_any(int barrier, bool said) {
  named(barrier).any |= said;
  bar_sync<kThreads>(barrier);
  return named(barrier).said;
}

}  // namespace omni
