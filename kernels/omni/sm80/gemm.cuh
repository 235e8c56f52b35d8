// One tile for one warp: S = Q K^T, its mask and row maxima, O += P V, by mma.sync with operands from ldmatrix.
#pragma once

#include "omni/mask/keep.cuh"
#include "omni/mma_atom.cuh"
#include "omni/sm80/smem.cuh"
#include "omni/softcap.cuh"
#include "omni/softmax.cuh"

namespace omni {

// Columns of a step along the inner dimension: what one ldmatrix brings of 16 rows.
constexpr int kStepK = 16;

// The A operand of one step for each of the warp's m16 tiles.
template <int kM>
struct AFragments {
  u32 r[kM][4];
};

// d += a b over one step.
template <class Cfg>
__device__ __forceinline__ void multiply_step(float* d, u32 const (&a)[4], u32 b0, u32 b1) {
  if constexpr (Cfg::kMmaAtomK == kStepK) {
    mma_m16n8k16<Cfg::kBf16>(d, a, b0, b1);
  } else {
    // The operands of k16 are those of its left and its right half, one behind the other.
    mma_m16n8k8<Cfg::kBf16>(d, a[0], a[1], b0);
    mma_m16n8k8<Cfg::kBf16>(d, a[2], a[3], b1);
  }
}

// scores += Q K^T over kCols columns. s_q: the lane's address in the warp's own Q rows; s_k: in the K tile.
template <class Cfg, int kCols, class Scores>
__device__ __forceinline__ void add_scores(Scores& scores, u32 s_q, u32 s_k) {
  using Shared = SmemTile<kCols, Cfg::kSwizzle>;
#pragma unroll
  for (int d = 0; d < kCols; d += kStepK) {
    AFragments<Cfg::kTilesM> a;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
      ldmatrix_x4(a.r[m], Shared::at_column(s_q, d) + 16 * m * Shared::kPitchBytes);
    }
#pragma unroll
    for (int n = 0; n < Scores::kCols; n += 16) {
      u32 b[4];
      ldmatrix_x4(b, Shared::at_column(s_k, d) + n * Shared::kPitchBytes);
#pragma unroll
      for (int m = 0; m < Cfg::kTilesM; ++m) {
        multiply_step<Cfg>(&scores.x[m][n / 2], a.r[m], b[0], b[2]);
        multiply_step<Cfg>(&scores.x[m][n / 2 + 4], a.r[m], b[1], b[3]);
      }
    }
  }
}

// out[:, n : n + 16] += a b over one step.
template <class Cfg, class Out>
__device__ __forceinline__ void add_product(Out& out, int n, AFragments<Cfg::kTilesM> const& a, u32 const (&b)[4]) {
#pragma unroll
  for (int m = 0; m < Cfg::kTilesM; ++m) {
    multiply_step<Cfg>(&out.x[m][n / 2], a.r[m], b[0], b[1]);
    multiply_step<Cfg>(&out.x[m][n / 2 + 4], a.r[m], b[2], b[3]);
  }
}

// Masks one tile of scores, which are capped before where they are, and raises the row maxima that it outgrows. What
// the scores weigh is worked out in add_values.
template <class Cfg, class Scores, class Out>
__device__ __forceinline__ void mask_and_rescale(
    Scores& scores, Out& out, OnlineSoftmax<Cfg::kTilesM, Cfg::kBf16>& softmax, WarpTile const& warp) {
  if constexpr (Cfg::kSoftcap) cap_scores(scores, warp.mask.p.tanh_scale);
  if constexpr (Cfg::kPaged) {
    PageTable const& table = static_cast<PagedParams const&>(warp.mask.p).pages;
    hide_keys_of_no_page(scores, table, warp.mask.index, warp.keys);
  }
  if (warp.keys.kind() != kFull) mask_tile<Cfg::kBr>(scores, warp);
  // Exact maxima for all tiles where the head dimension is cut: registers are dearer there than rescaling.
  softmax.rescale_outgrown(scores, out, !Cfg::kTiledHeadDim && warp.keys.allows_lazy(), warp.mask.p.scale_log2);
}

// out += P V, where P is what the scores weigh. The accumulators of two neighbouring n8 blocks are the A operand of one
// k16 step: no shuffles. Exponentials and products stand in one straight path, without the votes on row maxima between
// them, so that ptxas puts the exponentials of one step beside the products of another. s_v: the lane's address in the
// V tile.
template <class Cfg, class Scores, class Out>
__device__ __forceinline__ void add_values(
    Out& out, Scores& scores, OnlineSoftmax<Cfg::kTilesM, Cfg::kBf16>& softmax, float scale_log2, u32 s_v) {
  using Shared = SmemTile<Cfg::kOutColumns, Cfg::kSwizzle>;
  float offset[Cfg::kTilesM][2];
#pragma unroll
  for (int m = 0; m < Cfg::kTilesM; ++m) {
    offset[m][0] = softmax.raised_offset(m, 0, scale_log2);
    offset[m][1] = softmax.raised_offset(m, 1, scale_log2);
  }
  softmax.take_off(scores, offset);
#pragma unroll
  for (int k = 0; k < Scores::kCols; k += kStepK) {
    AFragments<Cfg::kTilesM> a, rest;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const* x = &scores.x[m][k / 2 + 2 * i];
        float const first = softmax.weigh(x[0], m, i % 2, offset[m][i % 2], scale_log2);
        float const second = softmax.weigh(x[1], m, i % 2, offset[m][i % 2], scale_log2);
        a.r[m][i] = pack_pair<Cfg::kBf16>(first, second);
        if constexpr (Cfg::kSplitWeights) rest.r[m][i] = pack_rest<Cfg::kBf16>(first, second, a.r[m][i]);
      }
    }
#pragma unroll
    for (int n = 0; n < Out::kCols; n += 16) {
      u32 b[4];
      ldmatrix_x4_trans(b, Shared::at_column(s_v, n) + k * Shared::kPitchBytes);
      add_product<Cfg>(out, n, a, b);
      if constexpr (Cfg::kSplitWeights) add_product<Cfg>(out, n, rest, b);
    }
  }
}

}  // namespace omni
