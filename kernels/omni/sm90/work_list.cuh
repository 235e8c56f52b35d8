// Work items: one thread takes them, looks up what the block mask says about each, and announces it to the producer and
// the consumers, in a ring of slots in shared memory.
#pragma once

#include "omni/entries.cuh"
#include "omni/sm90/ring.cuh"
#include "omni/work.cuh"

namespace omni {

// What the consumers are told about one work item.
struct WorkSlot {
  int q0, mask, batch;
  int head;  // -1: no work left
  int kv_head;
  int tiles;
  int unskipped;  // tiles at the start that no warpgroup skips
  int part;
};

// Smem: a kernel's shared memory, which names its Config, its Params and its Walk over the tiles of an item.
template <class Smem>
struct WorkList {
  using Slot = typename Smem::Slot;

  typename Smem::Params const& args;
  Smem& smem;

  __device__ __forceinline__ void wait_until_empty(Slot slot) const {
    mbarrier_wait(smem_address(&smem.work_empty[slot.stage()]), slot.parity() ^ 1);
  }

  __device__ __forceinline__ void announce(Slot slot, WorkSlot const& work) const {
    wait_until_empty(slot);
    smem.work[slot.stage()] = work;
    mbarrier_arrive(smem_address(&smem.work_full[slot.stage()]));
  }

  __device__ __forceinline__ void announce_item(Slot slot, WorkItem const& item) const {
    int const tiles = item.tiles;
    int const unskipped = tiles == 0 ? 0 : min(args.p.lists.entries[item.first].w, tiles);
    announce(
        slot,
        WorkSlot{item.q0, item.mask, item.batch, item.head, item.head / args.p.group, tiles, unskipped, item.part});
  }

  // Before anything of the block mask is read: where a kernel ahead writes it, that has to end.
  __device__ __forceinline__ void wait_for_lists() const {
    if constexpr (Smem::Config::kCached) wait_for_kernel_ahead();
  }

  // The part that a thread block works on first, where all heads of a part are worked on side by side; else some part.
  __device__ __forceinline__ int first_part() const {
    return max(min(static_cast<int>(blockIdx.x) / args.p.section, args.p.tiers[kTiers - 1] - 1), 0);
  }

  // By a few threads, ahead of all else: what the first item looks up one after the other, and what is counted at its
  // end, comes to L2 at once. A kernel ahead may still write it there.
  __device__ __forceinline__ void prefetch_first() const {
    constexpr bool kCached = Smem::Config::kCached;
    int const line = static_cast<int>(threadIdx.x) - 32;
    if (line < 0 || line >= 6) return;
    int const part = first_part();
    void const* g_line = args.counter;
    if (line == 1) g_line = args.p.lists.parts + part;
    if (args.n_split_rows != 0 && line == 2) g_line = args.splits + part;
    if (args.n_split_rows != 0 && line == 3) g_line = args.arrivals;
    if (kCached && line == 4) g_line = args.n_parts;
    if (kCached && line == 5) g_line = args.p.lists.entries + static_cast<i64>(part) * args.most_entries;
    prefetch_to_l2(g_line);
  }

  // Parts times the heads that work on each.
  __device__ __forceinline__ int work_items() const {
    if constexpr (Smem::Config::kCached) return *args.n_parts * heads() * (args.p.batch / args.p.mask_batch);
    return args.work_items;
  }

  __device__ __forceinline__ WorkItem item(int index) const {
    using Cfg = typename Smem::Config;
    if constexpr (!Cfg::kCached) return work_item<Cfg::kHeads, Cfg::kPack>(args.p, index);
    WorkItem work = work_item_of(args.p, heads(), 0, *args.n_parts, index);
    work.head = first_head<Cfg::kHeads, Cfg::kPack>(args.p, work.head);
    return work;
  }

  // The work item that comes next. Items are handed out by a counter, longest first.
  __device__ __forceinline__ int take() const { return atomicAdd(args.counter, 1) + gridDim.x; }

  // Of a batch element; those that share a tile count as one.
  __device__ __forceinline__ int heads() const { return tile_heads<Smem::Config::kHeads, Smem::Config::kPack>(args.p); }

  // No work is left. The last block to hand out all leaves those counters as it found them; the one of blocks that
  // ended goes round. It says to the next launch whether this one is under way (first_tile.cuh).
  __device__ __forceinline__ void end(Slot slot) const {
    announce(slot, WorkSlot{0, 0, 0, -1, 0, 0, 0, 0});
    if (atomicAdd(args.counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {
      args.counter[0] = 0;
      args.counter[1] = 0;
    }
    if constexpr (Smem::Config::kScheduler) {
      Slot const last = slot.before();
      mbarrier_wait(smem_address(&smem.work_empty[last.stage()]), last.parity());
      count_round(args.counter + 2, gridDim.x - 1);
    }
  }
};

// A thread that does nothing else: the three trips to L2 of an item, one after the other, keep nobody waiting.
template <class Smem>
struct Scheduler {
  WorkList<Smem> list;
  typename Smem::Slot slot;

  __device__ __forceinline__ Scheduler(typename Smem::Params const& params, Smem& memory) : list{params, memory} {}

  // Who loads keys asks for the next item. The block mask was there before the kernel ahead began; the counter
  // is read after that kernel has ended.
  __device__ __forceinline__ void run() {
    int index = blockIdx.x;
    list.wait_for_lists();
#pragma unroll 1
    for (int parity = 0; index < list.work_items(); parity ^= 1) {
      WorkItem const item = list.item(index);
      if constexpr (Smem::Config::kWalkers > 1)
        list.wait_until_empty(slot);  // several warps read the walk, some of them late
      list.smem.walks[slot.stage()] = typename Smem::Walk(list.args.p.lists, item.first, item.tiles);
      list.announce_item(slot, item);
      slot.next();
      wait_for_kernel_ahead();
      mbarrier_wait(smem_address(&list.smem.work_wanted), parity);
      index = list.take();
    }
    list.end(slot);
  }
};

}  // namespace omni
