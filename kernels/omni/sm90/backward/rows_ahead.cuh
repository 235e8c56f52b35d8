// lse2 and delta, made by the kernel that reads them, ahead of when it does: in the order in which tiles of queries are
// wanted, the first ones by the warps that own keys, before they begin, and the others by the warp that makes dQ in the
// background, before it does. Every thread block has a share, and none waits before its own is done. A tile's turn is
// kFirstTurn from when its rows are there.
#pragma once

#include "omni/delta.cuh"
#include "omni/sm90/backward/background.cuh"

namespace omni {

// 16 bytes that are read once: past L1.
__device__ __forceinline__ uint4 load_16(void const* g_source) {
  float4 const v = load_past_l1(static_cast<float4 const*>(g_source));
  return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}

// A lane's place in rows of O or dO: 8 columns, a row each step, the head's last one again and again at its end.
struct RowPlace {
  unsigned char const* g_data;
  i64 step;

  __device__ __forceinline__ RowPlace(Tensor const& tensor, int batch, int head, int row, int rows, int column)
      : g_data(tensor.row(batch, head, row) + 2 * column), step(2 * rows * tensor.strides.token) {}

  __device__ __forceinline__ uint4 next(bool has_more) {
    uint4 const eight = load_16(g_data);
    g_data += has_more ? step : 0;
    return eight;
  }
};

template <class Cfg>
struct RowLanes {
  static constexpr int kOfRow = lanes_of((Cfg::kHeadDim > Cfg::kValueDim ? Cfg::kHeadDim : Cfg::kValueDim) / 8);
  static constexpr int kRows = 32 / kOfRow;  // of a load

  // Of the rows from `row` on the one whose sum a lane keeps: those of a load are lanes' with the same place in theirs.
  __device__ __forceinline__ static int row_of(int thread, int row) {
    return row + thread % kOfRow * kRows + thread % 32 / kOfRow;
  }
};

// By a warp: kRows rows of a head from `row` on, those at once that kAtOnce loads of O and of dO bring. Rows past the
// last one get what keeps them out.
template <class Cfg, int kRows, int kAtOnce>
__device__ __forceinline__ void make_rows(BackwardParamsSm90 const& args, int batch, int head, int row) {
  using Lanes = RowLanes<Cfg>;
  constexpr int kLoads = kRows / Lanes::kRows;
  static_assert(kLoads <= Lanes::kOfRow && kLoads % kAtOnce == 0, "a lane keeps one row's sum");
  BackwardParams const& b = args.b;
  ForwardParams const& p = b.p;
  int const lane = lane_id() % Lanes::kOfRow, of_load = lane_id() / Lanes::kOfRow;
  // Of the row whose sum this lane keeps, worked out anew at the end.
  i64 const index = (static_cast<i64>(batch) * p.q_heads + head) * p.q_len + Lanes::row_of(thread_index(), row);
  bool const exists = lane < kLoads && Lanes::row_of(thread_index(), row) < p.q_len;
  float const lse = exists ? p.lse[index] : neg_inf();
  bool const has_columns = 8 * lane < value_columns<Cfg>(p);
  int const first = min(row + of_load, p.q_len - 1), column = has_columns ? 8 * lane : 0;
  RowPlace out_at(Tensor{p.out, p.out_strides}, batch, head, first, Lanes::kRows, column);
  RowPlace dout_at(b.gradient_of_out(), batch, head, first, Lanes::kRows, column);
  int rows = p.q_len - first;  // that are left, from the next load on
  uint4 out[kAtOnce], dout[kAtOnce];
  auto const fetch = [&] {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      rows -= Lanes::kRows;
      dout[i] = dout_at.next(rows > 0);
      out[i] = out_at.next(rows > 0);
    }
  };
  fetch();
  float sum = 0.f;
#pragma unroll 1
  for (int load = 0; load < kLoads; load += kAtOnce) {
    float of_row[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      of_row[i] = 0.f;
      of_row[i] += dot<Cfg::kBf16>(dout[i], out[i]);
    }
    if (load + kAtOnce < kLoads) fetch();  // under way while lanes add up
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      of_row[i] = sum_of_row<Lanes::kOfRow>(has_columns ? of_row[i] : 0.f);
      if (lane == load + i) sum = of_row[i];
    }
  }
  if (lane >= kLoads) return;
  bool const sees = lse != neg_inf();  // NaN goes on
  int const kept = Lanes::row_of(thread_index(), row);
  float of_lse = 0.f;
  if (sees && b.dlse != nullptr) {
    of_lse = b.dlse[(static_cast<i64>(batch) * p.q_heads + head) * p.q_len + kept];
  }
  put_statistics<Cfg::kBf16>(b, b.statistics(batch, head) + kept, sees, RowSums{lse * kLog2E, lse, sum, of_lse});
}

