// Keys and values in pages by the copy engine: a tile is several boxes, each inside of one page, and each asked for by
// a lane of the producer's warp. Boxes without a page, or past a sequence's end, are aimed behind the pool: they read
// as zeros, and the bytes that a barrier awaits stay the same.
#pragma once

#include "omni/pages.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

struct PagedParamsSm90 : ForwardParamsSm90 {
  PageTable pages;
};

template <bool kPaged>
struct ForwardParamsSm90Of {
  using Type = ForwardParamsSm90;
};

template <>
struct ForwardParamsSm90Of<true> {
  using Type = PagedParamsSm90;
};

// In the kind of a tile: some of its boxes have no page. Lists for caches skip no tile, and leave the bit free.
constexpr int kNoPageFlag = 1 << kSkipShift;

// The boxes of a tile that a lane asks for: box 32 * w + lane.
template <class Cfg>
struct PageBoxes {
  static constexpr int kCount = Cfg::kBc / Cfg::kPage, kPerLane = (kCount + 31) / 32;
  int page[kPerLane], row[kPerLane];
  bool none[kPerLane];  // it has keys, and no page
};

// Boxes that begin past the tile's last key are aimed behind the pool.
template <class Cfg>
__device__ __forceinline__ PageBoxes<Cfg> page_boxes(PageTable const& table, int sequence, Tile const& tile) {
  PageBoxes<Cfg> boxes;
#pragma unroll
  for (int w = 0; w < boxes.kPerLane; ++w) {
    int const key = Cfg::kPage * (32 * w + lane_id());
    bool const exists = key < min(tile.length(), Cfg::kBc);
    boxes.page[w] = table.pages;
    boxes.row[w] = 0;
    if (exists) boxes.page[w] = table.page_of(sequence, tile.first + key, boxes.row[w]);
    boxes.none[w] = exists && boxes.page[w] == table.pages;
  }
  return boxes;
}

// Starts the copies of a lane's boxes, kPanels panels of each; the warp has said what the barrier awaits.
template <class Cfg, int kPanels>
__device__ __forceinline__ void load_boxes(
    unsigned char* s_tile, TensorMap const* map, u64* full, int kv_head, PageBoxes<Cfg> const& boxes) {
#pragma unroll
  for (int w = 0; w < boxes.kPerLane; ++w) {
    int const box = 32 * w + lane_id();
    if (box >= boxes.kCount) return;
    u32 const s_box = smem_address(s_tile) + box * Cfg::kPage * kPanelRowBytes;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      tma_load_4d(
          s_box + panel * Cfg::kKvPanelBytes, map, smem_address(full), kPanelColumns * panel, boxes.row[w], kv_head,
          boxes.page[w]);
    }
  }
}

}  // namespace omni
