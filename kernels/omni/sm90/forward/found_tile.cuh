// How warps share out a tile of e4m3, and what they are told about it. Its elements go from memory to registers, and
// to shared memory as numbers of 16 bits.
#pragma once

#include "omni/sm90/forward/smem.cuh"

namespace omni {

// What a warp loads of a tile in one instruction: 64 bytes of each of 8 rows, 16 bytes a lane. kPanels: of the tensor.
// Unit i of a warp is number warp + kWarps * i; those of 8 rows follow each other, panel by panel.
template <class Cfg, int kPanels>
struct E4m3Units {
  static constexpr int kWarps = Cfg::kApartWarps;
  static constexpr int kUnits = Cfg::kBc / 8 * kPanels;
  static constexpr int kCount = (kUnits + kWarps - 1) / kWarps;  // of a warp, the last one perhaps beyond the tile
  static constexpr bool kInStep = kWarps % kPanels == 0;         // a warp keeps its panel

  __device__ __forceinline__ static bool exists(int warp, int i) {
    return (kUnits % kWarps == 0 && i < kCount) || warp + kWarps * i < kUnits;
  }

  __device__ __forceinline__ static int panel(int warp, int i) {
    return (kInStep ? warp : warp + kWarps * i) % kPanels;
  }

  // The lane's row of the tile.
  __device__ __forceinline__ static int row(int warp, int i) {
    int const eight = kInStep ? warp / kPanels + i * (kWarps / kPanels) : (warp + kWarps * i) / kPanels;
    return eight * 8 + lane_id() / 4;
  }
};

// Where the keys of a tile are, what they are multiplied by, and what consumers are told about the tile.
template <class Cfg>
struct FoundTile {
  i64 k_offsets[Cfg::kBc], v_offsets[Cfg::kBc];  // bytes from the pool's first one to the head's row; -1: zeros
  float k_scales[Cfg::kBc], v_scales[Cfg::kBc];
  Tile tile;
  int hidden[Cfg::kBc / 32];  // keys of no page
  int is_end;                 // of all tiles: nothing else is there
};

template <class Cfg>
struct Fp8Smem : ForwardSmem<Cfg> {
  static constexpr int kFound = 4;
  FoundTile<Cfg> found[kFound];
  u64 found_full[kFound], found_empty[kFound];

  __device__ __forceinline__ void init_barriers() {
    ForwardSmem<Cfg>::init_barriers();
    for (int i = 0; i < kFound; ++i) {
      mbarrier_init(smem_address(&found_full[i]), 33);  // lanes that copy scales, and who says what the tile is
      mbarrier_init(smem_address(&found_empty[i]), Cfg::kApartWarps);
    }
    fence_mbarrier_init();
  }
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
