// Weights of a warp of which only the first eight rows stand for a head and a token: those of weights.cuh, for half of
// the exponentials. The other rows' weights and sums stay as they are.
#pragma once

#include "omni/sm90/forward/weights.cuh"

namespace omni {

template <class Cfg>
struct EightRowWeights {
  using Softmax = OnlineSoftmax<1, Cfg::kBf16>;

  Weights<Cfg>& weights;
  Softmax& softmax;
  float const& scale_log2;

  // The first tile of an item: O holds nothing.
  template <class Scores, class Out>
  __device__ __forceinline__ void weigh_first(Scores& scores, Out& out) {
    weigh_anew<false>(scores, out, false);
  }

  template <class Scores, class Out>
  __device__ __forceinline__ void weigh(Scores& scores, Out& out, bool allow_lazy) {
    bool kept = false;
    if (allow_lazy) {
      float const offset = softmax.offset(0, 0, scale_log2);
      float const sum = weigh_tile(scores, offset);
      if (__all_sync(0xffffffffu, softmax.is_small(sum, offset, 0, 0))) {
        softmax.row_sum[0][0] += sum;
        return;
      }
      kept = softmax.row_holds(sum, offset, 0, 0);
    }
    weigh_anew<true>(scores, out, kept);
  }

 private:
  // exp2(score * scale_log2 - offset) of the rows' part of a tile, whose sum it returns. The scores stay.
  template <class Scores>
  __device__ __forceinline__ float weigh_tile(Scores const& scores, float offset) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float const low = exp2_approx(fmaf(scores.x[0][4 * j], scale_log2, -offset));
      float const high = exp2_approx(fmaf(scores.x[0][4 * j + 1], scale_log2, -offset));
      sum += low;
      sum += high;
      weights.set(2 * j, low, high);
    }
    return sum;
  }

  template <bool kRescale, class Scores, class Out>
  __device__ __forceinline__ void weigh_anew(Scores& scores, Out& out, bool kept) {
    float const top = kept ? softmax.row_max[0][0] : softmax.highest(scores, 0, 0);
    float const correction = softmax.raise_max(top, 0, 0, scale_log2);
    if constexpr (kRescale) rescale_row(out, 0, 0, correction);
    float offset[1][2] = {{softmax.raised_offset(0, 0, scale_log2), 0.f}};
    softmax.take_off(scores, offset);
    softmax.row_sum[0][0] += weigh_tile(scores, offset[0][0]);
  }
};

}  // namespace omni
