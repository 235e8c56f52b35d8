// Keys and values in pages by the copy engine: a tile is several boxes, each inside of one page, and each asked for by
// a lane of the producer's warp. Boxes without a page, or past a sequence's end, are aimed behind the pool: they read
// as zeros, and the bytes that a barrier awaits stay the same.
#pragma once

#include "omni/fp8.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

struct PagedParamsSm90 : ForwardParamsSm90 {
  PageTable pages;
};

struct Fp8ParamsSm90 : PagedParamsSm90 {
  KvScales scales;
};

template <bool kPaged, bool kFp8>
struct ForwardParamsSm90Of {
  using Type = Fp8ParamsSm90;
};

template <>
struct ForwardParamsSm90Of<false, false> {
  using Type = ForwardParamsSm90;
};

template <>
struct ForwardParamsSm90Of<true, false> {
  using Type = PagedParamsSm90;
};

// In the kind of a tile: some of its boxes have no page. Lists for caches skip no tile, and leave the bit free.
constexpr int kNoPageFlag = 1 << kSkipShift;

// The lane's box of a tile.
struct PageBox {
  int page, row;
};

// Lanes without a box, and those whose box begins past the tile's last key, get one behind the pool. none: the box has
// keys, and no page.
template <class Cfg>
__device__ __forceinline__ PageBox page_box(PageTable const& table, int sequence, Tile const& tile, bool& none) {
  int const key = Cfg::kPage * lane_id();
  PageBox box{table.pages, 0};
  bool const exists = key < min(tile.length(), Cfg::kBc);
  if (exists) box.page = table.page_of(sequence, tile.first + key, box.row);
  none = exists && box.page == table.pages;
  return box;
}

// Starts the copies of a tile's boxes, the lane's own one, kPanels panels of it; the warp has said what the barrier
// awaits.
template <class Cfg, int kPanels>
__device__ __forceinline__ void load_boxes(
    unsigned char* s_tile, TensorMap const* map, u64* full, int kv_head, PageBox const& box) {
  int const lane = lane_id();
  if (lane >= Cfg::kBc / Cfg::kPage) return;
  u32 const s_box = smem_address(s_tile) + lane * Cfg::kPage * kPanelRowBytes;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    tma_load_4d(
        s_box + panel * Cfg::kKvPanelBytes, map, smem_address(full), kPanelColumns * panel, box.row, kv_head, box.page);
  }
}

}  // namespace omni
