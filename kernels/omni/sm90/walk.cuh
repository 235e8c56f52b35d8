// A consumer warpgroup's walk over work items, and over the tiles of each.
#pragma once

#include "omni/sm90/consumer.cuh"

namespace omni {

template <class Cfg>
struct ItemWalk {
  using Smem = SmemSm90<Cfg>;
  using Slot = typename Smem::Slot;

  Smem& smem;
  Consumer<Cfg> rows;  // those of the item at hand

  __device__ __forceinline__ ItemWalk(AttnParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), rows(params, memory, warpgroup) {}

  // The bounds of loops must be known to be uniform: wgmma in a path that could diverge is serialised (C7520).
  __device__ __forceinline__ static int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

  // Is there an item in a slot, or is all work done?
  __device__ __forceinline__ bool take(Slot slot) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    return uniform(smem.work[slot.stage()].head) >= 0;
  }

  // Item after item. The slots are read to the end of an item, rather than kept in registers. Rows are stored in both
  // branches: where it is done behind them, ptxas no longer knows that warps are uniform (tests/test_compile.py).
  __device__ __forceinline__ void run() {
    if (Cfg::kPingPong && rows.group == Cfg::kConsumers - 1) bar_arrive<256>(kTurnBarrier);  // the first turn is group 0's
    for (Slot slot{}; take(slot); slot.next()) {
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), common = uniform(work.common);
      int const q_slot = Smem::q_slot(slot);
      mbarrier_wait(smem_address(&smem.q_full[q_slot]), Smem::q_parity(slot));
      int i = 0;
      while (i >= common && i < tiles && rows.skip_tile(false)) ++i;
      if (i < tiles) {
        rows.set_q(q_slot);
        rows.first_tile(work);
        for (++i; i < tiles; ++i) {
          if (i >= common && rows.skip_tile(true)) continue;
          rows.next_tile(work, i < common);
        }
        rows.release(smem.q_empty[q_slot]);
        rows.last_values(work);
        rows.store_rows(work);
      } else {
        rows.release(smem.q_empty[q_slot]);
        rows.begin_rows();
        rows.store_rows(work);
      }
      rows.release(smem.work_empty[slot.stage()]);
    }
  }
};

}  // namespace omni
