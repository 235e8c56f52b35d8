// Online softmax over the register tile (Milakov and Gimelshein 2018; rescaling as in FlashAttention-2): running row
// maximum of the raw scores, row sums kept per thread and added up over the quad once, at the end.
#pragma once

#include "omni/convert.cuh"
#include "omni/tile.cuh"

namespace omni {

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <int kM>
struct OnlineSoftmax {
  float row_max[kM][2];
  float row_sum[kM][2];

  __device__ __forceinline__ void init() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      row_max[m][0] = row_max[m][1] = neg_inf();
      row_sum[m][0] = row_sum[m][1] = 0.f;
    }
  }

  // Turns scores into exp(scale * (score - max)) in place and leaves in `correction` the factor of everything
  // accumulated before. A row that has seen no key yet keeps max = -inf, where max - max would be NaN: it uses 0.
  template <class Scores>
  __device__ __forceinline__ void update(Scores& scores, float (&correction)[kM][2], float scale_log2) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float peak = row_max[m][h];
#pragma unroll
        for (int j = 0; j < Scores::kBlocks; ++j) {
          peak = fmaxf(peak, fmaxf(scores.x[m][4 * j + 2 * h], scores.x[m][4 * j + 2 * h + 1]));
        }
        peak = quad_max(peak);
        float const used = peak == neg_inf() ? 0.f : peak;
        float const offset = used * scale_log2;
        correction[m][h] = exp2_approx((row_max[m][h] - used) * scale_log2);
        row_max[m][h] = peak;
        float sum = row_sum[m][h] * correction[m][h];
#pragma unroll
        for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = scores.x[m][4 * j + 2 * h + e];
            score = exp2_approx(fmaf(score, scale_log2, -offset));
            sum += score;
          }
        }
        row_sum[m][h] = sum;
      }
    }
  }

  // Holds the exponentials in front of what follows: ptxas would move them behind a wait for the tensor cores, which
  // they are meant to run beside, but not over an instruction with side effects that depends on their sums. It never
  // runs: a sum is not negative.
  __device__ __forceinline__ void finish_here() const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p nanosleep.u32 1; }" ::"f"(
                       fminf(row_sum[m][0], row_sum[m][1]))
                   : "memory");
    }
  }

  // Adds up the row sums over the quad. After it, inverse(m, h) scales O and lse(m, h) is the natural logarithm of
  // the row's sum of exponentials. A row that saw no key: 0 and -inf.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) row_sum[m][h] = quad_sum(row_sum[m][h]);
    }
  }

  __device__ __forceinline__ float inverse(int m, int h) const {
    return row_sum[m][h] == 0.f ? 0.f : 1.f / row_sum[m][h];
  }

  __device__ __forceinline__ float lse(int m, int h, float scale) const {
    constexpr float kLn2 = 0.693147180559945309f;
    return row_sum[m][h] == 0.f ? neg_inf() : row_max[m][h] * scale + log2_approx(row_sum[m][h]) * kLn2;
  }
};

// Multiplies the accumulated rows by their correction. kSkipSettled: once the maxima have settled every correction of
// the warp is 1, and a vote skips the multiplications.
template <bool kSkipSettled, class Out>
__device__ __forceinline__ void rescale(Out& out, float const (&correction)[Out::kTilesM][2]) {
  if constexpr (kSkipSettled) {
    bool settled = true;
#pragma unroll
    for (int m = 0; m < Out::kTilesM; ++m) settled = settled && correction[m][0] == 1.f && correction[m][1] == 1.f;
    if (__all_sync(0xffffffffu, settled)) return;
  }
#pragma unroll
  for (int m = 0; m < Out::kTilesM; ++m) {
#pragma unroll
    for (int j = 0; j < Out::kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out.x[m][4 * j + i] *= correction[m][i / 2];
    }
  }
}

}  // namespace omni
