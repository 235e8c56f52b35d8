// The loop of a consumer warpgroup over packed tiles of 128 rows. It is that of forward/loop.cuh, but rows of no head
// and token cost little: a warp that has no others weighs nothing, a warpgroup that has no others multiplies nothing
// either. Lists of packed tiles skip none. What warps take turns at is weighing, not products, which take less time
// here: two warps that share a quarter of the multiprocessor and weigh at once take as long as one after the other, and
// then wait for their products at once.
#pragma once

#include "omni/sm90/forward/loop.cuh"
#include "omni/sm90/packed/eight_row_weights.cuh"
#include "omni/sm90/packed/merge.cuh"
#include "omni/sm90/uniform.cuh"

namespace omni {

template <class Cfg>
struct PackedLoop {
  using Smem = ForwardSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Scores = typename Consumer<Cfg>::Scores;

  Smem& smem;
  Consumer<Cfg> consumer;
  int weighing;  // of the item at hand: warps that have rows, of this one and its partner; 0 where this one has none
  bool few;      // of the item at hand: the warp has at most eight rows

  __device__ __forceinline__ PackedLoop(ForwardParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), consumer(params, memory, warpgroup), weighing(1), few(false) {}

  // Rows are stored behind both branches: all threads come to the barrier of the merge from one place.
  __device__ __forceinline__ void run() {
    if (Cfg::kPingPong && consumer.group == 1) bar_arrive<64>(turn_barrier(0));
    for (Slot slot{}; take(slot); slot.next()) {
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), live = uniform(rows_of(work).live);
      int const q_slot = Smem::q_slot(slot);
      int4 split = kReadsAhead ? split_of(work) : make_int4(-1, 0, 0, 0);
      mbarrier_wait(smem_address(&smem.q_full[q_slot]), Smem::q_parity(slot));
      consumer.begin_rows();
      if (tiles != 0 && 64 * consumer.group < live) {
        weighing = uniform(consumer.row0) >= live ? 0 : uniform(64 + first_row()) < live ? 2 : 1;
        few = kHalves && uniform(consumer.row0) + 8 >= live;
        if (few) set_no_weights();
        consumer.set_q(q_slot);
        first_tile(work);
        for (int i = 1; i < tiles; ++i) next_tile(work);
        release(smem.q_empty[q_slot]);
        last_values(work);
      } else {
        release(smem.q_empty[q_slot]);
        pass_tiles(work, tiles);
      }
      if constexpr (!kReadsAhead) split = split_of(work);
      store_rows(work, split);
      release(smem.work_empty[slot.stage()]);
    }
  }

 private:
  // Registers for a part's place among the others while its tiles are worked on, and for eight rows of a warp alone,
  // which pays where two warps of a quarter of the multiprocessor weigh.
  static constexpr bool kReadsAhead = Cfg::kConsumerRegisters >= 232;
  static constexpr bool kHalves = Cfg::kValueDim <= 64;

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

  __device__ __forceinline__ EightRowWeights<Cfg> eight_rows() {
    return {consumer.state.weights, consumer.state.softmax, consumer.p.scale_log2};
  }

  __device__ __forceinline__ void weigh_first(Scores& scores) {
    if (kHalves && few) {
      eight_rows().weigh_first(scores, consumer.state.out);
    } else {
      consumer.weigh_first(scores);
    }
  }

  __device__ __forceinline__ void weigh(Scores& scores, bool allow_lazy) {
    if (kHalves && few) {
      eight_rows().weigh(scores, consumer.state.out, allow_lazy);
    } else {
      consumer.weigh(scores, allow_lazy);
    }
  }

  __device__ __forceinline__ bool take(Slot slot) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    return uniform(smem.work[slot.stage()].head) >= 0;
  }

  __device__ __forceinline__ int4 split_of(WorkSlot const& work) const {
    return consumer.args.n_split_rows == 0 ? make_int4(-1, 0, 0, 0) : consumer.args.splits[work.part];
  }

  __device__ __forceinline__ PackedRows<Cfg> rows_of(WorkSlot const& work) const {
    int const stop = row_stop<Cfg, RaggedParamsSm90>(consumer.args, consumer.p.q_len, work.mask);
    return PackedRows<Cfg>(consumer.p, work, stop);
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
      weigh_first(scores);
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
      weigh(scores, packed & kLazyFlag);
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

  // The rows are stored, or left as a part; parts are merged where they come last. split: of the part.
  __device__ __forceinline__ void store_rows(WorkSlot const& work, int4 const& split) {
    auto& out = consumer.state.out;
    auto& softmax = consumer.state.softmax;
    softmax.finish();
    PackedRows<Cfg> const rows = rows_of(work);
    PackedMerge<Cfg> const merge{consumer.args, rows, split};
    if (uniform(split.x) >= 0) {
      if (uniform(split.z) != 2) {
        merge.leave(out, softmax, consumer.row0);
        if (merge.is_last()) merge.run();
        return;
      }
      if (uniform(consumer.row0) >= uniform(rows.live) || !merge.add_other(out, softmax, consumer.row0)) return;
    }
    rows.store(out, softmax, consumer.row0);
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
