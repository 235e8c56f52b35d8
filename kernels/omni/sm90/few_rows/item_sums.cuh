// The sums of an item: what its warps have is added up in their order, and leaves as rows that are whole or as those of
// a part; parts are merged as those of packed tiles are.
#pragma once

#include "omni/sm90/few_rows/smem.cuh"
#include "omni/sm90/forward/packed.cuh"

namespace omni {

// What warps have of a row, one after the other.
struct WarpSum {
  float2 of = make_float2(neg_inf(), 0.f);  // row_max and row_sum so far
  float old_share, new_share;

  __device__ __forceinline__ void add(float2 const& next, float scale_log2) {
    float const top = fmaxf(of.x, next.x);
    old_share = share(of.x, top, scale_log2);
    new_share = share(next.x, top, scale_log2);
    of = make_float2(top, plus(of.y, next.y));
  }

  // Of O or of sums.
  __device__ __forceinline__ float plus(float before, float next) const {
    return fmaf(new_share, next, old_share * before);
  }

 private:
  __device__ __forceinline__ static float share(float from, float to, float scale_log2) {
    return from == neg_inf() ? 0.f : exp2_approx((from - to) * scale_log2);
  }
};

// Of the rows of one item.
template <class Cfg>
struct ItemSums {
  using Smem = FewRowsSmem<Cfg>;
  using Merge = PackedMerge<Cfg>;

  ForwardParamsSm90 const& args;
  Smem const& smem;
  Merge const& merge;

  // A row a warp: O of all warps, added in their order, leaves as a row that is whole or as that of a part.
  __device__ __forceinline__ void add_up(int warp) const {
#pragma unroll 1
    for (int row = warp; row < merge.rows.live; row += Cfg::kWarps) {
      WarpSum sum;
      float out[1][4] = {};
#pragma unroll
      for (int w = 0; w < Cfg::kWarps; ++w) {
        sum.add(smem.sums[w][row], args.p.scale_log2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          out[0][e] = sum.plus(out[0][e], element(smem.rings[w].out, row, first_column() + e));
        }
      }
      leave_row(row, out, sum.of);
    }
  }

  // By one warp: rows of the chain.
  __device__ __forceinline__ void leave_chain() const {
#pragma unroll 1
    for (int row = 0; row < uniform(merge.rows.live); ++row) {
      float out[1][4] = {};
#pragma unroll
      for (int e = 0; e < 4; ++e) out[0][e] = element(smem.chain, row, first_column() + e);
      leave_row(row, out, smem.chain_sums[row]);
    }
  }

  // Every `step`-th row from `first` on, by a warp. kAtOnce: parts that are asked for together.
  template <int kAtOnce>
  __device__ __forceinline__ void merge_rows(int first, int step) const {
#pragma unroll 1
    for (int row = first; row < uniform(merge.rows.live); row += step) merge_row<kAtOnce>(row);
  }

  // Counts the arrival of a part, by one thread. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool arrives_last() const {
    u32* const arrivals = args.arrivals + static_cast<i64>(merge.rows.tile) * args.n_split_rows + merge.split.x;
    bool const last = static_cast<int>(atomicAdd(arrivals, 1u)) == merge.split.z - 1;
    if (last) *arrivals = 0;
    __threadfence();  // the arrivals seen, before the others' rows
    return last;
  }

 private:
  // Of the four that a lane has of a row; lanes of none read those of lane 0.
  __device__ __forceinline__ static bool has_columns() { return 4 * lane_id() < Cfg::kValueDim; }
  __device__ __forceinline__ static int first_column() { return has_columns() ? 4 * lane_id() : 0; }

  __device__ __forceinline__ static float element(float const* s_out, int row, int column) {
    int const block = column % (Cfg::kValueDim / 8), n = column / (Cfg::kValueDim / 8);
    return s_out[row * Smem::kPitch + Smem::at_column(8 * block) + n];
  }

  // sums: row_max and row_sum.
  __device__ __forceinline__ void leave_row(int row, float const (&out)[1][4], float2 const& sums) const {
    if (merge.split.x < 0) {
      merge.store(out, row, sums.x, sums.y);
      return;
    }
    if (has_columns()) {
      float* const g_row = merge.part(merge.split.y) + row * Cfg::kValueDim + first_column();
      *reinterpret_cast<float4*>(g_row) = make_float4(out[0][0], out[0][1], out[0][2], out[0][3]);
    }
    if (lane_id() == 0) merge.sums(merge.split.y)[row] = sums;
  }

  // As PackedMerge does it, in the same order, by a pointer that goes from part to part.
  template <int kAtOnce>
  __device__ __forceinline__ void merge_row(int row) const {
    int const parts = uniform(merge.split.z);
    i64 const step = args.p.part_rows * (Cfg::kValueDim + 2);
    float const* g_row = merge.part(0) + row * Cfg::kValueDim + first_column();
    float row_max = neg_inf(), row_sum = 0.f;
    float2 found = make_float2(neg_inf(), 0.f);
#pragma unroll 1
    for (int base = 0; base < parts; base += 32) {
      if (base + lane_id() < parts) found = load_past_l1(merge.sums(base + lane_id()) + row);
      row_max = fmaxf(row_max, found.x);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffffu, row_max, lanes));
    }
    float out[1][4] = {};
#pragma unroll 1
    for (int base = 0; base < parts; base += 32) {
      bool const is_there = base + lane_id() < parts;
      if (parts > 32 && is_there) found = load_past_l1(merge.sums(base + lane_id()) + row);
      float const weight = is_there ? merge.share(found.x, row_max) : 0.f;
      row_sum = fmaf(weight, is_there ? found.y : 0.f, row_sum);
#pragma unroll 1
      for (int i = base; i < min(base + 32, parts); i += kAtOnce) {
        float4 more[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          more[n] = make_float4(0.f, 0.f, 0.f, 0.f);
          if (i + n < parts) more[n] = load_past_l1(reinterpret_cast<float4 const*>(g_row));
          g_row += step;
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          float const factor = __shfl_sync(0xffffffffu, weight, i - base + n);
          out[0][0] = fmaf(factor, more[n].x, out[0][0]);
          out[0][1] = fmaf(factor, more[n].y, out[0][1]);
          out[0][2] = fmaf(factor, more[n].z, out[0][2]);
          out[0][3] = fmaf(factor, more[n].w, out[0][3]);
        }
      }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) row_sum += __shfl_xor_sync(0xffffffffu, row_sum, lanes);
    merge.store(out, row, row_max, row_sum);
  }
};

}  // namespace omni
