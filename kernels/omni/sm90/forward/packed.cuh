// Tiles whose rows are tokens times query heads of a group: where each row goes, and the merge of tiles whose keys were
// split over several thread blocks. Few of the 64 rows may be live, so parts leave these alone, and the block that
// comes last merges with all of its warps, which read many parts side by side. They are added up in the order of the
// keys, so that the sum is the same whoever comes last.
#pragma once

#include "omni/sm90/forward/pages.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/sm90/work_list.cuh"
#include "omni/store.cuh"

namespace omni {

// The rows of one tile.
template <class Cfg>
struct PackedRows {
  ForwardParams const& p;
  int q0, batch;
  int head;  // of all, the first of the pack
  int tile;  // among the tiles of a block row, of all batch elements
  int live;  // rows that stand for a token and a head; the first ones

  // There is one pack, or packs have one token: live rows follow each other. stop: the row behind the last one.
  __device__ __forceinline__ PackedRows(ForwardParams const& params, WorkSlot const& work, int stop)
      : p(params), q0(work.q0), batch(query_batch<Cfg>(work.batch)), head(work.head) {
    int const first = head - work.kv_head * p.group;  // of the pack, in its group
    tile = (work.batch * (p.q_heads / p.group) + work.kv_head) * p.packs + (p.packs == 1 ? 0 : first / p.pack_heads);
    live = min(p.pack_tokens, stop - q0) * min(p.pack_heads, p.group - first);
  }

  // Where a row of the output begins.
  __device__ __forceinline__ unsigned char* output(int row) const {
    int const token = row / p.pack_heads;
    return static_cast<unsigned char*>(p.out) +
           2 * (batch * p.out_strides.batch + (head + row - token * p.pack_heads) * p.out_strides.head +
                (q0 + token) * p.out_strides.token);
  }

  __device__ __forceinline__ float& lse(int row) const {
    int const token = row / p.pack_heads;
    i64 const at = static_cast<i64>(batch) * p.q_heads + head + row - token * p.pack_heads;
    return p.lse[at * p.q_len + q0 + token];
  }

  // What a row that is whole is multiplied by.
  __device__ __forceinline__ float inverse(OnlineSoftmax<1, Cfg::kBf16> const& softmax, int h, int row) const {
    if (p.sink_logits == nullptr || row >= live) return softmax.inverse(0, h);
    return softmax.inverse_with(sink_log2(p, head + row % p.pack_heads), 0, h, p.scale_log2);
  }

  // A warp's rows, which are whole. row0: its first one.
  template <class Out>
  __device__ __forceinline__ void store(Out const& out, OnlineSoftmax<1, Cfg::kBf16> const& softmax, int row0) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = row0 + Out::row(0, h);
      bool const write = row < live;
      store_row<Cfg::kBf16>(out, 0, h, inverse(softmax, h, row), output(row), write ? value_columns<Cfg>(p) : 0);
      if (write && p.lse != nullptr && lane_id() % 4 == 0) lse(row) = softmax.lse(0, h, p.scale, p.scale_log2);
    }
  }
};

// The parts of one tile. Each leaves (part_rows, kValueDim) of O, unnormalised and against its own row maxima, then
// (part_rows, 2) of row_max and row_sum, float32.
template <class Cfg>
struct PackedMerge {
  static constexpr int kVectors = Cfg::kValueDim / 4;  // of four numbers of O a row
  static constexpr int kEach = (kVectors + 31) / 32;   // of them a lane
  // Parts whose loads are under way together: their weights are those of the lanes, or of half of them.
  static constexpr int kAtOnce = kEach == 1 ? 32 : 16;

  ForwardParamsSm90 const& args;
  PackedRows<Cfg> const& rows;
  int4 const split;  // {row among the split ones, number of the part, parts of the row, slot of the first one}

  // A warp's rows, after `softmax.finish()`.
  template <class Out>
  __device__ __forceinline__ void leave(Out const& out, OnlineSoftmax<1, Cfg::kBf16> const& softmax, int row0) const {
    float* const g_out = part(split.y);
    float2* const g_sums = sums(split.y);
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

  // Counts the arrival of the whole warpgroup. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool is_last() const {
    bar_sync<128>(kMergeBarrier);  // the rows of all warps, before their arrival
    bool last = false;
    if (threadIdx.x % 128 == 0) {
      u32* const arrivals = args.arrivals + static_cast<i64>(rows.tile) * args.n_split_rows + split.x;
      last = static_cast<int>(count_arrival(arrivals)) == split.z - 1;
      if (last) *arrivals = 0;
    }
    return uniform(static_cast<int>(bar_any<128>(kMergeBarrier, last)));
  }

  // Merges and stores all rows, one a warp at a time.
  __device__ __forceinline__ void run() const {
    int const live = uniform(rows.live);
    int row = uniform(threadIdx.x % 128 / 32);
#pragma unroll 1
    for (; row < live; row += 4) merge_row(row);
  }

