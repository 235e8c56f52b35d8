// Keys and values in pages, brought by the producer's warp. Where boxes of 8 keys and more fill the pages, by the copy
// engine: a tile is several boxes, each inside of one page, and each asked for by a lane. Boxes without a page, or past
// a sequence's end, are aimed behind the pool: they read as zeros, and the bytes that a barrier awaits stay the same.
// Else key by key, by copies of the lanes' own.
#pragma once

#include "omni/fp8.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

struct PagedParamsSm90 : ForwardParamsSm90 {
  PageTable pages;
};

struct RaggedParamsSm90 : PagedParamsSm90 {
  int2 const* row_ranges;  // as in RaggedParams
};

struct Fp8ParamsSm90 : RaggedParamsSm90 {
  KvScales scales;
};

template <bool kPaged, bool kRagged = false, bool kFp8 = false>
struct ForwardParamsSm90Of {
  using Type = ForwardParamsSm90;
};

template <>
struct ForwardParamsSm90Of<true, false> {
  using Type = PagedParamsSm90;
};

template <bool kPaged>
struct ForwardParamsSm90Of<kPaged, true> {
  using Type = RaggedParamsSm90;
};

template <bool kPaged, bool kRagged>
struct ForwardParamsSm90Of<kPaged, kRagged, true> {
  using Type = Fp8ParamsSm90;
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

// Key by key: where a key of a tile begins in the pool's first head, in elements, or why it is nowhere.
constexpr i64 kNoKey = -1, kNoPage = -2;

__device__ __forceinline__ i64
key_offset(PageTable const& table, Strides const& strides, int sequence, Tile const& tile, int key) {
  if (key >= tile.length()) return kNoKey;
  int row;
  int const page = table.page_of(sequence, tile.first + key, row);
  return page == table.pages ? kNoPage : paged_offset(strides, page, row);
}

// Copies 32 rows of kColumns, a lane's own one each, 16 bytes a lane at once, to where the copy engine's swizzle would
// put them. Rows of no key, and columns that tensors lack, become zeros. s_rows: of the first one.
template <class Cfg, int kColumns>
__device__ __forceinline__ void copy_rows(u32 s_rows, unsigned char const* g_head, int columns, i64 own) {
  constexpr int kChunks = kColumns / 8;                  // of a row
  constexpr int kAtOnce = Cfg::kConsumers == 1 ? 8 : 4;  // as registers allow
#pragma unroll kAtOnce
  for (int i = 0; i < kChunks; ++i) {
    int const row = (32 * i + lane_id()) / kChunks, chunk = (32 * i + lane_id()) % kChunks;
    i64 const at = __shfl_sync(0xffffffffu, own, row);
    bool const exists = at >= 0 && 8 * chunk < columns;
    u32 const s_row = s_rows + chunk / 8 * Cfg::kKvPanelBytes + row * kPanelRowBytes;
    cp_async_16(s_row + (chunk % 8 ^ row % 8) * 16, g_head + (exists ? 2 * at + 16 * chunk : 0), exists ? 16 : 0);
  }
}

}  // namespace omni
