// All three gradients in one pass over the tiles, dQ by a warpgroup of its own. Two warpgroups make dK and dV of 64
// keys each, and hand dS^T on through shared memory. The third makes dQ^T = K^T dS^T and leaves it to the threads that
// add it to the sums (fused_loop.cuh). What stays for an item lies in registers, as A operands: K, V and K^T. Read from
// shared memory for every tile they would share its bandwidth with all else.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/backward/fused_loop.cuh"

namespace omni {

// 16 rows of a tile from `row0` on, kColumns columns in panels of 64, as an A operand.
template <int kColumns, int kPanelBytes>
__device__ __forceinline__ void load_rows(u32 (&a)[kColumns / 4], u32 s_tile, int row0) {
  int const l = lane_id(), row = row0 + l % 16;
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
    int const chunk = step % 4 * 2 + l / 16;
    u32(&four)[4] = reinterpret_cast<u32(&)[4]>(a[4 * step]);
    ldmatrix_x4(four, s_tile + step / 4 * kPanelBytes + row * kPanelRowBytes + ((chunk ^ (row & 7)) << 4));
  }
}

// The same of the tile transposed: 16 of a panel's columns from `column0` on are its rows, kRows rows its columns.
template <int kRows>
__device__ __forceinline__ void load_columns(u32 (&a)[kRows / 4], u32 s_panel, int column0) {
  int const l = lane_id(), chunk = column0 / 8 + l / 8 % 2;
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    int const row = 16 * step + l / 16 * 8 + l % 8;
    u32(&four)[4] = reinterpret_cast<u32(&)[4]>(a[4 * step]);
    ldmatrix_x4_trans(four, s_panel + row * kPanelRowBytes + ((chunk ^ (row & 7)) << 4));
  }
}

// A warpgroup with dK and dV of 64 keys, which hands dS^T on.
template <class Cfg>
struct ScoreLoop {
  using Smem = KeySmem<Cfg>;
  using Consumer = KeyConsumer<Cfg>;
  using Scores = typename Consumer::Scores;
  using Pairs = typename Consumer::Pairs;
  static_assert(!Cfg::kSoftcap, "its steps take registers");

  Smem& smem;
  KeyLoop<Cfg> keys;
  RingIndex<Smem::kRing> ring;  // of dS
  u32 k[Cfg::kHeadDim / 4], v[Cfg::kValueDim / 4];

  __device__ __forceinline__ ScoreLoop(BackwardParamsSm90 const& args, Smem& memory)
      : smem(memory), keys(args, memory) {}

  __device__ __forceinline__ void init() { keys.init(); }

  __device__ __forceinline__ void keys_came(WorkSlot const&) {
    int const row0 = Consumer::row0(keys.group());
    load_rows<Cfg::kHeadDim, Cfg::kKvPanelBytes>(k, smem_address(smem.k), row0);
    load_rows<Cfg::kValueDim, Cfg::kKvPanelBytes>(v, smem_address(smem.v), row0);
  }

  // d = K Q^T or V dO^T, started.
  template <int kColumns>
  __device__ __forceinline__ static void start(Scores& d, u32 (&rows)[kColumns / 4], u32 columns) {
    pin_registers(rows);
    wgmma_fence();
    start_rs_k<kColumns, Cfg::kQPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(d, rows, columns);
    wgmma_commit();
  }

  __device__ __forceinline__ void tile(WorkSlot const& work, int) {
    Scores scores;
    keys.consumer.wait_for_q();
    pin_registers(scores.x[0]);
    start<Cfg::kHeadDim>(scores, k, keys.consumer.q_low());
    keys.step(
        scores, work, [&](Scores& gradients) { start<Cfg::kValueDim>(gradients, v, keys.consumer.dout_low()); },
        [&](Pairs const& score_gradients) {
          mbarrier_wait(smem_address(&smem.ds_empty[ring.stage()]), ring.parity() ^ 1);
          if (thread_index() == 128) smem.ds_additions[ring.stage()] = smem.additions[keys.consumer.ring.stage()];
          put_score_gradients<Cfg>(*this, score_gradients);
        },
        [&] { hand_over_score_gradients(*this); });
  }

  __device__ __forceinline__ void finish(WorkSlot const&) const {}
  __device__ __forceinline__ void store(WorkSlot const& work) { keys.store(work); }
  __device__ __forceinline__ void run() { run_items<Cfg>(*this, smem); }
};

