// Tiles by the copy engine: what a tensor map is, and the copies that make up a tile.
#pragma once

#include "omni/sm90/ptx.cuh"

namespace omni {

// 128 bytes that cuTensorMapEncodeTiled filled; the hardware wants them 64-byte aligned.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// Tiles lie in panels of 64 columns, one behind the other. A row of a panel is as long as the swizzle reaches.
constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;

// Where a tile begins in its tensor.
struct TileOrigin {
  int token, head;
  int const& batch;  // read when the copies start
};

// Starts the copies of a tile's panels to shared memory; completes on the barrier, which expects whole boxes, also
// where they reach past the tensor. more_bytes: what else comes on the same barrier.
template <int kRows, int kPanels>
__device__ __forceinline__ void load_panels(
    unsigned char* s_tile, TensorMap const* map, u64* full, TileOrigin at, int more_bytes = 0) {
  constexpr int kPanelBytes = kRows * kPanelRowBytes;
  mbarrier_expect_tx(smem_address(full), kPanels * kPanelBytes + more_bytes);
  int const batch = at.batch;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    tma_load_4d(
        smem_address(s_tile) + panel * kPanelBytes, map, smem_address(full), kPanelColumns * panel, at.token, at.head,
        batch);
  }
}

}  // namespace omni
