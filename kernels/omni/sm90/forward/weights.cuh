// The weights P of one tile in the registers of a consumer warpgroup, in the order of A fragments, and how scores
// become weights.
#pragma once

#include "omni/sm90/forward/config.cuh"
#include "omni/sm90/wgmma.cuh"
#include "omni/softmax.cuh"

namespace omni {

template <class Cfg>
struct Weights {
  static constexpr int kCount = Cfg::kBc / 4;
  static constexpr int kRests = Cfg::kSplitWeights ? kCount : 1;

  u32 pairs[kCount];
  u32 rests[kRests];  // what rounding left, where that counts

  __device__ __forceinline__ void set(int i, float low, float high) {
    pairs[i] = pack_pair<Cfg::kBf16>(low, high);
    if constexpr (Cfg::kSplitWeights) rests[i] = pack_rest<Cfg::kBf16>(low, high, pairs[i]);
  }

  __device__ __forceinline__ void pin() {
    pin_registers(pairs);
    if constexpr (Cfg::kSplitWeights) pin_registers(rests);
  }

  // exp2(score * scale_log2 - offset) of a whole tile, also added up. The scores stay.
  template <class Scores>
  __device__ __forceinline__ void weigh(
      Scores const& scores, float (&sums)[1][2], float const (&offset)[2], float scale_log2) {
    sums[0][0] = sums[0][1] = 0.f;
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float const low = exp2_approx(fmaf(scores.x[0][4 * j + 2 * h], scale_log2, -offset[h]));
        float const high = exp2_approx(fmaf(scores.x[0][4 * j + 2 * h + 1], scale_log2, -offset[h]));
        sums[0][h] += low;
        sums[0][h] += high;
        set(2 * j + h, low, high);
      }
    }
  }
};

// Weighs a whole tile against a new row_max. O and the weights are at rest. kRescale: O holds something. kept: rows
// whose row_max stays as it is.
template <bool kRescale, class Cfg, class Scores, class Out>
__device__ __forceinline__ void weigh_anew(
    Weights<Cfg>& weights, OnlineSoftmax<1, Cfg::kBf16>& softmax, Out& out, Scores& scores, bool const (&kept)[2],
    float const& scale_log2) {
  float offset[1][2], sums[1][2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float const top = kept[h] ? softmax.row_max[0][h] : softmax.highest(scores, 0, h);
    float const correction = softmax.raise_max(top, 0, h, scale_log2);
    if constexpr (kRescale) rescale_row(out, 0, h, correction);
    offset[0][h] = softmax.raised_offset(0, h, scale_log2);
  }
  softmax.take_off(scores, offset);
  weights.weigh(scores, sums, offset[0], scale_log2);
  softmax.add(sums);
}

// Weighs a tile against row_max as it is, where lazy rescaling is allowed and row_max holds. O and the weights are at
// rest.
template <class Cfg, class Scores, class Out>
__device__ __forceinline__ void weigh(
    Weights<Cfg>& weights, OnlineSoftmax<1, Cfg::kBf16>& softmax, Out& out, Scores& scores, bool allow_lazy,
    float const& scale_log2) {
  bool kept[2] = {false, false};
  if (allow_lazy) {
    float const offset[1][2] = {{softmax.offset(0, 0, scale_log2), softmax.offset(0, 1, scale_log2)}};
    float sums[1][2];
    weights.weigh(scores, sums, offset[0], scale_log2);
    if (softmax.holds(sums, offset)) {
      softmax.add(sums);
      return;
    }
    if constexpr (Cfg::kPack) {  // rows of a warp stand for heads that other calls have elsewhere: each on its own
      kept[0] = softmax.row_holds(sums[0][0], offset[0][0], 0, 0);
      kept[1] = softmax.row_holds(sums[0][1], offset[0][1], 0, 1);
    }
  }
  weigh_anew<true>(weights, softmax, out, scores, kept, scale_log2);
}

}  // namespace omni
