// The loop of two consumer warpgroups that have the same rows: of an item's tiles of keys the first one takes those at
// even places, the second one the others, so one multiplies while the other weighs. Each adds up for itself; at the end
// of an item the second one leaves what it has in shared memory, in the buffer of its last values, and the first one
// adds that to its own and stores the rows. Who waits for whom beside ring.cuh: the first warpgroup for `left`, and the
// second one, before it leaves more, for `taken`.
//
// Warps of the two that share a quarter of the multiprocessor weigh in turn, in the order of the tiles: as in
// packed/loop.cuh, and because the rings need it. A stage's tiles may go to one warpgroup and to the other, and who
// waits for a parity must know that the tile before in that stage has come. It has: the other warpgroup waited for it
// before a turn that came before this one's last.
#pragma once

#include "omni/sm90/forward/consumer.cuh"
#include "omni/sm90/key_turns/config.cuh"
#include "omni/sm90/uniform.cuh"

namespace omni {

template <class Cfg>
struct KeyTurnsLoop {
  using Smem = KeyTurnsSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Scores = typename Consumer<Cfg>::Scores;

  Smem& smem;
  Consumer<Cfg> consumer;
  int const turn;         // the warpgroup's place among the two
  bool any_full;          // of the item at hand: the warpgroup has had a FULL tile of 64 keys
  RingIndex<1> exchange;  // of what is left and taken

  __device__ __forceinline__ KeyTurnsLoop(ForwardParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), consumer(params, memory, 0), turn(warpgroup), any_full(false) {
    if (turn == 1) consumer.state.ring.next();
  }

  // Items end in both branches: where they do behind them, ptxas no longer knows that warps are uniform.
  __device__ __forceinline__ void run() {
    if (turn == 1) pass_turn();
    for (Slot slot{}; take(slot); slot.next()) {
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), q_slot = Smem::q_slot(slot);
      mbarrier_wait(smem_address(&smem.q_full[q_slot]), Smem::q_parity(slot));
      if (turn < tiles) {
        consumer.set_q(q_slot);
        first_tile(work);
        for (int i = turn + 2; i < tiles; i += 2) next_tile(work);
        release(smem.q_empty[q_slot]);
        last_values(work);
        end_item(work, tiles);
      } else {
        release(smem.q_empty[q_slot]);
        consumer.begin_rows();
        end_item(work, tiles);
      }
      release(smem.work_empty[slot.stage()]);
    }
  }

 private:
  static constexpr int kVectors = Cfg::kValueDim / 8;  // of four numbers of O that a thread has

  // Named barriers: 0 is __syncthreads, 1 that of merged parts.
  __device__ __forceinline__ int group_barrier() const { return 2 + turn; }
  __device__ __forceinline__ int turn_barrier(int of) const { return 4 + consumer.row0 / 8 + of; }

