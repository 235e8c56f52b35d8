// The compile-time shape of the mma.sync backward kernels, and what both of their loops do with a step of walked
// tokens: weights, gradients of scores, and products whose A operand is these. A thread block owns tokens of one side,
// keys for dK and dV or queries for dQ, and walks tokens of the other side. A row of a warp's register tile is a token
// that it owns: weights are the A operand of the next product as they are, and never leave the registers.
#pragma once

#include "omni/backward_params.cuh"
#include "omni/lse2.cuh"
#include "omni/sm80/backward_mask.cuh"
#include "omni/sm80/gemm.cuh"
#include "omni/store.cuh"
#include "omni/work.cuh"

namespace omni {

// Columns of a gradient, `width` columns wide, that one thread block makes. Where dK or dV has more than 128 columns
// (widest), both together do not fit the registers: two thread blocks side by side (grid.y) make a part of each, cut
// where the swizzle of shared memory begins anew, and repeat the scores. backward_kernel.py has the same figures
// (columns, value_columns).
constexpr int gradient_columns(int width, int widest, bool owns_keys) {
  if (width > 256) return 64;
  if (!owns_keys || widest <= 128) return width;
  int const page = 8 * gcd(width / 8, 8);
  return (width / 2 + page - 1) / page * page;
}

template <
    int HeadDim, int ValueDim, int Br, int Bc, int Stages, int Warps, int Part, bool Bf16, int SmemBytes, bool Softcap,
    int MmaAtomK>
struct BackwardConfig : MmaAtom<MmaAtomK> {
  static constexpr int kHeadDim = HeadDim;    // columns of Q and K
  static constexpr int kValueDim = ValueDim;  // columns of V and dO
  static constexpr int kWidest = HeadDim > ValueDim ? HeadDim : ValueDim;
  static constexpr int kBr = Br;
  static constexpr int kBc = Bc;
  static constexpr int kStages = Stages;
  static constexpr int kWarps = Warps;
  static constexpr int kThreads = 32 * Warps;
  static constexpr bool kOwnsKeys = Part == 1;  // makes dK and dV; else dQ
  static constexpr bool kSwizzle = true;
  static constexpr bool kBf16 = Bf16;
  static constexpr int kSmemBytes = SmemBytes;
  static constexpr bool kSoftcap = Softcap;

  static constexpr int kOwned = kOwnsKeys ? Bc : Br;
  static constexpr int kWalked = kOwnsKeys ? Br : Bc;
  static constexpr int kWarpRows = kOwned / Warps;
  static constexpr int kTilesM = kWarpRows / 16;
  static constexpr bool kTiledHeadDim = HeadDim > 256;
  static constexpr int kBlocks = !kOwnsKeys && kWidest <= 64 && Warps == 4 && Stages == 2 ? 3 : 1;  // on a processor
  // Of dQ or dK and of dV, and the thread blocks that share one, of up to 256 columns.
  static constexpr int kColumns = gradient_columns(HeadDim, kWidest, kOwnsKeys);
  static constexpr int kValueColumns = gradient_columns(ValueDim, kWidest, kOwnsKeys);
  static constexpr int kColumnBlocks = kOwnsKeys && kWidest > 128 && !kTiledHeadDim ? 2 : 1;
  static constexpr int kStep = kTilesM == 1 && kWalked % 64 == 0 ? 64 : 32;  // walked tokens at a time

  static_assert(HeadDim % 16 == 0 && ValueDim % 16 == 0, "widths are padded to 16");
  static_assert(HeadDim == ValueDim || kWidest <= 256, "slices: values as wide as keys");
  static_assert(Part == 1 || Part == 2, "dkdv or dq");
  static_assert(kOwned == 16 * kTilesM * Warps && (kTilesM == 1 || kTilesM == 2), "16 or 32 tokens a warp");
  static_assert(kWalked % kStep == 0 && Br % 32 == 0 && Bc % 32 == 0, "bit tiles hold 32 tokens a word");
  static_assert(Stages == 1 || Stages == 2, "one buffer or two");
};

template <class Cfg>
using StepTile = RegTile<Cfg::kTilesM, Cfg::kStep>;

template <bool kFirst, class A, class B>
struct OneOf {
  using Type = A;
};
template <class A, class B>
struct OneOf<false, A, B> {
  using Type = B;
};

template <class Cfg>
using Hidden =
    typename OneOf<Cfg::kOwnsKeys, HiddenFromKeys<Cfg, StepTile<Cfg>>, HiddenFromQueries<Cfg, StepTile<Cfg>>>::Type;

// scores += owned * walked^T over kCols columns. s_owned: the lane's address for the A operand, in the warp's rows.
// s_walked: for the B operand, in the step's rows, so that the two registers of an instruction stand side by side: rows
// 0 to 7 left and right, then rows 8 to 15 (other than in add_scores, whose operands ptxas has to move together).
template <class Cfg, int kCols, class Scores>
__device__ __forceinline__ void add_dots(Scores& scores, u32 s_owned, u32 s_walked) {
  using Shared = SmemTile<kCols, Cfg::kSwizzle>;
#pragma unroll
  for (int d = 0; d < kCols; d += kStepK) {
    AFragments<Cfg::kTilesM> a;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
      ldmatrix_x4(a.r[m], Shared::at_column(s_owned, d) + 16 * m * Shared::kPitchBytes);
    }
#pragma unroll
    for (int n = 0; n < Scores::kCols; n += 16) {
      u32 b[4];
      ldmatrix_x4(b, Shared::at_column(s_walked, d) + n * Shared::kPitchBytes);
      add_product<Cfg>(scores, n, a, b);
    }
  }
}