// The warpgroup that makes dQ.
template <class Cfg>
struct QueryGradientLoop {
  using Smem = KeySmem<Cfg>;
  using Sums = RegTile<1, Cfg::kBr>;  // rows are columns of dQ, columns are queries
  static_assert(Cfg::kHeadDim <= 64 && Cfg::kBr == 64, "a warpgroup's rows");
  static_assert(Smem::kStaged, "other threads add");

  Smem& smem;
  RingIndex<Smem::kRing> ring;        // of dS
  RingIndex<Smem::kBuffers> buffers;  // of sums
  u32 k[Cfg::kBc / 4];                // K^T

  __device__ __forceinline__ explicit QueryGradientLoop(Smem& memory) : smem(memory) {}

  __device__ __forceinline__ static int warp() { return thread_index() % 128 / 32; }

  __device__ __forceinline__ void init() const {}
  __device__ __forceinline__ void keys_came(WorkSlot const&) {
    load_columns<Cfg::kBc>(k, smem_address(smem.k), 16 * warp());
  }

  __device__ __forceinline__ void tile(WorkSlot const&, int) {
    Sums sums;
    int const stage = ring.stage();
    mbarrier_wait(smem_address(&smem.ds_full[stage]), ring.parity());
    int2 const addition = smem.ds_additions[stage];
    pin_registers(sums.x[0]);
    pin_registers(k);
    wgmma_fence();
    start_rs_k<Cfg::kBc, Cfg::kQPanelBytes, Cfg::kBf16, Cfg::kSumsAtomN>(
        sums, k, descriptor_low(smem_address(smem.ds[stage]), 16));
    wgmma_commit();
    wait_for_buffer();
    announce(addition);
    wgmma_wait<0>();
    pin_registers(sums.x[0]);
    release(smem.ds_empty[stage]);
    ring.next();
    if (16 * warp() < Cfg::kHeadDim) put(sums);
    fence_proxy_async();
    hand_on();
  }

  __device__ __forceinline__ void finish(WorkSlot const&) const {}
  __device__ __forceinline__ void store(WorkSlot const&) const {}

  __device__ __forceinline__ void run() {
    run_items<Cfg>(*this, smem);
    for (int i = 0; i < Smem::kBuffers; ++i) {  // no more come
      wait_for_buffer();
      announce(make_int2(-1, 0));
      hand_on();
    }
  }

 private:
  __device__ __forceinline__ void wait_for_buffer() const {
    mbarrier_wait(smem_address(&smem.sums_empty[buffers.stage()]), buffers.parity() ^ 1);
  }

  // What the buffer's thread does next.
  __device__ __forceinline__ void announce(int2 addition) const {
    if (thread_index() % 128 == 0) smem.staged[buffers.parity()][buffers.stage()] = addition;
  }

  __device__ __forceinline__ void hand_on() {
    release(smem.sums_full[buffers.stage()]);
    buffers.next();
  }

  // To the buffer, in the order of accumulators of dQ, where rows are queries (omni/dq_sums.cuh). Of two blocks of 8
  // queries a lane has four numbers of one column, and there the lanes of a quad would meet in one bank: so each begins
  // with another of the four.
  __device__ __forceinline__ void put(Sums const& sums) const {
    int const row = lane_id() / 4, lane = lane_id() % 4;
    bool const odd = lane & 1, upper = lane & 2;
    u32 const s_first =
        smem_address(smem.sums[buffers.stage()]) + 4 * (128 * 8 * warp() + 32 * lane + 4 * (row / 2) + row % 2);
    u32 s_target[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const which = (lane + i) % 4;  // 2 * block + query
      s_target[i] = s_first + 4 * (16 * (which % 2) + 2 * (which / 2));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < Sums::kBlocks; j += 2) {
        float const* const x = &sums.x[0][4 * j + 2 * h];
        float const four[4] = {x[0], x[1], x[4], x[5]};
        float turned[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) turned[i] = odd ? four[(i + 1) % 4] : four[i];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_shared(s_target[i] + 4 * 128 * (4 * h + j / 2), upper ? turned[(i + 2) % 4] : turned[i]);
        }
      }
    }
  }
};

// What the warpgroups run that own keys.
template <class Cfg, bool kApart = Cfg::kApart>
struct ConsumerLoop {
  using Type = FusedLoop<Cfg>;
};
template <class Cfg>
struct ConsumerLoop<Cfg, true> {
  using Type = ScoreLoop<Cfg>;
};
template <class Cfg>
using ConsumerOf = typename ConsumerLoop<Cfg>::Type;

}  // namespace omni
