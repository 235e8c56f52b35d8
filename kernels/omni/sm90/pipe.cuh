// Shared memory of the Hopper kernel and the barriers that hand it around. K and V of tile t use stage t % kStages; a
// thread that waits for the n-th time on a barrier waits for parity n % 2 (who fills a stage or slot finds it empty at
// first, and waits for the other one).
#pragma once

#include "omni/mask.cuh"
#include "omni/sm90/config.cuh"

namespace omni {

// What the consumers are told about one work item.
struct WorkSlot {
  int q0, mask, batch;
  int head;  // -1: no work left
  int kv_head;
  int tiles;
  int common;  // tiles at the start that no warpgroup skips
  int part;
};

// Position in a ring: the stage, and the parity of how often it came round; in one register, they are dear.
template <int kStages>
struct RingIndex {
  static_assert(kStages <= 8, "the stage has three bits");
  int packed = 0;  // stage | parity << 3

  __device__ __forceinline__ int stage() const { return packed & 7; }
  __device__ __forceinline__ int parity() const { return packed >> 3; }
  __device__ __forceinline__ void next() { packed = stage() == kStages - 1 ? (packed & 8) ^ 8 : packed + 1; }

  // The position before this one.
  __device__ __forceinline__ RingIndex before() const {
    return RingIndex{stage() == 0 ? (packed ^ 8) + kStages - 1 : packed - 1};
  }
};

template <class Cfg>
struct SmemSm90 {
  static constexpr int kSlots = 2;  // of work items
  using Slot = RingIndex<kSlots>;

  alignas(1024) unsigned char q[Cfg::kQSlots][Cfg::kQBytes];
  alignas(1024) unsigned char k[Cfg::kStages][Cfg::kKvBytes];
  alignas(1024) unsigned char v[Cfg::kStages][Cfg::kKvBytes];
  int2 spans[Cfg::kStages][kSmemSpans][Cfg::kBc];  // of PARTIAL tiles; with K, released with K
  KeyTile tiles[Cfg::kStages];
  WorkSlot work[kSlots];
  u64 q_full[Cfg::kQSlots], q_empty[Cfg::kQSlots];
  u64 k_full[Cfg::kStages], k_empty[Cfg::kStages];
  u64 v_full[Cfg::kStages], v_empty[Cfg::kStages];
  u64 work_full[kSlots], work_empty[kSlots];
  u64 dead_zeroed;  // all consumers meet there: dead V rows are zeroed
  u64 work_wanted;  // the producer asks the scheduler for the next item
  Visit walks[Cfg::kScheduler ? kSlots : 1];  // of the items in the slots, for the producer

  // Where an item's Q lies, and the parity that its barriers are waited for with.
  __device__ __forceinline__ static int q_slot(Slot slot) { return Cfg::kQSlots == kSlots ? slot.stage() : 0; }
  __device__ __forceinline__ static int q_parity(Slot slot) {
    return Cfg::kQSlots == kSlots ? slot.parity() : slot.stage();
  }

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    for (int i = 0; i < Cfg::kQSlots; ++i) {
      mbarrier_init(smem_address(&q_full[i]), 1);
      mbarrier_init(smem_address(&q_empty[i]), kConsumerWarps);
    }
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&k_full[i]), 1);
      mbarrier_init(smem_address(&v_full[i]), 1);
      mbarrier_init(smem_address(&k_empty[i]), kConsumerWarps);
      mbarrier_init(smem_address(&v_empty[i]), kConsumerWarps);
    }
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(smem_address(&work_full[i]), 1);
      mbarrier_init(smem_address(&work_empty[i]), kConsumerWarps);
    }
    mbarrier_init(smem_address(&dead_zeroed), 128 * Cfg::kConsumers);
    if constexpr (Cfg::kScheduler) mbarrier_init(smem_address(&work_wanted), 1);
    fence_mbarrier_init();
  }
};

}  // namespace omni
