// Tiles of e4m3 in shared memory, as converter.cuh copies them and before they become numbers of 16 bits.
#pragma once

#include "omni/sm90/forward/smem.cuh"

namespace omni {

// What a warp copies of a tile in one instruction: 64 bytes of each of 8 rows, 16 bytes a lane. kPanels: of the tensor.
// Unit i of a warp is number warp + 4 * i; those of 8 rows follow each other, panel by panel.
template <class Cfg, int kPanels>
struct RawUnits {
  static constexpr int kCount = Cfg::kBc / 8 * kPanels / 4;  // of a warp
  static_assert(Cfg::kBc % 32 == 0, "warps share out a tile evenly");

  static constexpr bool kInStep = 4 % kPanels == 0;  // a warp keeps its panel

  __device__ __forceinline__ static int panel(int warp, int i) { return (kInStep ? warp : warp + 4 * i) % kPanels; }

  // The lane's row of the tile; the eight rows of a unit are among the 32 that begin at 32 * word(i).
  __device__ __forceinline__ static int row(int warp, int i) {
    int const eight = kInStep ? warp / kPanels + i * (4 / kPanels) : (warp + 4 * i) / kPanels;
    return eight * 8 + lane_id() / 4;
  }
  __device__ __forceinline__ static constexpr int word(int i) { return i / kPanels; }
};

// A tile of e4m3 keys and values, on its way or waiting to be converted. Elements lie as the threads that copy them
// have them, 16 bytes each; scales are there where each token has its own, once for each warp that converts.
template <class Cfg>
struct RawTile {
  alignas(16) unsigned char k[Cfg::kKBytes / 2];
  alignas(16) unsigned char v[Cfg::kVBytes / 2];
  float k_scales[4][Cfg::kBc], v_scales[4][Cfg::kBc];
  Tile tile;
  u32 hidden[Cfg::kBc / 32];  // keys of no page
};

template <class Cfg>
struct Fp8Smem : ForwardSmem<Cfg> {
  RawTile<Cfg> raw[Cfg::kRawSlots];
};

template <class Cfg, bool kFp8 = Cfg::kFp8>
struct ForwardSmemOf {
  using Type = ForwardSmem<Cfg>;
};

template <class Cfg>
struct ForwardSmemOf<Cfg, true> {
  using Type = Fp8Smem<Cfg>;
};

}  // namespace omni
