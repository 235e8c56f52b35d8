// Sums of dQ in float32 where several thread blocks add to them: tiles of 64 queries of a head, each in the order of
// accumulators. Blocks of 16 rows x 8 columns follow each other, those of the same columns side by side. In a block the
// four numbers of a lane lie together where they are added at once (compute capability 9.0 and later), else those of
// the 32 lanes, so that a warp always adds to neighbouring addresses.
#pragma once

#include "omni/backward_params.cuh"
#include "omni/reduce.cuh"
#include "omni/tile.cuh"

namespace omni {

// What the kernels take that add to the sums, and the one that turns them into dQ.
struct BackwardParamsWithSums {
  BackwardParams b;
  float* dq_sums;  // (batch, q_heads, q_padded / 64, 64 * head_dim rounded up); zeros before anything is added
};

constexpr int kSumRows = 64;  // queries of a tile

// Where the block of rows 16 * m and columns 8 * j begins in its tile.
__device__ __forceinline__ constexpr int sums_block(int m, int j) { return 128 * (kSumRows / 16 * j + m); }

constexpr bool kAddsFour = __CUDA_ARCH__ >= 900;  // at once

// Adds a lane's four numbers to a block.
__device__ __forceinline__ void add_to_sums(float* g_block, float const* x) {
  if constexpr (kAddsFour) {
    red_add4(g_block + 4 * lane_id(), x);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) red_add(g_block + 32 * i + lane_id(), x[i]);
  }
}

__device__ __forceinline__ void read_sums(float* x, float const* g_block) {
  if constexpr (kAddsFour) {
    float4 const four = reinterpret_cast<float4 const*>(g_block)[lane_id()];
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = g_block[32 * i + lane_id()];
  }
}

}  // namespace omni
