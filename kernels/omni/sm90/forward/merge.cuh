// Block rows whose keys were split over several thread blocks: each leaves its part of O, unnormalised and against
// its own row maxima, in global memory, and the warp that comes last adds them up, in the order of the keys, so that
// the sum is the same whoever comes last. A warp's 16 rows are merged without the other warps.
#pragma once

#include "omni/sm90/forward/config.cuh"
#include "omni/softmax.cuh"

namespace omni {

template <class Cfg>
struct Merge {
  static constexpr int kWarps = 4 * Cfg::kConsumers;
  static constexpr int kVectors = Cfg::kValueDim / 8;  // of four numbers of O a lane; then one of row_max and row_sum

  ForwardParamsSm90 const& args;
  int4 const split;  // {row among the split ones, number of the part, parts of the row, slot of the first one}
  int const head;    // of all batch elements; heads that share a tile count as one
  int const warp;    // of the consumers

  // The lane's numbers of one part: vector i stands 32 * i further on.
  __device__ __forceinline__ float4* part(int index) const {
    i64 const rows = (static_cast<i64>(head) * args.n_slots + split.w + index) * kWarps + warp;
    return args.partials + rows * (kVectors + 1) * 32 + lane_id();
  }

  // After `softmax.finish()`. Leaves the warp's rows; true where it came last, `out` and `softmax` then hold the whole.
  template <class Out>
  __device__ __forceinline__ bool add(Out& out, OnlineSoftmax<1, Cfg::kBf16>& softmax, float scale_log2) const {
    float4* const mine = part(split.y);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float const* x = &out.x[0][4 * i];
      mine[32 * i] = make_float4(x[0], x[1], x[2], x[3]);
    }
    mine[32 * kVectors] =
        make_float4(softmax.row_max[0][0], softmax.row_max[0][1], softmax.row_sum[0][0], softmax.row_sum[0][1]);
    if (!is_last()) return false;
    float row_max[2] = {neg_inf(), neg_inf()};
    out.fill(0.f);
    softmax.row_sum[0][0] = softmax.row_sum[0][1] = 0.f;
#pragma unroll 1
    for (int j = 0; j < split.z; ++j) {
      float4 const found = load_past_l1(part(j) + 32 * kVectors);
      float const keep[2] = {raise_max(row_max[0], found.x, scale_log2), raise_max(row_max[1], found.y, scale_log2)};
      float const add[2] = {share(found.x, row_max[0], scale_log2), share(found.y, row_max[1], scale_log2)};
      softmax.row_sum[0][0] = fmaf(add[0], found.z, keep[0] * softmax.row_sum[0][0]);
      softmax.row_sum[0][1] = fmaf(add[1], found.w, keep[1] * softmax.row_sum[0][1]);
#pragma unroll
      for (int i = 0; i < kVectors; i += kAtOnce) {
        float4 more[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) more[n] = load_past_l1(part(j) + 32 * (i + n));
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          float* const x = &out.x[0][4 * (i + n)];
          x[0] = fmaf(add[0], more[n].x, keep[0] * x[0]);
          x[1] = fmaf(add[0], more[n].y, keep[0] * x[1]);
          x[2] = fmaf(add[1], more[n].z, keep[1] * x[2]);
          x[3] = fmaf(add[1], more[n].w, keep[1] * x[3]);
        }
      }
    }
    softmax.row_max[0][0] = row_max[0];
    softmax.row_max[0][1] = row_max[1];
    return true;
  }

 private:
  static constexpr int kAtOnce = kVectors % 8 == 0 ? 8 : kVectors % 4 == 0 ? 4 : 2;  // loads under way together

  // What weights against a row_max are worth against another one. A part in which the row saw no key counts for
  // nothing.
  __device__ __forceinline__ static float share(float from, float to, float scale_log2) {
    return from == neg_inf() ? 0.f : exp2_approx((from - to) * scale_log2);
  }

  // Raises a row_max to that of one more part; returns what the sum so far is worth then.
  __device__ __forceinline__ static float raise_max(float& row_max, float more, float scale_log2) {
    float const before = row_max;
    row_max = fmaxf(row_max, more);
    return share(before, row_max, scale_log2);
  }

  // Counts the warp's arrival. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool is_last() const {
    __threadfence();  // each lane's rows, before the warp's arrival
    __syncwarp();
    u32* const arrivals = args.arrivals + (static_cast<i64>(head) * args.n_split_rows + split.x) * kWarps + warp;
    int before = 0;
    if (lane_id() == 0) before = static_cast<int>(atomicAdd(arrivals, 1u));
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != split.z - 1) return false;
    if (lane_id() == 0) *arrivals = 0;
    __threadfence();  // the arrivals seen, before the others' rows
    return true;
  }
};

}  // namespace omni
