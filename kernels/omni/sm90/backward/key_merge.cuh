// Blocks of keys whose queries were split over several work items: each leaves its part of dK and dV in float32 in
// global memory, and the warp that comes last adds them up, in the order of the parts, so that the sum is the same
// whoever comes last. A warp's 16 keys are merged without the other warps.
#pragma once

#include "omni/sm90/backward/config.cuh"
#include "omni/tile.cuh"

namespace omni {

template <class Cfg>
struct KeyMerge {
  static constexpr int kWarps = Cfg::kBc / 16;  // with keys of their own
  static constexpr int kMostVectors = (Cfg::kHeadDim > Cfg::kValueDim ? Cfg::kHeadDim : Cfg::kValueDim) / 8;

  BackwardParamsSm90 const& args;
  int4 const split;  // {block among the split ones, number of the part, parts of the block, slot of the first one}
  int const head;    // of keys, of all batch elements

  // After it `out` is a sum of a part; true where the warp came last: `out` then holds the whole. gradient: 0 dK, 1 dV.
  // warp: which keys of the block.
  template <class Out>
  __device__ __forceinline__ bool add(Out& out, int gradient, int warp) const {
    constexpr int kVectors = Out::kCols / 8;  // of four numbers a lane
    float4* const mine = part(split.y, gradient, warp);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float const* x = &out.x[0][4 * i];
      mine[32 * i] = make_float4(x[0], x[1], x[2], x[3]);
    }
    if (!is_last(gradient, warp)) return false;
    out.fill(0.f);
#pragma unroll 1
    for (int j = 0; j < split.z; ++j) {
      float4 const* const from = part(j, gradient, warp);
#pragma unroll
      for (int i = 0; i < kVectors; i += 2) {
        float4 const a = load_past_l1(from + 32 * i), b = load_past_l1(from + 32 * (i + 1));
        add_four(&out.x[0][4 * i], a);
        add_four(&out.x[0][4 * (i + 1)], b);
      }
    }
    return true;
  }

 private:
  // The lane's numbers of one part: vector i stands 32 * i further on.
  __device__ __forceinline__ float4* part(int index, int gradient, int warp) const {
    i64 const slot = static_cast<i64>(head) * args.n_slots + split.w + index;
    return args.partials + ((2 * slot + gradient) * kWarps + warp) * (32 * kMostVectors) + lane_id();
  }

  __device__ __forceinline__ static void add_four(float* x, float4 const& more) {
    x[0] += more.x;
    x[1] += more.y;
    x[2] += more.z;
    x[3] += more.w;
  }

  // Counts the warp's arrival. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool is_last(int gradient, int warp) const {
    __threadfence();  // each lane's numbers, before the warp's arrival
    __syncwarp();
    i64 const block = static_cast<i64>(head) * args.n_split_rows + split.x;
    u32* const arrivals = args.arrivals + (2 * block + gradient) * kWarps + warp;
    int before = 0;
    if (lane_id() == 0) before = static_cast<int>(atomicAdd(arrivals, 1u));
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != split.z - 1) return false;
    if (lane_id() == 0) *arrivals = 0;
    __threadfence();  // the arrivals seen, before the others' numbers
    return true;
  }
};

}  // namespace omni
