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

// Natural logarithm of a row's sum of exponentials: `sum` of exp2(score * scale_log2 - round(peak * scale_log2)).
// -inf for a row that saw no key. The rounding of the subtrahend, exact in `residue`, would show for large scores.
__device__ __forceinline__ float log_sum(float peak, float sum, float scale, float scale_log2) {
  constexpr float kLn2 = 0.693147180559945309f;
  if (sum == 0.f) return neg_inf();
  float const residue = fmaf(peak, scale_log2, -(peak * scale_log2));
  return fmaf(peak, scale, fmaf(-residue, kLn2, logf(sum)));
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

  // The new maximum of the rows (m, h): leaves in `correction` the factor of everything accumulated before and returns
  // what is taken off the scaled scores. A row that has seen no key yet keeps max = -inf, where max - max would be
  // NaN: it uses 0. Independent chains keep the comparisons from waiting for each other.
  template <class Scores>
  __device__ __forceinline__ float maximum(Scores const& scores, int m, int h, float& correction, float scale_log2) {
    constexpr int kChains = kM == 1 ? 4 : 2;
    float peak[kChains];
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float const pair = fmaxf(scores.x[m][4 * j + 2 * h], scores.x[m][4 * j + 2 * h + 1]);
      float const before = j == 0 ? row_max[m][h] : peak[j % kChains];
      peak[j % kChains] = j > 0 && j < kChains ? pair : fmaxf(pair, before);
    }
    float top = fmaxf(peak[0], peak[1]);
    if constexpr (kChains == 4) top = fmaxf(top, fmaxf(peak[2], peak[3]));
    top = quad_max(top);
    float const used = top == neg_inf() ? 0.f : top;
    correction = exp2_approx((row_max[m][h] - used) * scale_log2);  // exactly 1 where the maximum stands
    row_max[m][h] = top;
    row_sum[m][h] *= correction;
    return used * scale_log2;
  }

  // Turns the scores of the rows (m, h) into exp(scale * (score - max)) in place and adds them up.
  template <class Scores>
  __device__ __forceinline__ void exponentiate(Scores& scores, int m, int h, float offset, float scale_log2) {
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = scores.x[m][4 * j + 2 * h + e];
        score = exp2_approx(fmaf(score, scale_log2, -offset));
        row_sum[m][h] += score;
      }
    }
  }

  // Both steps for a whole tile, row by row: the comparisons of one row run under the exponentials of the row before.
  template <class Scores>
  __device__ __forceinline__ void update(Scores& scores, float (&correction)[kM][2], float scale_log2) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        exponentiate(scores, m, h, maximum(scores, m, h, correction[m][h], scale_log2), scale_log2);
      }
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

  __device__ __forceinline__ float lse(int m, int h, float scale, float scale_log2) const {
    return log_sum(row_max[m][h], row_sum[m][h], scale, scale_log2);
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
