// The products of a warp on up to 8 rows: S^T = K Q^T and O^T += V^T P^T. Keys and columns of values are the 16 rows of
// a product and queries its 8 columns, so no product has a half that nobody asked for, and a lane weighs half as many
// scores. What a lane holds of keys and values is the same as on 16 rows. The lane's queries are 2 (lane % 4) and the
// next one; of keys it has lane / 4 of each 8, and of O the columns kValueDim / 8 * (lane / 4) and those behind it.
#pragma once

#include "omni/mask/keep.cuh"
#include "omni/sm90/few_rows/fragments.cuh"
#include "omni/softmax.cuh"

namespace omni {

// Row sums and maxima of the lane's two queries; eight lanes have keys of each.
template <bool kBf16>
struct EightRowsSoftmax : OnlineSoftmax<1, kBf16> {
  template <class Scores>
  __device__ __forceinline__ static float highest(Scores const& scores, int h) {
    float top = fmaxf(scores.x[0][2 * h], scores.x[0][2 * h + 1]);
#pragma unroll
    for (int j = 1; j < Scores::kBlocks; ++j) {
      top = fmaxf(top, fmaxf(scores.x[0][4 * j + 2 * h], scores.x[0][4 * j + 2 * h + 1]));
    }
    return top;
  }

  __device__ __forceinline__ float raise_max(float top, int h, float scale_log2) {
    top = fmaxf(top, this->row_max[0][h]);
#pragma unroll
    for (int lanes = 4; lanes <= 16; lanes *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
    float const used = top == neg_inf() ? 0.f : top;
    float const correction = exp2_approx((this->row_max[0][h] - used) * scale_log2);
    this->row_max[0][h] = top;
    this->row_sum[0][h] *= correction;
    return correction;
  }

  __device__ __forceinline__ bool row_holds(float sum, float offset, int h) const {
    u32 const small = __ballot_sync(0xffffffffu, this->is_small(sum, offset, 0, h));
    return (~small & 0x11111111u << lane_id() % 4) == 0;
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& sum = this->row_sum[0][h];
#pragma unroll
      for (int lanes = 4; lanes <= 16; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    }
  }
};

template <class Cfg>
struct EightRows {
  using Scores = RegTile<1, Cfg::kBc / 2>;     // x[0][4 j + 2 h + e]: of query h and key 16 j + 8 e + lane / 4
  using Out = RegTile<1, Cfg::kValueDim / 2>;  // x[0][4 j + 2 h + e]: of query h, and column 2 j + e of the lane's
  using Softmax = EightRowsSoftmax<Cfg::kBf16>;

  struct Operand {
    u32 low, high;
  };

  // P of a tile: of 8 keys each, both queries of the lane's key in a register.
  struct Weighed {
    u32 pairs[Cfg::kBc / 8];

    // The keys of a query in a register, as the products take them.
    __device__ __forceinline__ Operand of_step(int t) const {
      return {transpose_8x8(t == 0 ? pairs[0] : pairs[2]), transpose_8x8(t == 0 ? pairs[1] : pairs[3])};
    }

    // exp2(score * scale_log2 - offset) of a whole tile, also added up.
    __device__ __forceinline__ void weigh(
        Scores const& scores, float (&sums)[1][2], float const (&offset)[2], float scale_log2) {
      sums[0][0] = sums[0][1] = 0.f;
#pragma unroll
      for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float const first = exp2_approx(fmaf(scores.x[0][4 * j + e], scale_log2, -offset[0]));
          float const second = exp2_approx(fmaf(scores.x[0][4 * j + 2 + e], scale_log2, -offset[1]));
          sums[0][0] += first;
          sums[0][1] += second;
          pairs[2 * j + e] = pack_pair<Cfg::kBf16>(first, second);
        }
      }
    }
  };

  __device__ __forceinline__ static int row(int h) { return 2 * (lane_id() % 4) + h; }
  __device__ __forceinline__ static bool is_first() { return lane_id() < 4; }

