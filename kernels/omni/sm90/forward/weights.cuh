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

}  // namespace omni
