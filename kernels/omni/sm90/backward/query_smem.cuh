// Shared memory of the kernel that makes dQ, and the barriers that hand it around (ring.cuh). Q and dO of the block's
// queries stay for an item; K and V of the tiles take turns in one ring of slots.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm90/backward/config.cuh"
#include "omni/sm90/work_list.cuh"

namespace omni {

template <class Cfg>
struct QuerySmem {
  using Config = Cfg;
  using Params = BackwardParamsSm90;
  static constexpr int kSlots = 2;  // of work items
  using Slot = RingIndex<kSlots>;
  // Tiles whose keys the ring holds at most, each with its spans. A tile's spans are read before its V is given back.
  static constexpr int kKeyTiles = (Cfg::kStages + 1) / 2;
  static constexpr int kPanels = Cfg::kHeadPanels > Cfg::kValuePanels ? Cfg::kHeadPanels : Cfg::kValuePanels;

  alignas(1024) unsigned char q[Cfg::kHeadPanels * Cfg::kQPanelBytes];
  alignas(1024) unsigned char dout[Cfg::kValuePanels * Cfg::kQPanelBytes];
  alignas(1024) unsigned char kv[Cfg::kStages][kPanels * Cfg::kKvPanelBytes];
  int2 spans[kKeyTiles][kSmemSpans][Cfg::kBc];  // of PARTIAL tiles; with K
  Tile tiles[kKeyTiles];                        // with K
  WorkSlot work[kSlots];
  u64 q_full, q_empty;
  u64 kv_full[Cfg::kStages], kv_empty[Cfg::kStages];
  u64 work_full[kSlots], work_empty[kSlots];

  // The parity with which the barriers of Q and dO are waited for: items take turns at the slots.
  __device__ __forceinline__ static int q_parity(Slot slot) { return slot.stage(); }

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    mbarrier_init(smem_address(&q_full), 2);  // Q and dO
    mbarrier_init(smem_address(&q_empty), kConsumerWarps);
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&kv_full[i]), 1);
      mbarrier_init(smem_address(&kv_empty[i]), kConsumerWarps);
    }
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(smem_address(&work_full[i]), 1);
      mbarrier_init(smem_address(&work_empty[i]), kConsumerWarps);
    }
    fence_mbarrier_init();
  }
};

}  // namespace omni
