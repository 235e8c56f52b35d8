// A consumer warpgroup's walk over work items, and over the tiles of each.
#pragma once

#include "omni/sm90/consumer.cuh"

namespace omni {

template <class Cfg>
struct ItemWalk {
  using Smem = SmemSm90<Cfg>;

  Smem& smem;
  Consumer<Cfg> rows;  // those of the item at hand
  RingIndex<Smem::kSlots> slot;  // of the item at hand

  __device__ __forceinline__ ItemWalk(AttnParamsSm90 const& params, Smem& memory, int warpgroup)
      : smem(memory), rows(params, memory, warpgroup) {}

  // The bounds of loops must be known to be uniform: wgmma in a path that could diverge is serialised (C7520).
  __device__ __forceinline__ static int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

  // Is there an item in a slot, or is all work done?
  __device__ __forceinline__ bool take(RingIndex<Smem::kSlots> at) {
    mbarrier_wait(smem_address(&smem.work_full[at.stage()]), at.parity());
    return uniform(smem.work[at.stage()].head) >= 0;
  }

  // Tiles of an item that are still to come. The last ones, `apart`, are those that some warpgroup skips.
  struct Rest {
    int tiles, apart;

    __device__ __forceinline__ bool is_common() const { return tiles > apart; }
  };

  // Waits for an item's Q, which takes the slots in turn, and skips tiles. Returns what is left from the first that the
  // warpgroup looks at.
  __device__ __forceinline__ Rest open(RingIndex<Smem::kSlots> at, bool any_before) {
    WorkSlot const& work = smem.work[at.stage()];
    Rest rest{uniform(work.tiles), uniform(work.tiles - work.common)};
    mbarrier_wait(smem_address(&smem.q_full), at.stage());
    while (!rest.is_common() && rest.tiles > 0 && rows.skip_tile(any_before)) --rest.tiles;
    return rest;
  }

  __device__ __forceinline__ void further_tiles(WorkSlot const& work, Rest rest) {
    for (--rest.tiles; rest.tiles > 0; --rest.tiles) {
      bool const is_last = rest.tiles == 1;
      if (!rest.is_common() && rows.skip_tile(true)) {
        if (is_last) rows.release(smem.q_empty);
      } else {
        rows.next_tile(work, rest.is_common(), is_last);
      }
    }
  }

  // Stores the rows of the item in the slot and gives the slot back.
  __device__ __forceinline__ void close() {
    rows.softmax.finish();
    if (rows.is_complete(smem.work[slot.stage()])) rows.store(smem.work[slot.stage()]);
    rows.release(smem.work_empty[slot.stage()]);
    slot.next();
  }

  // Item after item. The slots are read to the end of an item, rather than kept in registers.
  __device__ __forceinline__ void run_apart() {
    while (take(slot)) {
      rows.begin_rows();
      WorkSlot const& work = smem.work[slot.stage()];
      int const tiles = uniform(work.tiles), common = uniform(work.common);
      mbarrier_wait(smem_address(&smem.q_full), slot.stage());
      int i = 0;
      while (i >= common && i < tiles && rows.skip_tile(false)) ++i;
      bool const any = i < tiles;
      if (any) {
        rows.first_tile(work, false);
        for (++i; i < tiles; ++i) {
          if (i >= common && rows.skip_tile(true)) continue;
          rows.next_tile(work, i < common, false);
        }
      }
      rows.release(smem.q_empty);
      if (any) rows.last_values(work);
      close();
    }
  }

  // The same, each item started beside the end of the one before where it can be.
  __device__ __forceinline__ void run_crossing() {
    Rest rest{-1, 0};
    while (take(slot)) {
      rows.begin_rows();
      if (rest.tiles < 0) rest = open(slot, false);
      if (rest.tiles > 0) {
        rows.first_tile(smem.work[slot.stage()], rest.tiles == 1);
        while (true) {
          further_tiles(smem.work[slot.stage()], rest);
          rest.tiles = -1;
          // Before the wait for the next Q, which comes when all warpgroups are through with this one: some may be waiting
          // for this warpgroup here.
          if (rows.dead_k0 >= 0) rows.zero_dead_values(smem.work[slot.stage()]);
          rows.dead_k0 = -1;
          RingIndex<Smem::kSlots> next = slot;
          next.next();
          if (rows.args.n_split_rows != 0 || !take(next)) break;
          rest = open(next, true);
          if (rest.tiles == 0) break;
          rows.cross_tile(smem.work[slot.stage()], smem.work[next.stage()], rest.tiles == 1);
          rows.release(smem.work_empty[slot.stage()]);
          slot = next;
        }
        rows.last_values(smem.work[slot.stage()]);
      } else {
        rest.tiles = -1;
        rows.release(smem.q_empty);
      }
      close();
    }
  }

  __device__ __forceinline__ void run() {
    if (Cfg::kPingPong && rows.group == Cfg::kConsumers - 1) bar_arrive<256>(kTurnBarrier);  // the first turn is group 0's
    if constexpr (Cfg::kCrossItems) {
      run_crossing();
    } else {
      run_apart();
    }
  }
};

}  // namespace omni
