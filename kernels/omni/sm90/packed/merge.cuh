// Packed tiles of 128 rows, which two warpgroups share: their shape, and the merge of tiles whose keys were split over
// several thread blocks, by all eight warps of the block that comes last; of two parts, by each warp that comes last.
// They are added up in the order of the keys.
#pragma once

#include "omni/sm90/forward/packed.cuh"
#include "omni/sm90/packed/ptx.cuh"
#include "omni/sm90/uniform.cuh"

namespace omni {

template <class Base>
struct PackedPair : Base {
  static constexpr bool kPack = true;
  static_assert(Base::kConsumers == 2 && Base::kBr == Base::kQRows && Base::kScheduler, "rows of two warpgroups");
};

// As the one of 64 rows. A lane has a few columns of a row and goes through the parts; of few parts several rows are
// asked for together, which would wait for one memory access after the other else.
template <class Base>
struct PackedMerge<PackedPair<Base>> {
  using Cfg = PackedPair<Base>;
  static constexpr int kVectors = Cfg::kValueDim / 4;  // of four numbers of O a row
  static constexpr int kLanes = kVectors > 16 ? 32 : kVectors > 8 ? 16 : kVectors > 4 ? 8 : 4;  // that work on a row
  static constexpr int kSide = 32 / kLanes;                                                     // rows side by side
  static constexpr int kEach = (kVectors + kLanes - 1) / kLanes;                                // vectors a lane
  static constexpr int kWarps = 4 * Cfg::kConsumers;
  static constexpr int kFewParts = 4;
  static constexpr int kFewRows = kEach == 1 ? 4 : 2;
  static constexpr int kManyParts = kEach == 1 ? 16 : 8;

  // A row as it is added up: against its row_max.
  struct Sum {
    float row_max = neg_inf(), row_sum = 0.f;
    float out[kEach][4] = {};
  };

  ForwardParamsSm90 const& args;
  PackedRows<Cfg> const& rows;
  int4 const split;  // {row among the split ones, number of the part, parts of the row, slot of the first one}

  // A warp's rows, after `softmax.finish()`.
  template <class Out>
  __device__ __forceinline__ void leave(Out const& out, OnlineSoftmax<1, Cfg::kBf16> const& softmax, int row0) const {
    float* const g_out = part(split.y);
    float2* const g_sums = reinterpret_cast<float2*>(g_out + args.p.part_rows * Cfg::kValueDim);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = row0 + Out::row(0, h);
      if (row >= rows.live) continue;
      float* const g_row = g_out + row * Cfg::kValueDim + Out::col(0, 0);
#pragma unroll
      for (int j = 0; j < Out::kBlocks; ++j) {
        *reinterpret_cast<float2*>(g_row + 8 * j) = make_float2(out.x[0][4 * j + 2 * h], out.x[0][4 * j + 2 * h + 1]);
      }
      if (lane_id() % 4 == 0) g_sums[row] = make_float2(softmax.row_max[0][h], softmax.row_sum[0][h]);
    }
  }

