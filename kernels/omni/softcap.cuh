// Soft caps: scores become softcap * tanh(scale / softcap * score) before they are masked. Kernels turn scores into the
// tanh alone, and have softcap for their scale from there on.
#pragma once

#include "omni/numbers.cuh"
#include "omni/tile.cuh"

namespace omni {

// tanh(x) for |x| <= 1, by a polynomial in x^2 that was fitted to the relative error, 6e-8 at most before rounding.
// Products and sums alone: most scores lie here, and exponentials are dear beside a softmax.
__device__ __forceinline__ float tanh_near(float x) {
  float const u = x * x;
  float sum = 0.00105826475f;
  sum = fmaf(sum, u, -0.0062593394f);
  sum = fmaf(sum, u, 0.0203597602f);
  sum = fmaf(sum, u, -0.0534987077f);
  sum = fmaf(sum, u, 0.133264095f);
  sum = fmaf(sum, u, -0.333329856f);
  return fmaf(x * u, sum, x);
}

// tanh(x) for |x| > 1, where 1 - 2 / (1 + exp(2 |x|)) loses nothing.
__device__ __forceinline__ float tanh_far(float x) {
  constexpr float kTwoLog2E = 2.88539008177792681f;
  float share;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.f + exp2_approx(kTwoLog2E * fabsf(x))));
  return copysignf(fmaf(-2.f, share, 1.f), x);
}

// The factor of a score's gradient: the derivative of tanh by its argument, where that is tanh. 0 for a hidden score.
__device__ __forceinline__ float tanh_slope(float tanh) {
  float const visible = fmaxf(tanh, -1.f);
  return fmaf(-visible, visible, 1.f);
}

// A tile's scores to tanh(score * tanh_scale), in place. What a score becomes depends on nothing but it. Every lane of
// the warp calls it.
template <class Scores>
__device__ __forceinline__ void cap_scores(Scores& scores, float tanh_scale) {
  constexpr int kChains = 4;  // which need not wait for each other
  float top[kChains] = {};
#pragma unroll
  for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < Scores::kCols / 2; ++i) top[i % kChains] = fmaxf(top[i % kChains], fabsf(scores.x[m][i]));
  }
  float const highest = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  bool const near = __all_sync(0xffffffffu, highest * tanh_scale <= 1.f);
  if (near) {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < Scores::kCols / 2; ++i) scores.x[m][i] = tanh_near(scores.x[m][i] * tanh_scale);
    }
  } else {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < Scores::kCols / 2; ++i) {
        float const x = scores.x[m][i] * tanh_scale;
        scores.x[m][i] = fabsf(x) <= 1.f ? tanh_near(x) : tanh_far(x);
      }
    }
  }
}

}  // namespace omni
