// Shared memory of the Hopper kernel and the barriers that hand it around. K and V of tile t use stage t % kStages; a
// thread that waits for the n-th time on a barrier waits for parity n % 2 (the producer, who finds every stage empty at
// first, for the other one).
#pragma once

#include "omni/mask.cuh"
#include "omni/sm90/config.cuh"

namespace omni {

// What the producer tells the consumers about one work item.
struct WorkSlot {
  int block_row;
  int batch;
  int head;  // -1: no work left
  int tiles;
};

template <class Cfg>
struct SmemSm90 {
  static constexpr int kSlots = 2;

  alignas(1024) unsigned char q[Cfg::kQBytes];
  alignas(1024) unsigned char k[Cfg::kStages][Cfg::kKvBytes];
  alignas(1024) unsigned char v[Cfg::kStages][Cfg::kKvBytes];
  int2 spans[Cfg::kStages][kSmemSpans][Cfg::kBc];  // of PARTIAL tiles; with K, released with K
  KeyTile tiles[Cfg::kStages];
  WorkSlot work[kSlots];
  u64 q_full, q_empty;
  u64 k_full[Cfg::kStages], k_empty[Cfg::kStages];
  u64 v_full[Cfg::kStages], v_empty[Cfg::kStages];
  u64 work_full[kSlots], work_empty[kSlots];

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    mbarrier_init(smem_address(&q_full), 1);
    mbarrier_init(smem_address(&q_empty), kConsumerWarps);
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
    fence_mbarrier_init();
  }
};

// Position in a ring: the stage, and how often it came round.
template <int kStages>
struct RingIndex {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace omni