  // Counts the arrival of both warpgroups. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool is_last() const {
    constexpr int kThreads = 32 * kWarps;
    bar_sync<kThreads>(kMergeBarrier);  // the rows of all warps, before their arrival
    bool last = false;
    if (threadIdx.x == 128) {
      u32* const arrivals = args.arrivals + static_cast<i64>(rows.tile) * args.n_split_rows + split.x;
      last = static_cast<int>(count_arrival(arrivals)) == split.z - 1;
      if (last) *arrivals = 0;
    }
    return uniform(static_cast<int>(bar_any<kThreads>(kMergeBarrier, last)));
  }

  // Of two parts a warp's rows are merged without the other warps, by the warp that comes last: it has one part, and
  // reads the other. True there; `out` and `softmax` then hold the whole. After `softmax.finish()`.
  template <class Out>
  __device__ __forceinline__ bool add_other(Out& out, OnlineSoftmax<1, Cfg::kBf16>& softmax, int row0) const {
    leave(out, softmax, row0);
    if (!is_last_warp(row0 / 16)) return false;
    float const* const g_out = part(1 - split.y);
    float2 const* const g_sums = reinterpret_cast<float2 const*>(g_out + args.p.part_rows * Cfg::kValueDim);
    float2 sums[2], more[2][Out::kBlocks];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = min(row0 + Out::row(0, h), rows.live - 1);
      float const* const g_row = g_out + row * Cfg::kValueDim + Out::col(0, 0);
      sums[h] = load_past_l1(g_sums + row);
#pragma unroll
      for (int j = 0; j < Out::kBlocks; ++j) more[h][j] = load_past_l1(reinterpret_cast<float2 const*>(g_row + 8 * j));
    }
    bool const first = uniform(split.y) == 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const top = fmaxf(softmax.row_max[0][h], sums[h].x);
      float const mine = share(softmax.row_max[0][h], top), other = share(sums[h].x, top);
      softmax.row_max[0][h] = top;
      softmax.row_sum[0][h] = in_order(first, mine, softmax.row_sum[0][h], other, sums[h].y);