  template <class Fragment>
  __device__ __forceinline__ static void add_scores(Scores& scores, uint2 const& q, Fragment const& fragment) {
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      BFragment const near = fragment(2 * j), far = fragment(2 * j + 1);
      multiply(&scores.x[0][4 * j], near, far, q.x, q.y);
    }
  }

  template <int kCount>
  __device__ __forceinline__ static void add_values(
      Out& out, Operand const& weights, int first, u32 const (&low)[kCount], u32 const (&high)[kCount]) {
    static_assert(kCount % 2 == 0, "two blocks of eight columns are the rows of a product");
#pragma unroll
    for (int n = 0; n < kCount; n += 2) {
      BFragment const near{low[n], high[n]}, far{low[n + 1], high[n + 1]};
      multiply(&out.x[0][2 * (first + n)], near, far, weights.low, weights.high);
    }
  }

  __device__ __forceinline__ static void hide_keys(Scores& scores, u32 hidden) {
    u32 const seen[2] = {~hidden >> lane_id() / 4, ~hidden >> lane_id() / 4};
    keep<8>(scores, seen);
  }

  // What other kernels find for a tile of 16 queries, as the lanes here have it.
  __device__ __forceinline__ static void mask(Scores& scores, WarpTile const& tile) {
    KeepBits<RegTile<1, Cfg::kBc>> found;
    if (!find_at_once<0>(found, tile)) find_in_spans(found, tile);
    u32 seen[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      u32 const word = __shfl_sync(0xffffffffu, found.bits[0][0], 4 * row(h) + lane_id() / 8);
      seen[h] = word >> 16 * (lane_id() / 4 % 2);
    }
    keep<1>(scores, seen);
  }

  // As all kernels weigh (forward/weights.cuh).
  __device__ __forceinline__ static void weigh_tile(
      Weighed& weights, Softmax& softmax, Out& out, Scores& scores, bool allow_lazy, float const& scale_log2) {
    bool kept[2] = {false, false};
    float offset[1][2], sums[1][2];
    if (allow_lazy) {
#pragma unroll
      for (int h = 0; h < 2; ++h) offset[0][h] = softmax.offset(0, h, scale_log2);
      weights.weigh(scores, sums, offset[0], scale_log2);
      if (softmax.holds(sums, offset)) {
        softmax.add(sums);
        return;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) kept[h] = softmax.row_holds(sums[0][h], offset[0][h], h);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const top = kept[h] ? softmax.row_max[0][h] : softmax.highest(scores, h);
      rescale_row(out, 0, h, softmax.raise_max(top, h, scale_log2));
      offset[0][h] = softmax.raised_offset(0, h, scale_log2);
    }
    softmax.take_off(scores, offset);
    weights.weigh(scores, sums, offset[0], scale_log2);
    softmax.add(sums);
  }

  __device__ __forceinline__ static float2 pair(Out const& out, int h, int j) {
    return make_float2(out.x[0][4 * j + 2 * h], out.x[0][4 * j + 2 * h + 1]);
  }
  __device__ __forceinline__ static float2 load_pair(float* s_out, int row, int j) {
    return make_float2(place(s_out, row, 2 * j), place(s_out, row, 2 * j + 1));
  }
  __device__ __forceinline__ static void store_pair(float* s_out, int row, int j, float2 const& two) {
    place(s_out, row, 2 * j) = two.x;
    place(s_out, row, 2 * j + 1) = two.y;
  }

 private:
  __device__ __forceinline__ static float& place(float* s_out, int row, int block) {
    return s_out[row * FewRowsSmem<Cfg>::kPitch + FewRowsSmem<Cfg>::at_column(8 * block) + lane_id() / 4];
  }

  // near, far: rows lane / 4 and lane / 4 + 8 of the product.
  __device__ __forceinline__ static void multiply(
      float* sums, BFragment const& near, BFragment const& far, u32 b0, u32 b1) {
    u32 const a[4] = {near.low, far.low, near.high, far.high};
    float d[4] = {sums[0], sums[2], sums[1], sums[3]};
    mma_m16n8k16<Cfg::kBf16>(d, a, b0, b1);
    sums[0] = d[0];
    sums[1] = d[2];
    sums[2] = d[1];
    sums[3] = d[3];
  }

  // Bit kStep * i of seen[h]: does query h see the lane's key of 8 i to 8 i + 7?
  template <int kStep>
  __device__ __forceinline__ static void keep(Scores& scores, u32 const (&seen)[2]) {
#pragma unroll
    for (int i = 0; i < Cfg::kBc / 8; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& score = scores.x[0][4 * (i / 2) + 2 * h + i % 2];
        score = seen[h] >> kStep * i & 1 ? score : neg_inf();
      }
    }
  }
};

}  // namespace omni
