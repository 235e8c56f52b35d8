// Keys and values in pages that boxes of 8 keys and more fill, brought by the copy engine: a tile is several boxes,
// each inside of one page, and each asked for by a lane. Boxes without a page, or past a sequence's end, are aimed
// behind the pool: they read as zeros, and the bytes that a barrier awaits stay the same. Other pages are copied key by
// key (page_loader.cuh).
#pragma once

#include "omni/fp8.cuh"
#include "omni/sm90/forward/smem.cuh"

namespace omni {

struct TailParamsSm90 : ForwardParamsSm90 {
  TailMaps tails;
};

struct PagedParamsSm90 : ForwardParamsSm90 {
  PageTable pages;
};

struct RaggedParamsSm90 : PagedParamsSm90 {
  int2 const* row_ranges;  // as in RaggedParams
};

struct Fp8ParamsSm90 : RaggedParamsSm90 {
  KvScales scales;
};

template <bool kPaged, bool kRagged = false, bool kFp8 = false, bool kTails = false>
struct ForwardParamsSm90Of {
  using Type = ForwardParamsSm90;
};

template <>
struct ForwardParamsSm90Of<false, false, false, true> {
  using Type = TailParamsSm90;
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

// What each of the loading warps brings of a tile: units of kPage keys, which are boxes or keys. Eight rows, in which
// the swizzle goes round, are one warp's. Each warp leaves kWords words for the consumers: which of its units have no
// page.
template <class Cfg, bool kShared = Cfg::kLoaders != 0>
struct PageShare {
  static constexpr int kStep = Cfg::kPage < 8 ? 8 : Cfg::kPage;
  static constexpr int kKeys = (Cfg::kBc / kStep + Cfg::kLoaders - 1) / Cfg::kLoaders * kStep;
  static constexpr bool kEven = kKeys * Cfg::kLoaders == Cfg::kBc;
  static constexpr int kUnits = kKeys / Cfg::kPage;
  static constexpr int kWords = (kUnits + 31) / 32;

  // Those of a warp: the last ones may have fewer, or none.
  __device__ __forceinline__ static int units(int warp) {
    return kEven ? kUnits : min(max(Cfg::kBc / Cfg::kPage - warp * kUnits, 0), kUnits);
  }

  // Has any unit no page?
  __device__ __forceinline__ static bool any(u32 const* s_none) {
    u32 found = 0;
#pragma unroll
    for (int i = 0; i < Cfg::kLoaders * kWords; ++i) found |= s_none[i];
    return found != 0;
  }

  // The bits of all warps, one behind the other.
  template <int kAll>
  __device__ __forceinline__ static void gather(u32 (&none)[kAll], u32 const* s_none) {
#pragma unroll
    for (int w = 0; w < kAll; ++w) none[w] = 0;
#pragma unroll
    for (int i = 0; i < Cfg::kLoaders * kWords; ++i) {
      int const first = i / kWords * kUnits + i % kWords * 32, shift = first % 32;
      if (first / 32 < kAll) none[first / 32] |= s_none[i] << shift;
      if (shift != 0 && first / 32 + 1 < kAll) none[first / 32 + 1] |= s_none[i] >> (32 - shift);
    }
  }
};

template <class Cfg>
struct PageShare<Cfg, false> {
  __device__ __forceinline__ static bool any(u32 const*) { return false; }
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

// Starts the copies of a warp's boxes of a tile, the lane's own one, kPanels panels of it; the warp has said what the
// barrier awaits. s_rows: of the first box.
template <class Cfg, int kPanels>
__device__ __forceinline__ void load_boxes(
    unsigned char* s_rows, TensorMap const* map, u64* full, int kv_head, PageBox const& box, int boxes) {
  int const lane = lane_id();
  if (lane >= boxes) return;
  u32 const s_box = smem_address(s_rows) + lane * Cfg::kPage * kPanelRowBytes;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    tma_load_4d(
        s_box + panel * Cfg::kKvPanelBytes, map, smem_address(full), kPanelColumns * panel, box.row, kv_head, box.page);
  }
}

}  // namespace omni
