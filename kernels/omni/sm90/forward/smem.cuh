// Shared memory of the Hopper forward kernel, and the barriers that hand it around (ring.cuh). K and V of tile t use
// stage t % kStages.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm90/forward/config.cuh"
#include "omni/sm90/work_list.cuh"

namespace omni {

template <class Cfg>
struct ForwardSmem {
  using Config = Cfg;
  using Params = ForwardParamsSm90;
  using Walk = EntryWalk<Cfg::kBc>;
  static constexpr int kSlots = 2;  // of work items
  using Slot = RingIndex<kSlots>;

  alignas(1024) unsigned char q[Cfg::kQSlots][Cfg::kQBytes];
  alignas(1024) unsigned char k[Cfg::kStages][Cfg::kKBytes];
  alignas(1024) unsigned char v[Cfg::kStages][Cfg::kVBytes];
  int2 spans[Cfg::kStages][kSmemSpans][Cfg::kBc];  // of PARTIAL tiles; with K, released with K
  Tile tiles[Cfg::kStages];
  WorkSlot work[kSlots];
  u64 q_full[Cfg::kQSlots], q_empty[Cfg::kQSlots];
  u64 k_full[Cfg::kStages], k_empty[Cfg::kStages];
  u64 v_full[Cfg::kStages], v_empty[Cfg::kStages];
  u64 work_full[kSlots], work_empty[kSlots];

  u64 dead_zeroed;  // all consumers meet there: dead V rows are zeroed
  u64 work_wanted;  // who loads keys asks the scheduler for the next item

  // Of the items in the slots, for who loads keys, or finds those of e4m3.
  Walk walks[Cfg::kScheduler ? kSlots : 1];

  // Of the tile in a stage, where warps load pages and no spans travel: a bit for each unit of a loading warp that has
  // no page, PageShare::kWords words a warp.
  __device__ __forceinline__ u32* units_of_no_page(int stage) { return reinterpret_cast<u32*>(spans[stage][0]); }

  // Where an item's Q lies, and the parity that its barriers are waited for with.
  __device__ __forceinline__ static int q_slot(Slot slot) { return Cfg::kQSlots == kSlots ? slot.stage() : 0; }
  __device__ __forceinline__ static int q_parity(Slot slot) {
    return Cfg::kQSlots == kSlots ? slot.parity() : slot.stage();
  }

  // By all threads, before the block's first __syncthreads: no copy writes these rows of Q, and NaN in them would turn
  // up in the choices that a warp makes for all of its rows.
  __device__ __forceinline__ void zero_rows_of_no_token(ForwardParams const& p) {
    int const first = p.pack_heads * p.pack_tokens;
    int const chunks = (Cfg::kQRows - first) * (kPanelRowBytes / 16);
#pragma unroll 1
    for (int i = threadIdx.x; i < chunks; i += Cfg::kThreads) {
#pragma unroll
      for (int panel = 0; panel < Cfg::kQSlots * Cfg::kPanels; ++panel) {
        unsigned char* const s_row = &q[0][0] + panel * Cfg::kQPanelBytes + first * kPanelRowBytes;
        reinterpret_cast<uint4*>(s_row)[i] = make_uint4(0, 0, 0, 0);
      }
    }
    fence_proxy_async();
  }

  // By one thread, before the block's first __syncthreads. Consumers arrive once a warp.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * Cfg::kConsumers;
    // Of a tile: warps that convert or load, or who asks the copy engine; threads that copy, and for keys their warps
    // once more.
    constexpr int kValueArrivals = Cfg::kKeyByKey ? 32 * Cfg::kFillers : Cfg::kFillers;
    constexpr int kKeyArrivals = Cfg::kKeyByKey ? 33 * Cfg::kFillers : Cfg::kFillers;
    // Of an item: several warps that load or find keys, and who loads Q apart from them, count too.
    constexpr int kReaders = kConsumerWarps + (Cfg::kWalkers > 1 ? Cfg::kWalkers : 0) + (Cfg::kApart ? 1 : 0);
    for (int i = 0; i < Cfg::kQSlots; ++i) {
      mbarrier_init(smem_address(&q_full[i]), 1);
      mbarrier_init(smem_address(&q_empty[i]), kConsumerWarps);
    }
    for (int i = 0; i < Cfg::kStages; ++i) {
      mbarrier_init(smem_address(&k_full[i]), kKeyArrivals);
      mbarrier_init(smem_address(&v_full[i]), kValueArrivals);
      mbarrier_init(smem_address(&k_empty[i]), kConsumerWarps);
      mbarrier_init(smem_address(&v_empty[i]), kConsumerWarps);
    }
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(smem_address(&work_full[i]), 1);
      mbarrier_init(smem_address(&work_empty[i]), kReaders);
    }
    mbarrier_init(smem_address(&dead_zeroed), 128 * Cfg::kConsumers);
    if constexpr (Cfg::kScheduler) mbarrier_init(smem_address(&work_wanted), 1);
    fence_mbarrier_init();
  }
};

}  // namespace omni
