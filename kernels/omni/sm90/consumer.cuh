// A consumer warpgroup: 64 query rows, S, P and O in registers. S = Q K^T of the next tile runs beside O += P V of this
// one (FlashAttention-3's intra-warpgroup overlap), and while one warpgroup computes its softmax the other has the
// tensor cores (ping-pong).
#pragma once

#include "omni/epilogue.cuh"
#include "omni/mask.cuh"
#include "omni/sm90/pipe.cuh"
#include "omni/sm90/wgmma.cuh"

namespace omni {

// Named barriers; 0 is __syncthreads.
constexpr int kTurnBarrier = 1;  // + warpgroup: its turn at the tensor cores
constexpr int kDeadBarrier = 5;  // all consumers: dead V rows are zeroed

template <class Cfg>
struct Consumer {
  using Smem = SmemSm90<Cfg>;
  using Scores = RegTile<1, Cfg::kBc>;
  using Out = RegTile<1, Cfg::kHeadDim>;
  static constexpr int kBlocks = Scores::kBlocks;

  AttnParams const& p;
  Smem& smem;
  int const group;  // of the consumers
  int const row0;   // the warp's first row in the tile
  RingIndex<Cfg::kStages> ring;         // the tile whose scores come next
  RingIndex<Cfg::kStages> behind;       // the tile before it, whose values come next
  RingIndex<Smem::kSlots> slot;
  int q_parity = 0;
  Out out;
  static constexpr int kRests = Cfg::kSplitWeights ? Cfg::kBc / 4 : 1;
  u32 pairs[Cfg::kBc / 4];  // P of the tile before
  u32 rests[kRests];        // and what its rounding left, where that counts
  OnlineSoftmax<1> softmax;

  __device__ __forceinline__ Consumer(AttnParams const& params, Smem& memory, int warpgroup)
      : p(params), smem(memory), group(warpgroup), row0(64 * warpgroup + threadIdx.x % 128 / 32 * 16) {}

  // The whole warp has read what the barrier gives back.
  __device__ __forceinline__ static void release(u64& barrier) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(smem_address(&barrier));
  }

  __device__ __forceinline__ u64 q_descriptor() const {
    return wgmma_descriptor(smem_address(smem.q) + group * 64 * Cfg::kRowBytes, 16);
  }

  __device__ __forceinline__ u64 k_descriptor() const { return wgmma_descriptor(smem_address(smem.k[ring.stage]), 16); }

  __device__ __forceinline__ u64 v_descriptor() const {
    return wgmma_descriptor(smem_address(smem.v[behind.stage]), Cfg::kKvPanelBytes);
  }

