// The last columns of Q, K and V, where they are few: a narrow panel of their own, swizzled as far as its rows reach,
// in place of one of 64 columns. Stages take less shared memory, and less of it is written.
#pragma once

#include "omni/sm90/wgmma.cuh"
#include "omni/tile.cuh"

namespace omni {

// Columns in a narrow panel behind the whole ones, of so many (jit/panels.py).
constexpr int tail_columns(int columns) {
  constexpr int kLeast = 16, kMost = 32;
  int const left = columns % kPanelColumns;
  return columns > kPanelColumns && (left == kLeast || left == kMost) ? left : 0;
}

// Tensor maps of the narrow panels.
struct TailMaps {
  TensorMap q, k, v;
};

// load_panels, and a narrow panel behind them where there is one.
template <int kRows, int kPanels, int kTail>
__device__ __forceinline__ void load_panels_and_tail(
    unsigned char* s_tile, TensorMap const* map, TensorMap const* tail_map, u64* full, TileOrigin at,
    int more_bytes = 0) {
  load_panels<kRows, kPanels>(s_tile, map, full, at, more_bytes + 2 * kTail * kRows);
  if constexpr (kTail != 0) {
    tma_load_4d(
        smem_address(s_tile) + kPanels * kRows * kPanelRowBytes, tail_map, smem_address(full), kPanelColumns * kPanels,
        at.token, at.head, at.batch);
  }
}

// As descriptor: rows of a narrow panel follow each other, groups of 8 of them too. Swizzle of 32 bytes, or of 64.
template <int kTail>
__device__ __forceinline__ u64 tail_descriptor(u32 low, int bytes) {
  constexpr u32 kSwizzle = kTail == 16 ? 3 : 2;
  return static_cast<u64>(static_cast<u32>(8 * 2 * kTail >> 4) | kSwizzle << 30) << 32 | (low + (bytes >> 4));
}

// d += a b^T over the columns of narrow panels, started behind start_ss_kk. a, b: the descriptors' low words.
template <int kTail, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_tail_ss_kk(D& d, u32 a, u32 b) {
  constexpr int kN = atom_columns<D::kCols, kMostN>();
#pragma unroll
  for (int step = 0; step < kTail / 16; ++step) {
    u64 const a_step = tail_descriptor<kTail>(a, 32 * step);
#pragma unroll
    for (int n = 0; n < D::kCols; n += kN) {
      u64 const b_step = tail_descriptor<kTail>(b, 32 * step + n * 2 * kTail);
      Wgmma<kN, kBf16>::ss_kk(columns_of<kN>(d, n), a_step, b_step, 1);
    }
  }
}

// start_rs_n where b ends in a narrow panel, kWhole of its columns before it. tail: the low word of its descriptor.
template <int kInner, int kWhole, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_rs_n_and_tail(D& d, u32 const (&a)[kInner / 4], u32 b, u32 tail) {
  constexpr int kTail = D::kCols - kWhole;
  start_rs_n<kInner, kBf16, kMostN>(reinterpret_cast<RegTile<1, kWhole>&>(d), a, b);
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
    u64 const b_step = tail_descriptor<kTail>(tail, step * 16 * 2 * kTail);
    Wgmma<kTail, kBf16>::rs_n(columns_of<kTail>(d, kWhole), a + 4 * step, b_step);
  }
}

}  // namespace omni
