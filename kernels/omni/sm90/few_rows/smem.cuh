// Shared memory of the kernel for few query rows. Each warp has a ring of its own, in which a lane finds what it copied
// itself, so that a warp waits for nobody until all keys of an item are behind.
#pragma once

#include "omni/sm90/few_rows/config.cuh"
#include "omni/sm90/few_rows/head_scale.cuh"
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

template <class Cfg>
struct FewRowsSmem {
  using Config = Cfg;
  using Params = ForwardParamsSm90;
  using Slot = RingIndex<2>;

  // A row of O that a warp leaves for the merge, column n of block j at 8 * j + n, with gaps so that neither who writes
  // nor who reads meets another in a bank.
  static constexpr int kPitch = Cfg::kHeadDim + Cfg::kHeadDim / 32 * 8 + 8;

  union Ring {
    WarpBuffer<Cfg> buffers[Cfg::kBuffers];  // keys, values, keys, ...
    float out[Cfg::kRows * kPitch];
  };

  Ring rings[Cfg::kWarps];
  uint4 q[Cfg::kSteps][32];              // A fragments
  HeadScale scales[2];                   // of keys, of values
  float2 sums[Cfg::kWarps][Cfg::kRows];  // row_max and row_sum of each warp
  Tile tiles[Cfg::kWarps][Cfg::kTiles];  // whose keys are in the ring
  u32 hidden[Cfg::kWarps][Cfg::kTiles];  // keys of them that have no page
  WorkSlot work[2];                      // this item, and the next one
  HeadPlace places[2][2];                // of their keys and values
  int next_item;
  int is_last;

  __device__ __forceinline__ static int at_column(int column) { return column + column / 32 * 8; }
};

}  // namespace omni
