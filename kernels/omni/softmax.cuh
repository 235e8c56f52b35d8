// Online softmax over the register tile (Milakov and Gimelshein 2018) against standing peaks. What is taken off a row's
// scores cancels in the end, so it need not be their maximum, only near enough for the exponentials to be numbers. A
// row's peak is the maximum of the first 64 keys in FULL tiles, and then stands until a tile outgrows it. All exponentials are
// positive, so the sum that a tile adds up anyway says whether one of them is large: most tiles need no maximum, no
// exchange between threads and no rescaling of what was accumulated. Rows that see few keys, none of them in a FULL tile,
// keep their exact maximum: a weight of 1 has no rounding error, and theirs would show.
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

// Multiplies the accumulated rows (m, h) by their correction.
template <class Out>
__device__ __forceinline__ void rescale_row(Out& out, int m, int h, float correction) {
#pragma unroll
  for (int j = 0; j < Out::kBlocks; ++j) {
    out.x[m][4 * j + 2 * h] *= correction;
    out.x[m][4 * j + 2 * h + 1] *= correction;
  }
}

// A tile's sum of exponentials, of one row in one thread, up to which the row's peak stands. Any weight below it is far
// from float16's largest number, 65504, and a peak is outgrown by 2^8 or more before it moves.
constexpr float kSumLimit = 8192.f;

// The same limit on a score above the peak, in powers of 2.
constexpr float kGrowthLog2 = 8.f;

template <int kM>
struct OnlineSoftmax {
  float peak[kM][2];
  float row_sum[kM][2];  // of exp2((score - peak) * scale_log2), over this thread's columns

  __device__ __forceinline__ void init() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      peak[m][0] = peak[m][1] = neg_inf();
      row_sum[m][0] = row_sum[m][1] = 0.f;
    }
  }

  // What is taken off the scaled scores of the rows (m, h). A row that has seen no key takes off a number so far below
  // any score that hidden keys weigh 0 and the first visible one weighs infinity: its sum does not stand.
  __device__ __forceinline__ float offset(int m, int h, float scale_log2) const {
    return fmaxf(peak[m][h] * scale_log2, -1e30f);
  }

  // The same where the peak was just looked at: a row that has seen no key takes off 0.
  __device__ __forceinline__ float raised_offset(int m, int h, float scale_log2) const {
    return peak[m][h] == neg_inf() ? 0.f : peak[m][h] * scale_log2;
  }

  // Do the whole warp's peaks stand, by the sums of the weights made so far of a tile?
  __device__ __forceinline__ static bool stand(float const (&sums)[kM][2]) {
    bool small = true;
#pragma unroll
    for (int m = 0; m < kM; ++m) small = small && sums[m][0] < kSumLimit && sums[m][1] < kSumLimit;  // not for NaN
    return __all_sync(0xffffffffu, small);
  }

  __device__ __forceinline__ void add(float const (&sums)[kM][2]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      row_sum[m][0] += sums[m][0];
      row_sum[m][1] += sums[m][1];
    }
  }

  // The greatest score of this thread in the rows (m, h). Independent chains keep the comparisons from waiting for each
  // other.
  template <class Scores>
  __device__ __forceinline__ static float highest(Scores const& scores, int m, int h) {
    constexpr int kChains = kM == 1 ? 4 : 2;
    float top[kChains];
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float const pair = fmaxf(scores.x[m][4 * j + 2 * h], scores.x[m][4 * j + 2 * h + 1]);
      top[j % kChains] = j < kChains ? pair : fmaxf(pair, top[j % kChains]);
    }
    if constexpr (kChains == 2) return fmaxf(top[0], top[1]);
    if constexpr (kChains == 4) return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  }

  // Moves the peak of the rows (m, h) to the maximum of all scores so far, `top` being this thread's greatest new one.
  // Returns the factor of everything accumulated before: exactly 1 where the peak stands.
  __device__ __forceinline__ float raise(float top, int m, int h, float scale_log2) {
    top = quad_max(fmaxf(top, peak[m][h]));
    float const used = top == neg_inf() ? 0.f : top;
    float const correction = exp2_approx((peak[m][h] - used) * scale_log2);
    peak[m][h] = top;
    row_sum[m][h] *= correction;
    return correction;
  }

  // Moves the peaks that a tile outgrows, row by row, and rescales `out` there. may_stand: this tile follows FULL ones.
  template <class Scores, class Out>
  __device__ __forceinline__ void settle(Scores const& scores, Out& out, bool may_stand, float scale_log2) {
    float const growth = may_stand ? kGrowthLog2 : 0.f;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float const top = highest(scores, m, h);
        bool const small = (top - peak[m][h]) * scale_log2 <= growth;  // not for NaN: no key yet
        if (!__all_sync(0xffffffffu, small)) {
          float const correction = raise(top, m, h, scale_log2);
          rescale_row(out, m, h, correction);
        }
      }
    }
  }

  // exp(scale * (score - peak)) of a score in the rows (m, h), which their sum takes in.
  __device__ __forceinline__ float weigh(float score, int m, int h, float offset, float scale_log2) {
    float const weight = exp2_approx(fmaf(score, scale_log2, -offset));
    row_sum[m][h] += weight;
    return weight;
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
    return log_sum(peak[m][h], row_sum[m][h], scale, scale_log2);
  }
};

}  // namespace omni