// lse2 or delta of the queries of a step, in shared memory: of its columns where keys are owned, else of its rows.
// s_values: at the first of them.
template <class Cfg>
struct Statistic {
  float const* s_values;

  // Of the rows (m, h), at the columns (j, 0) and (j, 1).
  __device__ __forceinline__ float2 pair(int m, int h, int j) const {
    if constexpr (Cfg::kOwnsKeys) {
      return *reinterpret_cast<float2 const*>(s_values + StepTile<Cfg>::col(j, 0));
    } else {
      float const value = s_values[StepTile<Cfg>::row(m, h)];
      return make_float2(value, value);
    }
  }
};

// Scores to weights in a step that may have far queries (lse2.cuh).
template <class Cfg, class Tile>
__device__ __forceinline__ void weigh_far(Tile& scores, Statistic<Cfg> const& lse2, ForwardParams const& p) {
#pragma unroll
  for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kBlocks; ++i) {
      float2 const two = lse2.pair(m, i % 2, i / 2);
      float* const x = &scores.x[m][2 * i];
      x[0] = weight_of(x[0], p, two.x);
      x[1] = weight_of(x[1], p, two.y);
    }
  }
}

// Scores to weights. A query without keys, or past the last one, has lse2 = +inf: weight 0.
template <class Cfg, class Tile>
__device__ __forceinline__ void weigh(Tile& scores, Statistic<Cfg> const& lse2, ForwardParams const& p) {
  if constexpr (Cfg::kOwnsKeys && !Cfg::kBf16 && !Cfg::kSoftcap) {
    if (any_far<Tile::kCols>(lse2.s_values)) return weigh_far(scores, lse2, p);
  }
  float const scale_log2 = p.scale_log2;
#pragma unroll
  for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kBlocks; ++i) {
      float2 two = lse2.pair(m, i % 2, i / 2);
      if constexpr (!Cfg::kOwnsKeys) two = make_float2(product_lse2<Cfg>(two.x), product_lse2<Cfg>(two.y));
      float* const x = &scores.x[m][2 * i];
      x[0] = exp2_approx(fmaf(x[0], scale_log2, -two.x));
      x[1] = exp2_approx(fmaf(x[1], scale_log2, -two.y));
    }
  }
}

// Gradients of the weights to gradients of the scores, but for their scale.
template <class Cfg, class Tile>
__device__ __forceinline__ void differentiate(Tile& grads, Tile const& weights, Statistic<Cfg> const& delta) {
#pragma unroll
  for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kBlocks; ++i) {
      float2 const two = delta.pair(m, i % 2, i / 2);
      float* const x = &grads.x[m][2 * i];
      x[0] = weights.x[m][2 * i] * (x[0] - two.x);
      x[1] = weights.x[m][2 * i + 1] * (x[1] - two.y);
    }
  }
}

// The same where scores are capped, in two steps, as the tanh of a score is gone once it is a weight. tanhs: of the
// scores. After it the weights are still to be multiplied in.
template <class Cfg, class Tile>
__device__ __forceinline__ void differentiate_tanh(Tile& grads, Tile const& tanhs, Statistic<Cfg> const& delta) {
#pragma unroll
  for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kBlocks; ++i) {
      float2 const two = delta.pair(m, i % 2, i / 2);
      float* const x = &grads.x[m][2 * i];
      x[0] = tanh_slope(tanhs.x[m][2 * i]) * (x[0] - two.x);
      x[1] = tanh_slope(tanhs.x[m][2 * i + 1]) * (x[1] - two.y);
    }
  }
}

template <class Tile>
__device__ __forceinline__ void multiply(Tile& grads, Tile const& weights) {
#pragma unroll
  for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < Tile::kCols / 2; ++i) grads.x[m][i] *= weights.x[m][i];
  }
}

// out += factors * rows: the accumulators of two neighbouring n8 blocks are the A operand of one k16 step. kCols: of
// the tile in shared memory. s_rows: the lane's address in the step's rows, at the first of the columns; columns: how
// many there are from it on.
template <class Cfg, int kCols, class Out, class Factors>
__device__ __forceinline__ void add_products(Out& out, Factors const& factors, u32 s_rows, int columns) {
  using Shared = SmemTile<kCols, Cfg::kSwizzle>;
  constexpr bool kWhole = kCols % Out::kCols == 0 && Out::kCols * Cfg::kColumnBlocks <= kCols;
#pragma unroll
  for (int k = 0; k < Factors::kCols; k += kStepK) {
    AFragments<Cfg::kTilesM> a;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const* x = &factors.x[m][k / 2 + 2 * i];
        a.r[m][i] = pack_pair<Cfg::kBf16>(x[0], x[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < Out::kCols; n += 16) {
      if (!kWhole && n >= columns) continue;
      u32 b[4];
      ldmatrix_x4_trans(b, Shared::at_column(s_rows, n) + k * Shared::kPitchBytes);
      add_product<Cfg>(out, n, a, b);
    }
  }
}

}  // namespace omni
