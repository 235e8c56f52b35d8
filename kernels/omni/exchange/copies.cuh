// Copies of a thread block, 16 bytes a thread at once.
#pragma once

#include "omni/exchange/params.cuh"
#include "omni/exchange/ptx.cuh"

namespace omni {

// Chunks of 16 bytes of a row: keys of all batch elements and heads, the columns of both arrays side by side.
__device__ __forceinline__ int row_chunks(ExchangeParams const& p) {
  return p.batch * p.heads * (p.chunks[0] + p.chunks[1]);
}

// Keys key_of(0), ..., key_of(count - 1), as rows from `to` on. A thread keeps to its columns, and has kAtOnce loads on
// their way.
template <int kThreads, int kAtOnce, class KeyOf>
__device__ __forceinline__ void copy_keys(ExchangeParams const& p, int count, uint4* to, KeyOf const& key_of) {
  int const wide = row_chunks(p), columns = p.chunks[0] + p.chunks[1];
  int const rows = max(kThreads / wide, 1);  // that the thread block copies at once
  for (int base = 0; base < wide; base += kThreads) {
    int const first = wide < kThreads ? threadIdx.x / wide : 0;
    int const column = wide < kThreads ? threadIdx.x % wide : base + threadIdx.x;
    if (first >= rows || column >= wide) continue;
    int const side = column % columns >= p.chunks[0];
    int const head = column / columns % p.heads, batch = column / columns / p.heads;
    uint4 const* const from = static_cast<uint4 const*>(p.given[side]) + batch * p.strides[side].batch +
                              head * p.strides[side].head + column % columns - side * p.chunks[0];
    i64 const step = p.strides[side].token;
    for (int row = first; row < count; row += kAtOnce * rows) {
      uint4 x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (row + i * rows < count) x[i] = load_once(from + key_of(row + i * rows) * step);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (row + i * rows < count) to[static_cast<i64>(row + i * rows) * wide + column] = x[i];
      }
    }
  }
}

// What others wrote, as it lies.
template <int kThreads, int kAtOnce>
__device__ __forceinline__ void copy_arrived(uint4 const* from, uint4* to, i64 count) {
  for (i64 at = threadIdx.x; at < count; at += kAtOnce * kThreads) {
    uint4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (at + i * kThreads < count) x[i] = load_arrived(from + at + i * kThreads);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (at + i * kThreads < count) to[at + i * kThreads] = x[i];
    }
  }
}

// In place of what did not come: NaN in every floating dtype.
template <int kThreads>
__device__ __forceinline__ void fill_with_nan(uint4* to, i64 count) {
  u32 const ones = 0xffffffffu;
  for (i64 at = threadIdx.x; at < count; at += kThreads) to[at] = make_uint4(ones, ones, ones, ones);
}

}  // namespace omni
