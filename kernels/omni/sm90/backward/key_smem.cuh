// Shared memory of the kernel that makes dK and dV, and the barriers that hand it around (ring.cuh). K and V of the
// block's keys stay for an item; Q and dO of tile t use stage t % kStages.
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
  static constexpr bool kRoles = Cfg::kHeadDim > kWideHeadDim || Cfg::kValueDim > kWideHeadDim;
  // Sums of dQ of several heads at a time would not stay in L2: the kernel for all gradients goes head by head of a
  // group. Else the outer loop is that over tiles. In order it has to be: blocks of keys with more tiles than others
  // would fall behind them with each head, and all that wait for them.
  static constexpr bool kHeadByHead = Cfg::kFused && !Cfg::kOrdered;
  // ... unless the ranks are made for it (head_ranks): in masks such as windows, where no two blocks of keys add to the
  // same queries at the same time. The producer of larger thread blocks has no registers for it.
  static constexpr bool kEitherWalk = Cfg::kOrdered && Cfg::kThreads == 384;
  // Of the kernel for all gradients. dQ is made kLag tiles late; the ring of dS holds one tile more than excludes a
  // deadlock, which keeps warpgroups apart. Where there is room, dQ goes through shared memory.
  static constexpr int kLag = Cfg::kConsumers == 3 ? 1 : 0;
  static constexpr int kRing = Cfg::kApart ? 3 : kLag + 2;
  static constexpr bool kStaged = Cfg::kFused && (Cfg::kConsumers == 2 || (Cfg::kConsumers == 3 && Cfg::kStages < 4));
  static constexpr int kBuffers = kStaged ? Cfg::kConsumers : 1;
  // Two warpgroups own keys and make dQ in turn.
  static constexpr bool kTwoInTurn = kStaged && Cfg::kConsumers == 2 && !Cfg::kApart;
  // S^T of a tile is started ahead of dQ of the tile before (fused_loop.cuh). Not where the kernel makes dQ of the
  // sums: at 2,048 tokens and less that gains nothing.
  static constexpr bool kAhead =
      kTwoInTurn && Cfg::kHeadDim == 2 * kPanelColumns && !Cfg::kSoftcap && !Cfg::kFinishes && !Cfg::kBackground;
  // Sums of dQ that wait for the warp that stores them: at most one a buffer, and an end for each thread that adds.
  static constexpr int kFinished = Cfg::kFinishes ? 4 : 1;
  static_assert(!(Cfg::kFinishes || Cfg::kBackground) || kBuffers == 2, "a warp has to be left that stores");
  // Spans a key that lie here; masks with more of them are read from global memory.
  static constexpr int kSpans = kTwoInTurn ? 1 : kSmemSpans;

  alignas(1024) unsigned char k[Cfg::kHeadPanels * Cfg::kKvPanelBytes];
  alignas(1024) unsigned char v[Cfg::kValuePanels * Cfg::kKvPanelBytes];
  alignas(1024) unsigned char q[Cfg::kStages][Cfg::kHeadPanels * Cfg::kQPanelBytes];
  alignas(1024) unsigned char dout[Cfg::kStages][Cfg::kValuePanels * Cfg::kQPanelBytes];
  // A panel of 64 keys a warpgroup, K-major.
  alignas(1024) unsigned char ds[Cfg::kFused ? kRing : 1][Cfg::kFused ? Cfg::kConsumers * Cfg::kQPanelBytes : 16];
  alignas(128) float4 sums[kBuffers][kStaged ? Cfg::kBr * Cfg::kHeadDim / 4 : 1];
  // Weights on their way from the warpgroup of dV to that of dK, in the order of registers.
  alignas(128) float4 weights[kRoles ? Cfg::kBr * Cfg::kBc / 4 : 1];
  alignas(128) float lse2[Cfg::kStages][Cfg::kBr];  // these three with Q
  alignas(128) float delta[Cfg::kStages][Cfg::kBr];
  Tile tiles[Cfg::kStages];
  alignas(16) int2 spans[kSpans][Cfg::kBc];  // with K
  int2 additions[Cfg::kStages];              // to sums of dQ, where the kernel makes all gradients
  WorkSlot work[kSlots];
  u64 kv_full, kv_empty;
  u64 q_full[Cfg::kStages], q_empty[Cfg::kStages];
  u64 dout_full[Cfg::kStages], dout_empty[Cfg::kStages];
  u64 weights_full, weights_empty;
  u64 work_full[kSlots], work_empty[kSlots];
  u64 ds_full[kRing], ds_empty[kRing];
  u64 sums_full[kBuffers], sums_empty[kBuffers];
  int2 staged[2][kBuffers];                   // the additions of each warpgroup's last two tiles of dQ
  int granted[Cfg::kOrdered ? kBuffers : 1];  // additions to sums of dQ whose turn has come, of all items
  u64 finished_full[kFinished], finished_empty[kFinished];
  u64 sum_loaded[kBuffers];                    // a sum of dQ that has had its last addition
  int2 finished[kFinished];                    // {its number, its buffer}
  int finishing;                               // how many were put there
  int first_sum;                               // of the item that is loaded
  int2 ds_additions[Cfg::kApart ? kRing : 1];  // with dS, where a warpgroup of its own makes dQ

  // The parity with which the barriers of K and V are waited for: items take turns at the slots.
  __device__ __forceinline__ static int kv_parity(Slot slot) { return slot.stage(); }

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    constexpr int kItemWarps = kConsumerWarps + 4 * Cfg::kApart;  // that read K and what is worked on
    mbarrier_init(smem_address(&kv_full), 2);                     // K and V
    mbarrier_init(smem_address(&kv_empty), kItemWarps);
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
      mbarrier_init(smem_address(&work_empty[i]), kItemWarps);
    }
    for (int i = 0; i < kRing; ++i) {
      mbarrier_init(smem_address(&ds_full[i]), kConsumerWarps);
      mbarrier_init(smem_address(&ds_empty[i]), 4);
    }
    for (int i = 0; i < kBuffers; ++i) {
      mbarrier_init(smem_address(&sums_full[i]), 4);
      mbarrier_init(smem_address(&sums_empty[i]), 1);
      if constexpr (Cfg::kOrdered) granted[i] = 0;
    }
    if constexpr (Cfg::kFinishes) {
      for (int i = 0; i < kBuffers; ++i) mbarrier_init(smem_address(&sum_loaded[i]), 1);
      for (int i = 0; i < kFinished; ++i) {
        mbarrier_init(smem_address(&finished_full[i]), 1);
        mbarrier_init(smem_address(&finished_empty[i]), 1);
      }
      finishing = 0;
    }
    fence_mbarrier_init();
  }
};

}  // namespace omni
