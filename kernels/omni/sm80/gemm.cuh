// The two products of one tile for one warp: S = Q K^T and O += P V, by mma.sync with operands from ldmatrix.
#pragma once

#include "omni/sm80/smem.cuh"
#include "omni/softmax.cuh"

namespace omni {

// The A operand of one k16 step for each of the warp's m16 tiles.
template <int kM>
struct AFragments {
  u32 r[kM][4];
};

// scores += Q K^T over kCols columns. s_q: the lane's address in the warp's own Q rows; s_k: in the K tile.
template <class Cfg, int kCols, class Scores>
__device__ __forceinline__ void add_scores(Scores& scores, u32 s_q, u32 s_k) {
  using Tile = SmemTile<kCols, Cfg::kSwizzle>;
#pragma unroll
  for (int d = 0; d < kCols; d += Cfg::kMmaAtomK) {
    AFragments<Cfg::kTilesM> a;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) ldmatrix_x4(a.r[m], Tile::at_column(s_q, d) + 16 * m * Tile::kPitchBytes);
#pragma unroll
    for (int n = 0; n < Scores::kCols; n += 16) {
      u32 b[4];
      ldmatrix_x4(b, Tile::at_column(s_k, d) + n * Tile::kPitchBytes);
#pragma unroll
      for (int m = 0; m < Cfg::kTilesM; ++m) {
        mma_m16n8k16<Cfg::kBf16>(&scores.x[m][n / 2], a.r[m], b[0], b[2]);
        mma_m16n8k16<Cfg::kBf16>(&scores.x[m][n / 2 + 4], a.r[m], b[1], b[3]);
      }
    }
  }
}

// out[:, n : n + 16] += a b over one k16 step.
template <class Cfg, class Out>
__device__ __forceinline__ void add_product(Out& out, int n, AFragments<Cfg::kTilesM> const& a, u32 const (&b)[4]) {
#pragma unroll
  for (int m = 0; m < Cfg::kTilesM; ++m) {
    mma_m16n8k16<Cfg::kBf16>(&out.x[m][n / 2], a.r[m], b[0], b[1]);
    mma_m16n8k16<Cfg::kBf16>(&out.x[m][n / 2 + 4], a.r[m], b[2], b[3]);
  }
}

// out += P V. The accumulators of two neighbouring n8 blocks are the A operand of one k16 step: no shuffles.
// s_v: the lane's address in the V tile.
template <class Cfg, class Scores, class Out>
__device__ __forceinline__ void add_values(Out& out, Scores const& p, u32 s_v) {
  using Tile = SmemTile<Cfg::kValueDim, Cfg::kSwizzle>;
#pragma unroll
  for (int k = 0; k < Scores::kCols; k += Cfg::kMmaAtomK) {
    AFragments<Cfg::kTilesM> a, rest;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const* x = &p.x[m][k / 2 + 2 * i];
        a.r[m][i] = pack_pair<Cfg::kBf16>(x[0], x[1]);
        if constexpr (Cfg::kSplitWeights) rest.r[m][i] = pack_rest<Cfg::kBf16>(x[0], x[1], a.r[m][i]);
      }
    }
#pragma unroll
    for (int n = 0; n < Out::kCols; n += 16) {
      u32 b[4];
      ldmatrix_x4_trans(b, Tile::at_column(s_v, n) + k * Tile::kPitchBytes);
      add_product<Cfg>(out, n, a, b);
      if constexpr (Cfg::kSplitWeights) add_product<Cfg>(out, n, rest, b);
    }
  }
}

// Mask, softmax and the rescaling of what was accumulated, for one tile of scores.
template <class Cfg, class Scores, class Out>
__device__ __forceinline__ void softmax_step(
    Scores& scores, Out& out, OnlineSoftmax<Cfg::kTilesM>& softmax, WarpTile const& warp) {
  if (warp.keys.kind() != kFull) mask_tile<Cfg::kBr>(scores, warp);
  // Exact maxima for all tiles where the head dimension is cut: registers are dearer there than rescaling.
  softmax.update(scores, out, !Cfg::kTiledHeadDim && warp.keys.may_stand(), warp.mask.p.scale_log2);
}

}  // namespace omni
