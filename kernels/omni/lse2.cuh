// What is taken off scores in the backward pass: lse2 = lse * log2(e) of a row. Rounded, it moves a weight of 1 to 2^r,
// |r| being up to 2^-11 for scores of 1e4, which shows in float16. So in float16, but for capped scores, rows whose lse
// is large are far: lse2 is their lse, in natural logarithms, times kFarFactor, which no other lse2 comes near. There
// a score is scaled, and rounded, before lse is taken off it, as lse itself was made of row_max: where a row is one
// key's, its weight is exactly 1.
#pragma once

#include "omni/numbers.cuh"

namespace omni {

constexpr float kFarFactor = 0x1p20f;
// Up to here lse2 is the product. A far row's is at least kFarFactor * 4096 / log2(e).
constexpr float kFarLse2 = 4096.f;

// lse2 of a row that sees a key. product: its lse times log2(e).  may_be_far: float16, and scores are not capped.
__device__ __forceinline__ float lse2_of(float product, float lse, bool may_be_far) {
  return may_be_far && fabsf(product) > kFarLse2 ? lse * kFarFactor : product;
}

// Not for +inf, which rows have that see no key.
__device__ __forceinline__ bool is_far_lse2(float lse2) {
  return fabsf(lse2) > kFarFactor && fabsf(lse2) < __int_as_float(0x7f800000);
}

// lse2 as a product all the same, for dQ, which has no use for an exact weight.
template <class Cfg>
__device__ __forceinline__ float product_lse2(float lse2) {
  if constexpr (Cfg::kBf16 || Cfg::kSoftcap) return lse2;
  return is_far_lse2(lse2) ? lse2 * (1.f / kFarFactor) * kLog2E : lse2;
}

// A score's weight, in a far row or in another.
__device__ __forceinline__ float weight_of(float score, ForwardParams const& p, float lse2) {
  float const far = (__fmul_rn(score, p.scale) - lse2 * (1.f / kFarFactor)) * kLog2E;
  return exp2_approx(is_far_lse2(lse2) ? far : fmaf(score, p.scale_log2, -lse2));
}

// Has one of kCount numbers in shared memory, a warp's to look at, that of a far row?
template <int kCount>
__device__ __forceinline__ bool any_far(float const* s_lse2) {
  bool far = false;
#pragma unroll
  for (int i = 0; i < kCount; i += 32) {
    int const index = i + static_cast<int>(threadIdx.x % 32);
    far = far || ((kCount % 32 == 0 || index < kCount) && is_far_lse2(s_lse2[index]));
  }
  return __any_sync(0xffffffffu, far);
}

}  // namespace omni
