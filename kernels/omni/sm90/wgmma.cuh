// Products of the tensor cores for one warpgroup: shared-memory descriptors, registers across asynchronous
// instructions, and the chain of instructions over the inner dimension, a form of operands a function.
#pragma once

#include "omni/mma_atom.cuh"
#include "omni/sm90/tma.cuh"
#include "omni/sm90/wgmma_table.cuh"

namespace omni {

// The low word of a descriptor (PTX ISA, wgmma "Matrix descriptor"), the only one that differs between tiles: address
// and leading offset in units of 16 bytes. The leading offset is the distance of 64-column panels, which only an
// MN-major operand crosses inside one instruction. Uniform, and seen to be: steps of it are then worked out once a
// warp.
__device__ __forceinline__ u32 descriptor_low(u32 s_address, int panel_bytes) {
  return __shfl_sync(0xffffffffu, (s_address & 0x3ffff) >> 4 | static_cast<u32>(panel_bytes >> 4) << 16, 0);
}

// The whole descriptor, `bytes` further on. High word: groups of 8 rows are 1024 bytes apart, swizzle of 128 bytes.
__device__ __forceinline__ u64 descriptor(u32 low, int bytes) {
  return static_cast<u64>((1024 >> 4) | 1u << 30) << 32 | (low + (bytes >> 4));
}

// Ties registers to this point of the program: the compiler takes the outputs of a wgmma as ready when it is issued,
// and must neither read them earlier than the wait nor write them later than the fence.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void pin_registers(u32 (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// The accumulators of kN columns from `column` on.
template <int kN>
using Accumulators = float[kN / 2];

template <int kN, class D>
__device__ __forceinline__ Accumulators<kN>& columns_of(D& d, int column) {
  return reinterpret_cast<Accumulators<kN>&>(d.x[0][column / 2]);
}

// How many bytes behind the first of a tile's columns another one begins, kRows rows in each panel.
template <int kRows>
__device__ __forceinline__ constexpr int column_bytes(int column) {
  return column / kPanelColumns * kRows * kPanelRowBytes + column % kPanelColumns * 2;
}

// d = a b^T over kInner columns, started, between the caller's fence and commit. a, b: descriptors' low words of
// operands in panels of 64 columns, `kAPanelBytes` and `kBPanelBytes` apart. kMostN: columns of an instruction at most.
template <int kInner, int kAPanelBytes, int kBPanelBytes, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_ss_kk(D& d, u32 a, u32 b) {
  constexpr int kN = atom_columns<D::kCols, kMostN>();
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
    // 32 bytes a step inside the swizzled panel.
    int const in_panel = step % 4 * 32;
    u64 const a_step = descriptor(a, in_panel + step / 4 * kAPanelBytes);
#pragma unroll
    for (int n = 0; n < D::kCols; n += kN) {
      u64 const b_step = descriptor(b, in_panel + step / 4 * kBPanelBytes + n * kPanelRowBytes);
      Wgmma<kN, kBf16>::ss_kk(columns_of<kN>(d, n), a_step, b_step, step != 0);
    }
  }
}

// d = a b over kInner rows of b, started, between the caller's fence and commit. a: as above; b: as below.
template <int kInner, int kAPanelBytes, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_ss_kn(D& d, u32 a, u32 b) {
  constexpr int kN = atom_columns<D::kCols, kMostN>();
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
    u64 const a_step = descriptor(a, step % 4 * 32 + step / 4 * kAPanelBytes);
#pragma unroll
    for (int n = 0; n < D::kCols; n += kN) {
      u64 const b_step = descriptor(b, step * 16 * kPanelRowBytes + column_bytes<kInner>(n));
      Wgmma<kN, kBf16>::ss_kn(columns_of<kN>(d, n), a_step, b_step, step != 0);
    }
  }
}

// d = a b^T over kInner columns, started, between the caller's fence and commit. a: as in start_rs_n; b: as in
// start_ss_kk.
template <int kInner, int kBPanelBytes, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_rs_k(D& d, u32 const (&a)[kInner / 4], u32 b) {
  constexpr int kN = atom_columns<D::kCols, kMostN>();
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
#pragma unroll
    for (int n = 0; n < D::kCols; n += kN) {
      u64 const b_step = descriptor(b, step % 4 * 32 + step / 4 * kBPanelBytes + n * kPanelRowBytes);
      Wgmma<kN, kBf16>::rs_k(columns_of<kN>(d, n), a + 4 * step, b_step, step != 0);
    }
  }
}

// d += a b over kInner rows of b, started, between the caller's fence and commit. a: pairs of 16-bit values in the
// order of A fragments, which is that of a register tile's columns; b: the descriptor's low word of the operand,
// whose rows follow each other in its panels.
template <int kInner, bool kBf16, int kMostN, class D>
__device__ __forceinline__ void start_rs_n(D& d, u32 const (&a)[kInner / 4], u32 b) {
  constexpr int kN = atom_columns<D::kCols, kMostN>();
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
#pragma unroll
    for (int n = 0; n < D::kCols; n += kN) {
      u64 const b_step = descriptor(b, step * 16 * kPanelRowBytes + column_bytes<kInner>(n));
      Wgmma<kN, kBf16>::rs_n(columns_of<kN>(d, n), a + 4 * step, b_step);
    }
  }
}

}  // namespace omni