// So many sums, in their order, have their rows made by the warps that own keys: those of the heads that are worked on
// first, in whole rounds of thread blocks.
constexpr int kLeastRounds = 2;
template <class Cfg>
__device__ __forceinline__ int rows_first(BackwardParamsSm90 const& args) {
  ForwardParams const& p = args.b.p;
  int const begun = p.section * p.mask_batch * args.head_sums * (args.head_ranks == 0 ? p.group : 1);
  int const round = Cfg::kConsumers * static_cast<int>(gridDim.x);
  return min(max((begun + round - 1) / round, kLeastRounds) * round, args.places);
}

// By a warpgroup that owns keys.
template <class Cfg>
__device__ __forceinline__ void make_first_rows(BackwardParamsSm90 const& args, int group) {
  constexpr int kRows = Cfg::kBr / 4;  // of a warp
  int const blocks = gridDim.x, end = rows_first<Cfg>(args);
  wait_for_kernel_ahead();
#pragma unroll 1
  for (int index = blockIdx.x + group * blocks; index < end; index += Cfg::kConsumers * blocks) {
    int const sum = sum_in_order(args, index);
    HeadOfSum const of(args, sum);
    int const row = of.tile * Cfg::kBr + thread_index() / 32 % 4 * kRows;
    make_rows<Cfg, kRows, kRows / RowLanes<Cfg>::kRows>(args, of.batch, of.head, row);
    fence_proxy_async_global();
    bar_sync<128>(1 + group);
    if (thread_index() % 128 == 0) add_release(args.turns + sum, Cfg::kFirstTurn);
  }
}

// By a warp, a line a lane: asks for rows of O and dO, as far as they reach 256 bytes.
template <class Cfg>
__device__ __forceinline__ void ask_for_rows(BackwardParamsSm90 const& args, HeadOfSum const& of) {
  ForwardParams const& p = args.b.p;
  int const column = 128 * (lane_id() % 2);
  if (column >= 2 * value_columns<Cfg>(p)) return;
#pragma unroll 1
  for (int row = lane_id() / 2; row < Cfg::kBr; row += 16) {
    int const token = min(of.tile * Cfg::kBr + row, p.q_len - 1);
    prefetch_to_l2(Tensor{p.out, p.out_strides}.row(of.batch, of.head, token) + column);
    prefetch_to_l2(args.b.gradient_of_out().row(of.batch, of.head, token) + column);
  }
}

// By a warp.
template <class Cfg>
__device__ __forceinline__ void make_rows_ahead(BackwardParamsSm90 const& args) {
  constexpr int kRows = 32, kAtOnce = 2;
#pragma unroll 1
  for (int index = rows_first<Cfg>(args) + blockIdx.x; index < args.places; index += gridDim.x) {
    int const sum = sum_in_order(args, index);
    HeadOfSum const of(args, sum);
    int const next = index + static_cast<int>(gridDim.x);
    if (next < args.places) ask_for_rows<Cfg>(args, HeadOfSum(args, sum_in_order(args, next)));
#pragma unroll 1
    for (int row = 0; row < Cfg::kBr; row += kRows) {
      make_rows<Cfg, kRows, kAtOnce>(args, of.batch, of.head, of.tile * Cfg::kBr + row);
    }
    fence_proxy_async_global();
    __syncwarp();
    if (lane_id() == 0) add_release(args.turns + sum, Cfg::kFirstTurn);
  }
}

}  // namespace omni
