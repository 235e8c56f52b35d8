// The products of a warp on up to 16 rows: S = Q K^T and O += P V, queries as the rows of register tiles, as
// everywhere, so mask and softmax are those of all kernels.
#pragma once

#include "omni/mask/keep.cuh"
#include "omni/sm90/few_rows/fragments.cuh"
#include "omni/sm90/forward/weights.cuh"

namespace omni {

template <class Cfg>
struct SixteenRows {
  using Scores = RegTile<1, Cfg::kBc>;
  using Out = RegTile<1, Cfg::kValueDim>;  // column n of block j is column kValueDim / 8 * n + j of O
  using Softmax = OnlineSoftmax<1, Cfg::kBf16>;

  // The lane's part of P as operand of O += P V: of 16 keys.
  struct Operand {
    u32 a[4];
  };

  struct Weighed : Weights<Cfg> {
    __device__ __forceinline__ Operand of_step(int t) const {
      Operand found;
#pragma unroll
      for (int i = 0; i < 4; ++i) found.a[i] = t == 0 ? this->pairs[i] : this->pairs[4 + i];
      return found;
    }
  };

  // Of the lane's rows h = 0, 1.
  __device__ __forceinline__ static int row(int h) { return 8 * h + lane_id() / 4; }
  // Of the lanes that share a row, is this the first one?
  __device__ __forceinline__ static bool is_first() { return lane_id() % 4 == 0; }

  // Adds 16 columns of S. fragment(i): of keys 8 i to 8 i + 7.
  template <class Fragment>
  __device__ __forceinline__ static void add_scores(Scores& scores, uint4 const& q, Fragment const& fragment) {
    u32 const a[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < Scores::kBlocks; ++i) {
      BFragment const b = fragment(i);
      mma_m16n8k16<Cfg::kBf16>(&scores.x[0][4 * i], a, b.low, b.high);
    }
  }

  // Adds to blocks `first` to `first` + kCount - 1 of O what 16 keys have of them, as halves of B fragments.
  template <int kCount>
  __device__ __forceinline__ static void add_values(
      Out& out, Operand const& weights, int first, u32 const (&low)[kCount], u32 const (&high)[kCount]) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      mma_m16n8k16<Cfg::kBf16>(&out.x[0][4 * (first + n)], weights.a, low[n], high[n]);
    }
  }

  __device__ __forceinline__ static void hide_keys(Scores& scores, u32 hidden) {
    u32 const words[1] = {hidden};
    hide_columns<1>(scores, words);
  }

  __device__ __forceinline__ static void mask(Scores& scores, WarpTile const& tile) { mask_tile<0>(scores, tile); }

  __device__ __forceinline__ static void weigh_tile(
      Weighed& weights, Softmax& softmax, Out& out, Scores& scores, bool allow_lazy, float const& scale_log2) {
    weigh<Cfg>(weights, softmax, out, scores, allow_lazy, scale_log2);
  }

  // Neighbouring numbers j of the lane's row h, and where they lie in shared memory.
  __device__ __forceinline__ static float2 pair(Out const& out, int h, int j) {
    return make_float2(out.x[0][4 * j + 2 * h], out.x[0][4 * j + 2 * h + 1]);
  }
  __device__ __forceinline__ static float2 load_pair(float* s_out, int row, int j) { return place(s_out, row, j); }
  __device__ __forceinline__ static void store_pair(float* s_out, int row, int j, float2 const& two) {
    place(s_out, row, j) = two;
  }

 private:
  __device__ __forceinline__ static float2& place(float* s_out, int row, int j) {
    float* const s_block = s_out + row * FewRowsSmem<Cfg>::kPitch + FewRowsSmem<Cfg>::at_column(8 * j);
    return *reinterpret_cast<float2*>(s_block + 2 * (lane_id() % 4));
  }
};

}  // namespace omni