  // Ping-pong: wait for the turn, hand it on.
  __device__ __forceinline__ void wait_turn() const {
    if constexpr (Cfg::kPingPong) {
      if (group == 0) bar_sync<kTurnBarrier, 256>();
      if (group == 1) bar_sync<kTurnBarrier + 1, 256>();
      if (Cfg::kConsumers == 3 && group == 2) bar_sync<kTurnBarrier + 2, 256>();
    }
  }

  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Cfg::kPingPong) {
      if (group == Cfg::kConsumers - 1) bar_arrive<kTurnBarrier, 256>();
      if (group == 0) bar_arrive<kTurnBarrier + 1, 256>();
      if (Cfg::kConsumers == 3 && group == 1) bar_arrive<kTurnBarrier + 2, 256>();
    }
  }

  // V rows of keys that no row sees may hold NaN, and 0 * NaN = NaN. All consumers share the work and meet before any
  // of them multiplies; none holds the turn here. The 128-byte swizzle moves 16-byte chunks inside their row only.
  __device__ __forceinline__ void zero_dead_values(KeyTile const& tile, int block_row) {
    MaskView const mask{p, block_row};
    mbarrier_wait(smem_address(&smem.v_full[behind.stage]), behind.parity);
    uint4* const s_v = reinterpret_cast<uint4*>(smem.v[behind.stage]);
    int const chunks = tile.length() * 8;
    for (int i = threadIdx.x - 128; i < Cfg::kPanels * chunks; i += 128 * Cfg::kConsumers) {
      int const panel = i / chunks;
      int const chunk = i - panel * chunks;
      if (mask.is_dead(tile.k0 + chunk / 8)) s_v[panel * Cfg::kBc * 8 + chunk] = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    bar_sync<kDeadBarrier, 128 * Cfg::kConsumers>();
  }

  // Masks one tile of scores. K, and the spans that came with it, are released as soon as they are read.
  __device__ __forceinline__ void mask_scores(Scores& scores, KeyTile const& tile, int block_row) {
    if (tile.kind() != kFull) {
      MaskView const mask{p, block_row};
      mask_tile<Cfg::kBr>(scores, WarpTile{mask, tile, row0, smem.spans[ring.stage][0]});
    }
    release(smem.k_empty[ring.stage]);
  }

  __device__ __forceinline__ void pack(Scores const& scores, int h) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      float const* x = &scores.x[0][4 * j + 2 * h];
      pairs[2 * j + h] = pack_pair<Cfg::kBf16>(x[0], x[1]);
      if constexpr (Cfg::kSplitWeights) rests[2 * j + h] = pack_rest<Cfg::kBf16>(x[0], x[1], pairs[2 * j + h]);
    }
  }

  __device__ __forceinline__ void pin_weights() {
    pin_registers(pairs);
    if constexpr (Cfg::kSplitWeights) pin_registers(rests);
  }

  // The values of the tile before, started.
  __device__ __forceinline__ void start_tile_values() {
    mbarrier_wait(smem_address(&smem.v_full[behind.stage]), behind.parity);
    start_values<Cfg>(out, pairs, v_descriptor());
    if constexpr (Cfg::kSplitWeights) start_values<Cfg>(out, rests, v_descriptor());
    wgmma_commit();
  }

  __device__ __forceinline__ void first_tile(KeyTile& tile, int block_row) {
    Scores scores;
    float correction[1][2];
    mbarrier_wait(smem_address(&smem.q_full), q_parity);
    q_parity ^= 1;
    mbarrier_wait(smem_address(&smem.k_full[ring.stage]), ring.parity);
    tile = smem.tiles[ring.stage];
    pin_registers(scores.x[0]);
    start_scores<Cfg>(scores, q_descriptor(), k_descriptor());
    wgmma_wait<0>();
    pin_registers(scores.x[0]);
    mask_scores(scores, tile, block_row);
    softmax.update(scores, correction, p.scale_log2);
    pack(scores, 0);
    pack(scores, 1);
    behind = ring;
    ring.next();
  }

  // Scores of this tile beside the values of the tile before. `tile`: in, the tile before; out, this tile.
  __device__ __forceinline__ void next_tile(KeyTile& tile, int block_row) {
    Scores scores;
    float correction[1][2];
    if (tile.has_dead()) zero_dead_values(tile, block_row);
    mbarrier_wait(smem_address(&smem.k_full[ring.stage]), ring.parity);
    tile = smem.tiles[ring.stage];
    wait_turn();
    pin_registers(scores.x[0]);
    pin_registers(out.x[0]);
    pin_weights();
    start_scores<Cfg>(scores, q_descriptor(), k_descriptor());
    start_tile_values();
    pass_turn();
    wgmma_wait<1>();
    pin_registers(scores.x[0]);
    mask_scores(scores, tile, block_row);
    // The wait stands where the values are about done: after the exponentials of one row of each pair. What follows
    // it, packing that row and rescaling, fits under the other row's exponentials, which are bound by their unit.
    float const offset0 = softmax.maximum(scores, 0, 0, correction[0][0], p.scale_log2);
    softmax.exponentiate(scores, 0, 0, offset0, p.scale_log2);
    float const offset1 = softmax.maximum(scores, 0, 1, correction[0][1], p.scale_log2);
    wgmma_wait<0>();
    pin_registers(out.x[0]);
    pin_weights();
    release(smem.v_empty[behind.stage]);
    rescale<true>(out, correction);
    pack(scores, 0);
    softmax.exponentiate(scores, 0, 1, offset1, p.scale_log2);
    pack(scores, 1);
    behind = ring;
    ring.next();
  }

  __device__ __forceinline__ void last_values(KeyTile const& tile, int block_row) {
    release(smem.q_empty);
    if (tile.has_dead()) zero_dead_values(tile, block_row);
    pin_registers(out.x[0]);
    pin_weights();
    start_tile_values();
    wgmma_wait<0>();
    pin_registers(out.x[0]);
    release(smem.v_empty[behind.stage]);
  }

  __device__ __forceinline__ WorkSlot take_work() {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage]), slot.parity);
    WorkSlot work = smem.work[slot.stage];
    // The loop bounds below must be known to be uniform: wgmma in a path that could diverge is serialised (C7520).
    work.head = __shfl_sync(0xffffffffu, work.head, 0);
    work.tiles = __shfl_sync(0xffffffffu, work.tiles, 0);
    release(smem.work_empty[slot.stage]);
    slot.next();
    return work;
  }

  __device__ __forceinline__ void run() {
    if (Cfg::kPingPong && group == Cfg::kConsumers - 1) bar_arrive<kTurnBarrier, 256>();  // the first turn is group 0's
    for (WorkSlot work = take_work(); work.head >= 0; work = take_work()) {
      out.fill(0.f);
      softmax.init();
      if (work.tiles > 0) {
        KeyTile tile;
        first_tile(tile, work.block_row);
        for (int i = 1; i < work.tiles; ++i) next_tile(tile, work.block_row);
        last_values(tile, work.block_row);
      }
      int const q0 = first_query<Cfg::kBr>(p, work.block_row) + row0;
      store_output<Cfg::kBf16>(p, WorkItem{work.block_row, work.batch, work.head}, out, softmax, q0, 0);
    }
  }
};

}  // namespace omni
