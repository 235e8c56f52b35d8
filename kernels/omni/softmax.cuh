// Online softmax over the register tile (Milakov and Gimelshein 2018) with lazy rescaling. What is taken off a row's
// scores, its row_max, cancels in the end, so it need not be their maximum, only near enough for the exponentials to
// be numbers. It is the maximum of the first 64 keys in FULL tiles, and then is left as it is until a tile outgrows
// it. All exponentials are positive, so the sum that a tile adds up anyway says whether one of them is large: most
// tiles need no maximum, no exchange between threads and no rescaling of what was accumulated. A weight of 1 has no
// rounding error. Where one weight is most of a row's sum its error would show, so row_max is exact there: in rows that
// see few keys, none of them in a FULL tile, and where a tile outweighs all keys before it.
#pragma once

#include "omni/numbers.cuh"
#include "omni/tile.cuh"

namespace omni {

// Multiplies the accumulated rows (m, h) by their correction.
template <class Out>
__device__ __forceinline__ void rescale_row(Out& out, int m, int h, float correction) {
#pragma unroll
  for (int j = 0; j < Out::kBlocks; ++j) {
    out.x[m][4 * j + 2 * h] *= correction;
    out.x[m][4 * j + 2 * h + 1] *= correction;
  }
}

// A tile's sum of exponentials, of one row in one thread, up to which row_max may be left as it is. Any weight below it
// is far from the largest float16, 65504, and however many tiles a row has, its sums and O are far from the largest
// float32: kGrowthLimit alone would let them grow with each tile.
constexpr float kSumLimit = 8192.f;

// The same where scores are compared, not sums: how far above row_max one may lie, in powers of 2.
constexpr float kRescaleThresholdLog2 = 8.f;

// How many times what a thread has added up of a row its part of a tile may weigh before row_max is raised. With normal
// scores it hardly ever weighs more; in a row that is nearly one key's (scores with a deviation of 8, say) it does.
constexpr float kGrowthLimit = 4.f;

template <int kM, bool kBf16>
struct OnlineSoftmax {
  float row_max[kM][2];
  float row_sum[kM][2];  // of exp2((score - row_max) * scale_log2), over this thread's columns

  __device__ __forceinline__ void init() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      row_max[m][0] = row_max[m][1] = neg_inf();
      row_sum[m][0] = row_sum[m][1] = 0.f;
    }
  }

  // What is taken off the scaled scores of the rows (m, h). A row that has seen no key takes off a number so far below
  // any score that hidden keys weigh 0 and the first visible one weighs infinity: row_max does not hold.
  __device__ __forceinline__ float offset(int m, int h, float scale_log2) const {
    return fmaxf(row_max[m][h] * scale_log2, -1e30f);
  }

  // The same where row_max was just raised: a row that has seen no key takes off 0.
  __device__ __forceinline__ float raised_offset(int m, int h, float scale_log2) const {
    return row_max[m][h] == neg_inf() ? 0.f : row_max[m][h] * scale_log2;
  }

  // Takes row_max off the scores themselves in rows that are far (numbers.cuh), whose offset is 0 then. offset: what
  // raised_offset returned. Warps without such a row pass by.
  template <class Scores>
  __device__ __forceinline__ void take_off(Scores& scores, float (&offset)[kM][2]) const {
    if constexpr (kBf16) return;
    bool far = false;
#pragma unroll
    for (int m = 0; m < kM; ++m) far = far || is_far<kBf16>(offset[m][0]) || is_far<kBf16>(offset[m][1]);
    if (!__any_sync(0xffffffffu, far)) return;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float const shift = is_far<kBf16>(offset[m][h]) ? row_max[m][h] : 0.f;
        offset[m][h] = is_far<kBf16>(offset[m][h]) ? 0.f : offset[m][h];
#pragma unroll
        for (int j = 0; j < Scores::kBlocks; ++j) {
          scores.x[m][4 * j + 2 * h] -= shift;
          scores.x[m][4 * j + 2 * h + 1] -= shift;
        }
      }
    }
  }

  // What a tile's weights may be in the rows (m, h) of this thread while row_max stays.
  __device__ __forceinline__ float weight_limit(int m, int h) const {
    return fminf(kGrowthLimit * row_sum[m][h], kSumLimit);
  }

  // Are a tile's weights in the rows (m, h) small, which are not added yet, and may offset stay as it is? Not for NaN.
  __device__ __forceinline__ bool is_small(float sum, float offset, int m, int h) const {
    return sum <= weight_limit(m, h) && !is_far<kBf16>(offset);
  }

  // Does row_max hold for the whole warp, by the sums of a tile's weights against `offset`?
  __device__ __forceinline__ bool holds(float const (&sums)[kM][2], float const (&offset)[kM][2]) const {
    bool small = true;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) small = small && is_small(sums[m][h], offset[m][h], m, h);
    }
    return __all_sync(0xffffffffu, small);
  }

  // Does it hold for the rows (m, h), whichever others the warp has?
  __device__ __forceinline__ bool row_holds(float sum, float offset, int m, int h) const {
    return quad_max(is_small(sum, offset, m, h) ? 0.f : 1.f) == 0.f;
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

  // Raises row_max of the rows (m, h) to the maximum of all scores so far, `top` being this thread's greatest new one.
  // Returns the factor of everything accumulated before: exactly 1 where row_max stays.
  __device__ __forceinline__ float raise_max(float top, int m, int h, float scale_log2) {
    top = quad_max(fmaxf(top, row_max[m][h]));
    float const used = top == neg_inf() ? 0.f : top;
    float const correction = exp2_approx((row_max[m][h] - used) * scale_log2);
    row_max[m][h] = top;
    row_sum[m][h] *= correction;
    return correction;
  }

  // Raises row_max where a tile outgrows it, row by row, and rescales `out` there. allow_lazy: FULL tiles came before.
  template <class Scores, class Out>
  __device__ __forceinline__ void rescale_outgrown(Scores const& scores, Out& out, bool allow_lazy, float scale_log2) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float const growth = log2_approx(fmaxf(kGrowthLimit * row_sum[m][h], 1.f));
        float const threshold = allow_lazy ? fminf(growth, kRescaleThresholdLog2) : 0.f;
        float const top = highest(scores, m, h);
        bool const small = (top - row_max[m][h]) * scale_log2 <= threshold;  // not for NaN: no key yet
        if (!__all_sync(0xffffffffu, small)) {
          float const correction = raise_max(top, m, h, scale_log2);
          rescale_row(out, m, h, correction);
        }
      }
    }
  }

  // exp(scale * (score - row_max)) of a score in the rows (m, h), which their sum takes in.
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

  // The same beside a sink, which weighs as if it were one more key: 0 for a row that saw no key all the same.
  __device__ __forceinline__ float inverse_with(float sink_log2, int m, int h, float scale_log2) const {
    if (row_sum[m][h] == 0.f) return 0.f;
    float const above = kBf16 ? sink_log2 - row_max[m][h] * scale_log2 : fmaf(-row_max[m][h], scale_log2, sink_log2);
    return 1.f / (row_sum[m][h] + exp2_approx(above));
  }

  __device__ __forceinline__ float lse(int m, int h, float scale, float scale_log2) const {
    return log_sum<kBf16>(row_max[m][h], row_sum[m][h], scale, scale_log2);
  }
};

}  // namespace omni
