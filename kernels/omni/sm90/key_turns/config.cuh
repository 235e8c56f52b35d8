// Packed tiles of 64 rows whose key tiles two consumer warpgroups take in turn: the shape, and the barriers of shared
// memory. A warpgroup alone reads a tile of K and V, both read Q and the work items.
#pragma once

#include "omni/sm90/forward/packed.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

// Base: of two warpgroups, a head each.
template <class Base>
struct KeyTurns : Base {
  static constexpr bool kPack = true;
  static constexpr int kHeads = 1, kQRows = 64;
  static constexpr int kQPanelBytes = kQRows * kPanelRowBytes;
  static constexpr int kQBytes = Base::kPanels * kQPanelBytes;

  static_assert(Base::kConsumers == 2 && Base::kBr == kQRows && Base::kScheduler, "both warpgroups have all rows");
  static_assert(Base::kPingPong && !Base::kFp8 && !Base::kTails && Base::kBlocks == 1, "what no variant has");
  static_assert(Base::kStages >= 2, "a warpgroup's values stay until the other has what it added up");
  static_assert(Base::kVBytes >= kQRows * 4 * Base::kValueDim, "what a warpgroup added up, in its last values' place");
};

template <class Cfg>
struct KeyTurnsSmem : ForwardSmem<Cfg> {
  using Base = ForwardSmem<Cfg>;

  float2 sums[64];  // {row_max, row_sum} of the second warpgroup's rows
  u64 left, taken;  // what the second warpgroup leaves, in the buffer of its last values

  // As ForwardSmem has it, but a warpgroup alone reads a tile.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kWarps = 4 * Cfg::kConsumers;
    constexpr int kValueArrivals = Cfg::kKeyByKey ? 32 * Cfg::kFillers : Cfg::kFillers;
    constexpr int kKeyArrivals = Cfg::kKeyByKey ? 33 * Cfg::kFillers : Cfg::kFillers;
    constexpr int kReaders = kWarps + (Cfg::kWalkers > 1 ? Cfg::kWalkers : 0);
    for (int i = 0; i < Cfg::kQSlots; ++i) {
      mbarrier_init(smem_address(&this->q_full[i]), 1);
      mbarrier_init(smem_address(&this->q_empty[i]), kWarps);
    }
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&this->k_full[i]), kKeyArrivals);
      mbarrier_init(smem_address(&this->v_full[i]), kValueArrivals);
      mbarrier_init(smem_address(&this->k_empty[i]), 4);
      mbarrier_init(smem_address(&this->v_empty[i]), 4);
    }
    for (int i = 0; i < Base::kSlots; ++i) {
      mbarrier_init(smem_address(&this->work_full[i]), 1);
      mbarrier_init(smem_address(&this->work_empty[i]), kReaders);
    }
    mbarrier_init(smem_address(&this->work_wanted), 1);
    mbarrier_init(smem_address(&left), 4);
    mbarrier_init(smem_address(&taken), 4);
    fence_mbarrier_init();
  }
};

}  // namespace omni
