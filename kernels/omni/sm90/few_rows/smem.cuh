// Shared memory of the kernel for few query rows. Each warp has a ring of its own, which it fills itself, so that it
// waits for nobody until all keys of an item are behind.
#pragma once

#include "omni/sm90/few_rows/config.cuh"
#include "omni/sm90/few_rows/head_scale.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/sm90/work_list.cuh"

namespace omni {

// Where the keys or the values of a head lie, and their scales where each token has one, else null.
struct HeadPlace {
  unsigned char const* g_head;
  float const* g_scales;
};

// Keys or values of one tile.
template <class Cfg>
struct WarpBuffer {
  alignas(128) unsigned char elements[Cfg::kTileBytes];
  float scales[Cfg::kBc];  // where tokens have them
};

// What a lane has of 16 columns of the queries: of its row, or of two.
template <int kRows>
struct QueryShare {
  using Type = uint4;
};

template <>
struct QueryShare<8> {
  using Type = uint2;
};

template <class Cfg>
struct FewRowsSmem {
  using Config = Cfg;
  using Params = ForwardParamsSm90;
  using Slot = RingIndex<2>;
  using Query = typename QueryShare<Cfg::kRows>::Type;

  // A row of O that a warp leaves for the merge, column n of block j at 8 * j + n, with gaps so that neither who writes
  // nor who reads meets another in a bank.
  static constexpr int kPitch = Cfg::kHeadDim + Cfg::kHeadDim / 32 * 8 + 8;

  union Ring {
    WarpBuffer<Cfg> buffers[Cfg::kBuffers];  // keys, values, keys, ...
    float out[Cfg::kRows * kPitch];
  };

  Ring rings[Cfg::kWarps];
  float chain[Cfg::kRows * kPitch];      // O of the warps so far
  Query q[2][Cfg::kSteps][32];           // operands of the products, of this item and of the next one
  HeadScale scales[2][2];                // theirs, of keys and of values
  float2 chain_sums[Cfg::kRows];         // row_max and row_sum of the warps so far
  float2 sums[Cfg::kWarps][Cfg::kRows];  // of each warp
  Tile tiles[Cfg::kWarps][Cfg::kTiles];  // whose keys are in the ring
  u32 hidden[Cfg::kWarps][Cfg::kTiles];  // keys of them that have no page
  WorkSlot work[2];                      // this item, and the next one
  WorkSlot late;                         // an item before them whose parts are merged at the end; head -1: none
  int4 entries[2];                       // their first ones
  HeadPlace places[2][2];                // of their keys and values
  u64 item_full[2];                      // what is said of them is there, with Q and scales
  u64 full[Cfg::kWarps][Cfg::kBuffers];  // copies of the copy engine are there
  u64 turn[Cfg::kWarps];                 // the warp before has added what it has of an item; of the first the last one
  int is_last;

  // By one thread; others wait for it at a barrier of all.
  __device__ __forceinline__ void init() {
    late.head = -1;
    for (int i = 0; i < 2; ++i) mbarrier_init(smem_address(&item_full[i]), 1);
    for (int i = 0; i < Cfg::kWarps; ++i) mbarrier_init(smem_address(&turn[i]), 1);
    for (int i = 0; i < Cfg::kWarps * Cfg::kBuffers; ++i) mbarrier_init(smem_address(&full[0][0] + i), 1);
    fence_mbarrier_init();
  }

  // By whole warps. The first one is there from the start.
  __device__ __forceinline__ bool has_item(int item) {
    return __all_sync(0xffffffffu, mbarrier_has_ended(smem_address(&item_full[item % 2]), (item - 1) / 2 % 2)) != 0;
  }

  __device__ __forceinline__ void wait_for_item(int item) {
    mbarrier_wait(smem_address(&item_full[item % 2]), (item - 1) / 2 % 2);
  }

  __device__ __forceinline__ static int at_column(int column) { return column + column / 32 * 8; }
};

}  // namespace omni