  // What a part leaves.
  __device__ __forceinline__ float* part(int index) const {
    i64 const slot = static_cast<i64>(rows.tile) * args.n_slots + split.w + index;
    return reinterpret_cast<float*>(args.partials) + slot * args.p.part_rows * (Cfg::kValueDim + 2);
  }

  __device__ __forceinline__ float2* sums(int index) const {
    return reinterpret_cast<float2*>(part(index) + args.p.part_rows * Cfg::kValueDim);
  }

  // What weights against a row_max are worth against another one. A part in which the row saw no key counts for
  // nothing.
  __device__ __forceinline__ float share(float from, float to) const {
    return from == neg_inf() ? 0.f : exp2_approx((from - to) * args.p.scale_log2);
  }

  // What parts weigh, a part a lane, and what they hold of the row, a few columns a lane, are asked for together.
  __device__ __forceinline__ void merge_row(int row) const {
    int const parts = uniform(split.z);
    float2 const first = load_sums(row, 0);
    float const* const g_row = part(0) + row * Cfg::kValueDim + 4 * lane_id();
    float row_max = first.x, row_sum = 0.f, weight = 0.f;
    float out[kEach][4] = {};
#pragma unroll 1
    for (int index = 0; index < parts; index += kAtOnce) {
      float4 more[kAtOnce][kEach];
      load_parts(more, g_row + index * each(), parts - index);
      if (index == 0) row_max = max_of_all(row, first.x, parts);
      if (index % 32 == 0) {
        float2 const found = index == 0 ? first : load_sums(row, index);
        weight = share(found.x, row_max);
        row_sum = fmaf(weight, found.y, row_sum);
      }
      add_parts(out, more, index % 32, weight);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) row_sum += __shfl_xor_sync(0xffffffffu, row_sum, step);
    store(out, row, row_max, row_sum);
  }

  // A row that is whole, a few columns a lane.
  __device__ __forceinline__ void store(float const (&out)[kEach][4], int row, float row_max, float row_sum) const {
    ForwardParams const& p = args.p;
    OnlineSoftmax<1, Cfg::kBf16> whole;
    whole.row_max[0][0] = row_max;
    whole.row_sum[0][0] = row_sum;
    float const factor = rows.inverse(whole, 0, row);
    unsigned char* const g_row = rows.output(row);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      int const vector = lane_id() + 32 * e;
      if (4 * vector >= value_columns<Cfg>(p)) continue;
      u32 const low = pack_pair<Cfg::kBf16>(out[e][0] * factor, out[e][1] * factor);
      u32 const high = pack_pair<Cfg::kBf16>(out[e][2] * factor, out[e][3] * factor);
      *reinterpret_cast<uint2*>(g_row + 8 * vector) = make_uint2(low, high);
    }
    if (p.lse != nullptr && lane_id() == 0) rows.lse(row) = whole.lse(0, 0, p.scale, p.scale_log2);
  }

 private:
  static constexpr int kMergeBarrier = 1;  // packed kernels have one warpgroup, which waits for no turn

  // row_max and row_sum of a row in the lane's part of 32 from `base` on.
  __device__ __forceinline__ float2 load_sums(int row, int base) const {
    int const index = base + lane_id();
    return index < split.z ? load_past_l1(sums(index) + row) : make_float2(neg_inf(), 0.f);
  }

  // Floats from a part to the next one.
  __device__ __forceinline__ i64 each() const { return args.p.part_rows * (Cfg::kValueDim + 2); }

  // row_max of all parts. own: of the lane's one among the first 32.
  __device__ __forceinline__ float max_of_all(int row, float own, int parts) const {
#pragma unroll 1
    for (int base = 32; base < parts; base += 32) own = fmaxf(own, load_sums(row, base).x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) own = fmaxf(own, __shfl_xor_sync(0xffffffffu, own, step));
    return own;
  }

  // The lane's columns of a row, of as many of kAtOnce parts as there are; zeros of the others.
  __device__ __forceinline__ void load_parts(float4 (&more)[kAtOnce][kEach], float const* g_row, int there) const {
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        bool const exists = n < there && lane_id() + 32 * e < kVectors;
        more[n][e] = load_past_l1_or_zeros(reinterpret_cast<float4 const*>(g_row + 128 * e), exists);
      }
      g_row += each();
    }
  }

  // weight: of the lane's part; lane0: whose part the first of them is.
  __device__ __forceinline__ static void add_parts(
      float (&out)[kEach][4], float4 const (&more)[kAtOnce][kEach], int lane0, float weight) {
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      float const factor = __shfl_sync(0xffffffffu, weight, lane0 + n);
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        out[e][0] = fmaf(factor, more[n][e].x, out[e][0]);
        out[e][1] = fmaf(factor, more[n][e].y, out[e][1]);
        out[e][2] = fmaf(factor, more[n][e].z, out[e][2]);
        out[e][3] = fmaf(factor, more[n][e].w, out[e][3]);
      }
    }
  }
};

}  // namespace omni