#pragma unroll
      for (int j = 0; j < Out::kBlocks; ++j) {
        float* const x = &out.x[0][4 * j + 2 * h];
        x[0] = in_order(first, mine, x[0], other, more[h][j].x);
        x[1] = in_order(first, mine, x[1], other, more[h][j].y);
      }
    }
    return true;
  }

  // Merges and stores all rows.
  __device__ __forceinline__ void run() const {
    if (uniform(split.z) <= kFewParts) {
      merge<kFewRows, kFewParts>();
    } else {
      merge<1, kManyParts>();
    }
  }

 private:
  static constexpr int kMergeBarrier = 9;  // behind the turns of four pairs of warps

  // What two parts add up to, the first keys' first: as `take` adds them. first: `mine` are those.
  __device__ __forceinline__ static float in_order(bool first, float mine, float x, float other, float y) {
    return first ? fmaf(other, y, fmaf(mine, x, 0.f)) : fmaf(mine, x, fmaf(other, y, 0.f));
  }

  // Counts the arrival of a warp where there are two parts: a warp has four bits of the counter. The last one puts them
  // back to zero, for the next launch.
  __device__ __forceinline__ bool is_last_warp(int warp) const {
    u32 const one = 1u << 4 * warp;
    u32* const arrivals = args.arrivals + static_cast<i64>(rows.tile) * args.n_split_rows + split.x;
    __syncwarp();  // the rows of all lanes, before their arrival
    u32 before = 0;
    if (lane_id() == 0) {
      before = count_arrivals(arrivals, one);
      if (before & one) atomicAdd(arrivals, 0u - 2 * one);
    }
    before = __shfl_sync(0xffffffffu, before, 0);
    __syncwarp();
    return (before & one) != 0;
  }

  // kRows: a lane works on together.  kParts: of each, which are asked for together. Bounds of loops are known to be
  // the same for a whole warp (test_compile.py).
  template <int kRows, int kParts>
  __device__ __forceinline__ void merge() const {
    constexpr int kTogether = kWarps * kSide;  // rows of all warps
    int const lane = lane_id() % kLanes;
    int const live = uniform(rows.live), parts = uniform(split.z);
    int row0 = uniform(threadIdx.x / 32 - 4) * kSide;
#pragma unroll 1
    for (; row0 < live; row0 += kRows * kTogether) {
      int const row = row0 + lane_id() / kLanes;
      Sum sums[kRows];
#pragma unroll 1
      for (int first = 0; first < parts; first += kParts) add<kRows, kParts, kTogether>(sums, row, first, lane);
#pragma unroll
      for (int i = 0; i < kRows; ++i) store(sums[i], row + i * kTogether, lane);
    }
  }

  // The parts from `first` on, of the rows row0, row0 + kTogether, ...
  template <int kRows, int kParts, int kTogether>
  __device__ __forceinline__ void add(Sum (&sums)[kRows], int row0, int first, int lane) const {
    float4 more[kRows][kParts][kEach];
    float2 found[kRows][kParts];
#pragma unroll
    for (int n = 0; n < kParts; ++n) {
      float const* const g_part = part(min(first + n, split.z - 1));
      float2 const* const g_sums = reinterpret_cast<float2 const*>(g_part + args.p.part_rows * Cfg::kValueDim);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        int const row = row0 + i * kTogether;
        bool const exists = first + n < split.z && row < rows.live;
        found[i][n] = exists ? load_past_l1(g_sums + row) : make_float2(neg_inf(), 0.f);
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          int const vector = lane + kLanes * e;
          float4 const* const g_vector = reinterpret_cast<float4 const*>(g_part + row * Cfg::kValueDim) + vector;
          more[i][n][e] = load_past_l1_or_zeros(g_vector, exists && vector < kVectors);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float top = sums[i].row_max;
#pragma unroll
      for (int n = 0; n < kParts; ++n) top = fmaxf(top, found[i][n].x);
      scale(sums[i], share(sums[i].row_max, top));
      sums[i].row_max = top;
#pragma unroll
      for (int n = 0; n < kParts; ++n) take(sums[i], share(found[i][n].x, top), found[i][n].y, more[i][n]);
    }
  }

  __device__ __forceinline__ static void scale(Sum& sum, float factor) {
    sum.row_sum *= factor;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sum.out[e][c] *= factor;
    }
  }

  __device__ __forceinline__ static void take(Sum& sum, float weight, float row_sum, float4 const (&more)[kEach]) {
    sum.row_sum = fmaf(weight, row_sum, sum.row_sum);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      sum.out[e][0] = fmaf(weight, more[e].x, sum.out[e][0]);
      sum.out[e][1] = fmaf(weight, more[e].y, sum.out[e][1]);
      sum.out[e][2] = fmaf(weight, more[e].z, sum.out[e][2]);
      sum.out[e][3] = fmaf(weight, more[e].w, sum.out[e][3]);
    }
  }

  // What weights against a row_max are worth against another one. A part in which the row saw no key counts for
  // nothing.
  __device__ __forceinline__ float share(float from, float to) const {
    return from == neg_inf() ? 0.f : exp2_approx((from - to) * args.p.scale_log2);
  }

  // What a part leaves.
  __device__ __forceinline__ float* part(int index) const {
    i64 const slot = static_cast<i64>(rows.tile) * args.n_slots + split.w + index;
    return reinterpret_cast<float*>(args.partials) + slot * args.p.part_rows * (Cfg::kValueDim + 2);
  }

  // A row that is whole, a few columns a lane.
  __device__ __forceinline__ void store(Sum const& sum, int row, int lane) const {
    ForwardParams const& p = args.p;
    OnlineSoftmax<1, Cfg::kBf16> whole;
    whole.row_max[0][0] = sum.row_max;
    whole.row_sum[0][0] = sum.row_sum;
    float const factor = rows.inverse(whole, 0, row);
    unsigned char* const g_row = rows.output(row);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      int const vector = lane + kLanes * e;
      if (row >= rows.live || 4 * vector >= value_columns<Cfg>(p)) continue;
      u32 const low = pack_pair<Cfg::kBf16>(sum.out[e][0] * factor, sum.out[e][1] * factor);
      u32 const high = pack_pair<Cfg::kBf16>(sum.out[e][2] * factor, sum.out[e][3] * factor);
      *reinterpret_cast<uint2*>(g_row + 8 * vector) = make_uint2(low, high);
    }
    if (row < rows.live && p.lse != nullptr && lane == 0) rows.lse(row) = whole.lse(0, 0, p.scale, p.scale_log2);
  }
};

}  // namespace omni
