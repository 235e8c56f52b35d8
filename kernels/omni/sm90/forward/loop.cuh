// The loop of a consumer warpgroup: item after item, tile after tile, in which order the steps of each come and who
// waits for whom. What the steps do is in consumer.cuh. S = Q K^T of the next tile runs beside O += P V of this one
// (FlashAttention-3's intra-warpgroup overlap), and while one warpgroup computes its softmax the other has the tensor
// cores (ping-pong).
#pragma once

#include "omni/sm90/forward/consumer.cuh"
#include "omni/sm90/uniform.cuh"

namespace omni {

template <class Cfg>
struct ForwardLoop {
  using Smem = ForwardSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Scores = typename Consumer<Cfg>::Scores;

  Smem& smem;
  Consumer<Cfg> consumer;

  __device__ __forceinline__ ForwardLoop(ForwardParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), consumer(params, memory, warpgroup) {}

  // Item after item. The slots are read to the end of an item, rather than kept in registers. Rows are stored in both
  // branches: where it is done behind them, ptxas no longer knows that warps are uniform (test_compile.py).
  __device__ __forceinline__ void run() {
    consumer.pass_first_turn();
    for (Slot slot{}; take(slot); slot.next()) {
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), unskipped = uniform(work.unskipped);
      int const q_slot = Smem::q_slot(slot);
      mbarrier_wait(smem_address(&smem.q_full[q_slot]), Smem::q_parity(slot));
      int i = 0;
      while (i >= unskipped && i < tiles && consumer.skip_tile(false)) ++i;
      if (i < tiles) {
        consumer.set_q(q_slot);
        first_tile(work);
        for (++i; i < tiles; ++i) {
          if (i >= unskipped && consumer.skip_tile(true)) continue;
          next_tile(work, i < unskipped);
        }
        release(smem.q_empty[q_slot]);
        last_values(work);
        consumer.store_rows(work);
      } else {
        release(smem.q_empty[q_slot]);
        consumer.begin_rows();
        consumer.store_rows(work);
      }
      release(smem.work_empty[slot.stage()]);
    }
  }

 private:
  // Is there an item in a slot, or is all work done?
  __device__ __forceinline__ bool take(Slot slot) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    return uniform(smem.work[slot.stage()].head) >= 0;
  }

  // The first tile of an item that the warpgroup looks at.
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
    consumer.weigh_first(scores);
    consumer.state.step();
  }

  // Scores of this tile beside the values of the tile before. in_turn: all warpgroups attend to it, and take turns.
  __device__ __forceinline__ void next_tile(WorkSlot const& work, bool in_turn) {
    Scores scores;
    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
    u32 const k = consumer.k_descriptor_low();
    int const packed = consumer.wait_for_keys();
    if (in_turn) consumer.wait_turn();
    pin_registers(scores.x[0]);
    consumer.state.pin();
    consumer.start_scores(scores, k);
    consumer.start_values();
    if (in_turn) consumer.pass_turn();
    KeepBits<Scores> keep;
    MaskWork const mask_work = consumer.look_at_mask(keep, packed, work);
    wgmma_wait<1>();
    pin_registers(scores.x[0]);
    consumer.cap(scores);
    consumer.hide_keys_of_no_page(scores, packed);
    consumer.mask_scores(scores, keep, mask_work, work);
    consumer.finish_values();
    consumer.weigh(scores, packed & kLazyFlag);
    consumer.state.step();
  }

  // The values of an item's last tile.
  __device__ __forceinline__ void last_values(WorkSlot const& work) {
    if (consumer.state.dead_tile_k0 >= 0) consumer.zero_dead_values(work);
    consumer.state.pin();
    consumer.start_values();
    consumer.finish_values();
  }
};

}  // namespace omni
