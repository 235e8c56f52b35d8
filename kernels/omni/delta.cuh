// What the backward pass needs of each row first, by the lanes that share it, in one order whoever makes it: 8 columns
// of dO and O a lane and step, and of their products' sums and lse what rows leave.
#pragma once

#include "omni/backward_params.cuh"
#include "omni/lse2.cuh"

namespace omni {

// Lanes of a row that has so many pieces of 8 columns: rounded up to a power of 2, at most 32.
constexpr int lanes_of(int pieces) {
  int lanes = 1;
  while (lanes < pieces && lanes < 32) lanes *= 2;
  return lanes;
}

// Eight products, added up.
template <bool kBf16>
__device__ __forceinline__ float dot(uint4 const& a, uint4 const& b) {
  u32 const left[4] = {a.x, a.y, a.z, a.w};
  u32 const right[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 const x = unpack_pair<kBf16>(left[i]);
    float2 const y = unpack_pair<kBf16>(right[i]);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
  }
  return sum;
}

// Over the lanes of a row.
template <int kLanes>
__device__ __forceinline__ float sum_of_row(float sum) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// Of a row that sees a key: lse times log2(e), and lse; rowsum(dO * O); and the gradient of lse.
struct RowSums {
  float product, lse, sum, of_lse;
};

// lse2 and delta of a row. target: its place.
template <bool kBf16>
__device__ __forceinline__ void put_statistics(BackwardParams const& params, i64 target, bool sees, RowSums const& of) {
  bool const may_be_far = !kBf16 && params.p.tanh_scale == 0.f;
  params.lse2[target] = sees ? lse2_of(of.product, of.lse, may_be_far) : -neg_inf();
  params.delta[target] = sees ? of.sum - of.of_lse : 0.f;
}

}  // namespace omni
