// The register tile that every tensor-core kernel shares: for float32 accumulators mma.m16n8k16 and each warp of
// wgmma.m64nNk16 give a thread the same slice (PTX ISA, "Matrix fragments"), so mask, softmax and stores are
// written once over it.
#pragma once

#include "omni/params.cuh"

namespace omni {

// threadIdx.x, hidden from the optimiser: what is worked out from it is not kept in registers.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }

// kM tiles of 16 rows by kN columns, owned by one warp. Element (m, j, h, e) lies in x[m][4 * j + 2 * h + e], at
// row(m, h) and col(j, e) of the warp's tile; a row is shared by the four lanes of a quad.
template <int kM, int kN>
struct RegTile {
  static constexpr int kTilesM = kM;
  static constexpr int kCols = kN;
  static constexpr int kBlocks = kN / 8;

  float x[kM][kN / 2];

  __device__ __forceinline__ static int row(int m, int h) { return 16 * m + 8 * h + lane_id() / 4; }
  __device__ __forceinline__ static int col(int j, int e) { return 8 * j + 2 * (lane_id() % 4) + e; }

  __device__ __forceinline__ void fill(float value) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) x[m][i] = value;
    }
  }

  __device__ __forceinline__ void add(RegTile const& other) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) x[m][i] += other.x[m][i];
    }
  }
};

__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// Transposes a 4 x 4 matrix of words over the lanes of a quad: lane c comes in with column c of four blocks and
// leaves with all four columns of block c, that is with 16 contiguous bytes of one row.
__device__ __forceinline__ void quad_transpose(u32 (&word)[4]) {
  bool const odd = lane_id() & 1;
  bool const upper = lane_id() & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    u32 const got = __shfl_xor_sync(0xffffffffu, odd ? word[i] : word[i + 1], 1);
    word[i] = odd ? got : word[i];
    word[i + 1] = odd ? word[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    u32 const got = __shfl_xor_sync(0xffffffffu, upper ? word[i] : word[i + 2], 2);
    word[i] = upper ? got : word[i];
    word[i + 2] = upper ? word[i + 2] : got;
  }
}

}  // namespace omni