  __device__ __forceinline__ void wait_turn() const {
    if constexpr (Cfg::kPingPong) bar_sync<64>(turn_barrier(turn));
  }

  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Cfg::kPingPong) bar_arrive<64>(turn_barrier(1 - turn));
  }

  __device__ __forceinline__ bool take(Slot slot) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    return uniform(smem.work[slot.stage()].head) >= 0;
  }

  __device__ __forceinline__ void first_tile(WorkSlot const& work) {
    Scores scores;
    u32 const k = consumer.k_descriptor_low();
    int const packed = consumer.wait_for_keys();
    pin_registers(scores.x[0]);
    consumer.start_scores(scores, k);
    KeepBits<Scores> keep;
    MaskWork const mask_work = consumer.look_at_mask(keep, packed, work);
    wgmma_wait<0>();
    pin_registers(scores.x[0]);
    consumer.cap(scores);
    consumer.hide_keys_of_no_page(scores, packed);
    consumer.begin_rows();
    consumer.mask_scores(scores, keep, mask_work, work);
    wait_turn();
    consumer.weigh_first(scores);
    pass_turn();
    any_full = is_full(packed);
    step();
  }

  // Scores of this tile beside the values of the warpgroup's tile before.
  __device__ __forceinline__ void next_tile(WorkSlot const& work) {
    Scores scores;
    if (consumer.state.dead_tile_k0 >= 0) zero_dead_values(work);
    u32 const k = consumer.k_descriptor_low();
    int const packed = consumer.wait_for_keys();
    pin_registers(scores.x[0]);
    consumer.state.pin();
    consumer.start_scores(scores, k);
    consumer.start_values();
    KeepBits<Scores> keep;
    MaskWork const mask_work = consumer.look_at_mask(keep, packed, work);
    wgmma_wait<1>();
    pin_registers(scores.x[0]);
    consumer.cap(scores);
    consumer.hide_keys_of_no_page(scores, packed);
    consumer.mask_scores(scores, keep, mask_work, work);
    consumer.finish_values();
    wait_turn();
    consumer.weigh(scores, (packed & kLazyFlag) && any_full);
    pass_turn();
    any_full = any_full || is_full(packed);
    step();
  }

  // The second warpgroup keeps its last values' buffer.
  __device__ __forceinline__ void last_values(WorkSlot const& work) {
    if (consumer.state.dead_tile_k0 >= 0) zero_dead_values(work);
    consumer.state.pin();
    consumer.start_values();
    wgmma_wait<0>();
    consumer.state.pin();
    if (turn == 0) release(smem.v_empty[consumer.state.value_stage.stage()]);
  }

  __device__ __forceinline__ static bool is_full(int packed) {
    return (packed & kKindMask) == kFull && packed >> 8 >= 64;
  }

  __device__ __forceinline__ void step() {
    consumer.state.step();
    consumer.state.ring.next();
  }

  // The ring stands at the warpgroup's next tile: at the end of an item of odd many tiles the first warpgroup is a tile
  // too far, the second one a tile too near.
  __device__ __forceinline__ void end_item(WorkSlot const& work, int tiles) {
    auto& ring = consumer.state.ring;
    RingIndex<Cfg::kStages> next = ring.before();
    if (turn == 1) {
      next = ring;
      next.next();
    }
    if (tiles & 1) ring = next;
    consumer.state.softmax.finish();
    if (turn == 1) {
      if (tiles > 1) leave();
      if (tiles & 1) {  // the turn behind the last tile's
        wait_turn();
        pass_turn();
      }
      return;
    }
    if (tiles > 1) add_other(tiles & 1 ? ring.before().before().stage() : ring.before().stage());
    store_rows(work);
  }

  // As Consumer has it, but the warpgroup has the tile for itself.
  __device__ __forceinline__ void zero_dead_values(WorkSlot const& work) {
    constexpr int kChunks = kPanelRowBytes / 16;
    u32 const* const g_dead = MaskView{consumer.p, work.mask}.dead_words(consumer.state.dead_tile_k0);
    consumer.wait_for_values();
    uint4* const s_v = reinterpret_cast<uint4*>(smem.v[consumer.state.value_stage.stage()]);
    int const thread = thread_index() % 128;
#pragma unroll 4
    for (int row = thread / kChunks; row < Cfg::kBc; row += 128 / kChunks) {
      if (!(g_dead[row / 32] >> (row % 32) & 1)) continue;
#pragma unroll
      for (int panel = 0; panel < Cfg::kValuePanels; ++panel) {
        s_v[(panel * Cfg::kBc + row) * kChunks + thread % kChunks] = make_uint4(0, 0, 0, 0);
      }
    }
    fence_proxy_async();
    bar_sync<128>(group_barrier());
  }

  // Where a thread's numbers lie between the warpgroups: vectors of a warp follow each other, a lane each.
  __device__ __forceinline__ float4* left(int stage) const {
    return reinterpret_cast<float4*>(smem.v[stage]) + consumer.row0 / 16 * 32 * kVectors + lane_id();
  }

  // All warps' products have read the values. What was there comes before what the copy engine brings next.
  __device__ __forceinline__ void leave() {
    auto const& out = consumer.state.out;
    auto const& softmax = consumer.state.softmax;
    bar_sync<128>(group_barrier());
    mbarrier_wait(smem_address(&smem.taken), exchange.parity() ^ 1);
    float4* const s_left = left(consumer.state.value_stage.stage());
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      s_left[32 * i] = make_float4(out.x[0][4 * i], out.x[0][4 * i + 1], out.x[0][4 * i + 2], out.x[0][4 * i + 3]);
    }
    if (lane_id() % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        smem.sums[consumer.row0 + out.row(0, h)] = make_float2(softmax.row_max[0][h], softmax.row_sum[0][h]);
      }
    }
    fence_proxy_async();
    release(smem.left);
    exchange.next();
  }

  // stage: of the values in whose place the second warpgroup's numbers are.
  __device__ __forceinline__ void add_other(int stage) {
    auto& out = consumer.state.out;
    auto& softmax = consumer.state.softmax;
    mbarrier_wait(smem_address(&smem.left), exchange.parity());
    float mine[2], other[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float2 const sums = smem.sums[consumer.row0 + out.row(0, h)];
      float const top = fmaxf(softmax.row_max[0][h], sums.x);
      mine[h] = share(softmax.row_max[0][h], top);
      other[h] = share(sums.x, top);
      softmax.row_max[0][h] = top;
      softmax.row_sum[0][h] = fmaf(other[h], sums.y, mine[h] * softmax.row_sum[0][h]);
    }
    float4 const* const s_left = left(stage);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float4 const more = s_left[32 * i];
      float* const x = &out.x[0][4 * i];
      x[0] = fmaf(other[0], more.x, mine[0] * x[0]);
      x[1] = fmaf(other[0], more.y, mine[0] * x[1]);
      x[2] = fmaf(other[1], more.z, mine[1] * x[2]);
      x[3] = fmaf(other[1], more.w, mine[1] * x[3]);
    }
    fence_proxy_async();
    release(smem.v_empty[stage]);
    release(smem.taken);
    exchange.next();
  }

  // What weights against a row_max are worth against another one: nothing where the row saw no key.
  __device__ __forceinline__ float share(float from, float to) const {
    return from == neg_inf() ? 0.f : exp2_approx((from - to) * consumer.p.scale_log2);
  }

  // The first warpgroup stores the rows, or leaves them as a part; it merges the parts of the tile where it comes last.
  __device__ __forceinline__ void store_rows(WorkSlot const& work) {
    auto& state = consumer.state;
    int const stop = row_stop<Cfg, RaggedParamsSm90>(consumer.args, consumer.p.q_len, work.mask);
    PackedRows<Cfg> const rows(consumer.p, work, stop);
    int4 const split = consumer.args.n_split_rows == 0 ? make_int4(-1, 0, 0, 0) : consumer.args.splits[work.part];
    if (uniform(split.x) < 0) {
      rows.store(state.out, state.softmax, consumer.row0);
      return;
    }
    PackedMerge<Cfg> const merge{consumer.args, rows, split};
    merge.leave(state.out, state.softmax, consumer.row0);
    if (merge.is_last()) merge.run();
  }
};

}  // namespace omni
