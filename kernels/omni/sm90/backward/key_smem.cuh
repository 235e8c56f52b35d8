// Shared memory of the kernel that makes dK and dV, and the barriers that hand it around (ring.cuh). K and V of the block's
// keys stay for an item; Q and dO of tile t use stage t % kStages.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm90/backward/config.cuh"
#include "omni/sm90/work_list.cuh"

namespace omni {

template <class Cfg>
struct KeySmem {
  using Config = Cfg;
  using Params = BackwardParamsSm90;
  static constexpr int kSlots = 2;  // of work items
  using Slot = RingIndex<kSlots>;
  static constexpr bool kRoles = Cfg::kHeadDim > kWideHeadDim;
  // Which is the outer loop over a block's tiles: the heads of the group, or the tiles.
  static constexpr bool kHeadByHead = false;

  alignas(1024) unsigned char k[Cfg::kHeadPanels * Cfg::kKvPanelBytes];
  alignas(1024) unsigned char v[Cfg::kValuePanels * Cfg::kKvPanelBytes];
  alignas(1024) unsigned char q[Cfg::kStages][Cfg::kHeadPanels * Cfg::kQPanelBytes];
  alignas(1024) unsigned char dout[Cfg::kStages][Cfg::kValuePanels * Cfg::kQPanelBytes];
  // Weights on their way from the warpgroup of dV to that of dK, in the order of registers.
  alignas(128) float4 weights[kRoles ? Cfg::kBr * Cfg::kBc / 4 : 1];
  alignas(128) float lse2[Cfg::kStages][Cfg::kBr];  // these three with Q
  alignas(128) float delta[Cfg::kStages][Cfg::kBr];
  Tile tiles[Cfg::kStages];
  WorkSlot work[kSlots];
  u64 kv_full, kv_empty;
  u64 q_full[Cfg::kStages], q_empty[Cfg::kStages];
  u64 dout_full[Cfg::kStages], dout_empty[Cfg::kStages];
  u64 weights_full, weights_empty;
  u64 work_full[kSlots], work_empty[kSlots];

  // The parity with which the barriers of K and V are waited for: items take turns at the slots.
  __device__ __forceinline__ static int kv_parity(Slot slot) { return slot.stage(); }

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    mbarrier_init(smem_address(&kv_full), 2);  // K and V
    mbarrier_init(smem_address(&kv_empty), kConsumerWarps);
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&q_full[i]), 1);
      mbarrier_init(smem_address(&q_empty[i]), kConsumerWarps);
      mbarrier_init(smem_address(&dout_full[i]), 1);
      mbarrier_init(smem_address(&dout_empty[i]), kConsumerWarps);
    }
    mbarrier_init(smem_address(&weights_full), 4);
    mbarrier_init(smem_address(&weights_empty), 4);
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(smem_address(&work_full[i]), 1);
      mbarrier_init(smem_address(&work_empty[i]), kConsumerWarps);
    }
    fence_mbarrier_init();
  }
};

}  // namespace omni
