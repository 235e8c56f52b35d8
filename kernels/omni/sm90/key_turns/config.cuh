// Packed tiles of 64 rows whose key tiles two consumer warpgroups take in turn: the shape, and the barriers of shared
// memory. A warpgroup alone reads a tile of K and V, both read Q and the work items.
#pragma once

#include "omni/sm90/forward/packed.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

// Base: of one consumer warpgroup.
template <class Base>
struct KeyTurns : Base {
  static constexpr int kTurns = 2;
  static constexpr int kThreads = 128 + 128 * kTurns;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static_assert(Base::kPack && Base::kConsumers == 1, "both warpgroups have all rows");
  static_assert(!Base::kPaged && !Base::kFp8 && !Base::kTails && Base::kBlocks == 1, "who loads is one thread");
  static_assert(Base::kStages >= 2, "a warpgroup's values stay until the other has what it added up");
  static_assert(Base::kVBytes >= 64 * 4 * Base::kValueDim, "what a warpgroup added up, in place of its last values");
};

template <class Cfg>
struct KeyTurnsSmem : ForwardSmem<Cfg> {
  using Base = ForwardSmem<Cfg>;

  float2 sums[64];  // {row_max, row_sum} of the second warpgroup's rows

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kWarps = 4 * Cfg::kTurns;
    for (int i = 0; i < Cfg::kQSlots; ++i) {
      mbarrier_init(smem_address(&this->q_full[i]), 1);
      mbarrier_init(smem_address(&this->q_empty[i]), kWarps);
    }
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&this->k_full[i]), 1);
      mbarrier_init(smem_address(&this->v_full[i]), 1);
      mbarrier_init(smem_address(&this->k_empty[i]), 4);
      mbarrier_init(smem_address(&this->v_empty[i]), 4);
    }
    for (int i = 0; i < Base::kSlots; ++i) {
      mbarrier_init(smem_address(&this->work_full[i]), 1);
      mbarrier_init(smem_address(&this->work_empty[i]), kWarps);
    }
    mbarrier_init(smem_address(&this->work_wanted), 1);
    fence_mbarrier_init();
  }
};

}  // namespace omni
