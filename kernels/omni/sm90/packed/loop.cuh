// The loop of a consumer warpgroup over packed tiles of 128 rows. It is that of forward/loop.cuh, but rows of no head
// and token cost little: a warp that has no others weighs nothing, a warpgroup that has no others multiplies nothing
// either. Lists of packed tiles skip none. What warps take turns at is weighing, not products, which take less time
// here: two warps that share a quarter of the multiprocessor and weigh at once take as long as one after the other, and
// then wait for their products at once.
#pragma once

#include "omni/sm90/forward/loop.cuh"
#include "omni/sm90/packed/merge.cuh"

namespace omni {

template <class Cfg>
struct PackedLoop {
  using Smem = ForwardSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Scores = typename Consumer<Cfg>::Scores;

  Smem& smem;
  Consumer<Cfg> consumer;
  int weighing;  // of the item at hand: warps that have rows, of this one and its partner; 0 where this one has none

  __device__ __forceinline__ PackedLoop(ForwardParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), consumer(params, memory, warpgroup), weighing(1) {}

  // Rows are stored behind both branches: all threads come to the barrier of the merge from one place.
  __device__ __forceinline__ void run() {
    if (Cfg::kPingPong && consumer.group == 1) bar_arrive<64>(turn_barrier(0));
    for (Slot slot{}; take(slot); slot.next()) {
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), live = uniform(live_rows(work));
      int const q_slot = Smem::q_slot(slot);
      mbarrier_wait(smem_address(&smem.q_full[q_slot]), Smem::q_parity(slot));
      consumer.begin_rows();
      if (tiles != 0 && 64 * consumer.group < live) {
        weighing = uniform(consumer.row0) >= live ? 0 : uniform(64 + first_row()) < live ? 2 : 1;
        consumer.set_q(q_slot);
        first_tile(work);
        for (int i = 1; i < tiles; ++i) next_tile(work);
        release(smem.q_empty[q_slot]);
        last_values(work);
      } else {
        release(smem.q_empty[q_slot]);
        pass_tiles(work, tiles);
      }
      consumer.store_rows(work);
      release(smem.work_empty[slot.stage()]);
    }
  }

 private:
  // The bounds of loops must be known to be uniform: wgmma in a path that could diverge is serialised (C7520).
  __device__ __forceinline__ static int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

  // Of the warp, among those of its warpgroup.
  __device__ __forceinline__ int first_row() const { return consumer.row0 % 64; }

  // Of the warp and the one of the other warpgroup on the same quarter of the multiprocessor.
  __device__ __forceinline__ int turn_barrier(int group) const { return kTurnBarrier + first_row() / 8 + group; }

  __device__ __forceinline__ void wait_turn() const {
    if (Cfg::kPingPong && weighing == 2) bar_sync<64>(turn_barrier(consumer.group));
  }

  __device__ __forceinline__ void pass_turn() const {
    if (Cfg::kPingPong && weighing == 2) bar_arrive<64>(turn_barrier(1 - consumer.group));
  }

  __device__ __forceinline__ bool take(Slot slot) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    return uniform(smem.work[slot.stage()].head) >= 0;
  }

  __device__ __forceinline__ int live_rows(WorkSlot const& work) const {
    int const stop = row_stop<Cfg, RaggedParamsSm90>(consumer.args, consumer.p.q_len, work.mask);
    return PackedRows<Cfg>(consumer.p, work, stop).live;
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
    mask(scores, keep, packed, mask_work, work);
    if (weighing != 0) {
      wait_turn();
      consumer.weigh_first(scores);
      pass_turn();
    } else {
      set_no_weights();
    }
    consumer.state.step();
  }

  __device__ __forceinline__ void next_tile(WorkSlot const& work) {
    Scores scores;
    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
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
    mask(scores, keep, packed, mask_work, work);
    consumer.finish_values();
    if (weighing != 0) {
      wait_turn();
      consumer.weigh(scores, packed & kLazyFlag);
      pass_turn();
    }
    consumer.state.step();
  }

  __device__ __forceinline__ void mask(
      Scores& scores, KeepBits<Scores>& keep, int packed, MaskWork mask_work, WorkSlot const& work) {
    consumer.cap(scores);
    consumer.hide_keys_of_no_page(scores, packed);
    consumer.mask_scores(scores, keep, mask_work, work);
  }

  __device__ __forceinline__ void last_values(WorkSlot const& work) {
    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
    consumer.state.pin();
    consumer.start_values();
    consumer.finish_values();
  }

  __device__ __forceinline__ void set_no_weights() {
    auto& weights = consumer.state.weights;
#pragma unroll
    for (int i = 0; i < Weights<Cfg>::kCount; ++i) weights.set(i, 0.f, 0.f);
  }

  // All tiles of an item of which the warpgroup has no row: they are given back as they come.
  __device__ __forceinline__ void pass_tiles(WorkSlot const& work, int tiles) {
    for (int i = 0; i < tiles; ++i) {
      if (i != 0 && consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
      int const packed = consumer.wait_for_keys();
      Tile const tile = smem.tiles[consumer.state.ring.stage()];
      consumer.state.dead_tile_k0 = (packed & kKindMask) != kFull && tile.has_dead() ? tile.first : -1;
      release(smem.k_empty[consumer.state.ring.stage()]);
      if (i != 0) pass_values();
      consumer.state.step();
    }
    if (tiles == 0) return;
    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
    pass_values();
  }

  __device__ __forceinline__ void pass_values() {
    consumer.wait_for_values();
    release(smem.v_empty[consumer.state.value_stage.stage()]);
  }
};

}  // namespace omni
