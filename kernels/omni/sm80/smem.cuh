// Tiles in shared memory: row-major, XOR-swizzled in chunks of 16 bytes, so that the eight rows that one ldmatrix
// phase reads lie in eight different 16-byte banks. Filled by cp.async, all threads of the block taking part.
#pragma once

#include "omni/fp8.cuh"
#include "omni/mask/rule.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/tile.cuh"

namespace omni {

__device__ constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

// A tile of kCols 16-bit columns. Rows follow each other without padding, so chunk c of row r starts in bank group
// (r * kChunks + c) mod 8. Eight rows cover 8 / kGroup distinct groups by themselves (kGroup = gcd(kChunks, 8));
// the XOR with the row's phase, below kGroup, spreads the rest.
template <int kCols, bool kSwizzle>
struct SmemTile {
  static constexpr int kChunks = kCols / 8;
  static constexpr int kPitchBytes = kCols * 2;
  static constexpr int kGroup = kSwizzle ? gcd(kChunks, 8) : 1;

  __device__ __forceinline__ static constexpr int phase(int row) { return row / (8 / kGroup) % kGroup; }

  __device__ __forceinline__ static constexpr u32 offset(int row, int chunk) {
    return row * kPitchBytes + (chunk ^ phase(row)) * 16;
  }

  // Where this lane's ldmatrix row starts in the 16 x 16 sub-tile at the tile's origin: rows lane % 16, left or right
  // 8 columns by lane / 16. Moving down by multiples of 8 rows adds row * kPitchBytes, moving right is `at_column`.
  __device__ __forceinline__ static u32 lane_offset() { return offset(lane_id() % 16, lane_id() / 16); }

  // The lane's address moved right by `column`, a multiple of 16: an XOR inside the swizzle group, an addition past it.
  __device__ __forceinline__ static u32 at_column(u32 s_lane, int column) {
    int const chunk = column / 8;
    return (s_lane ^ (chunk % kGroup * 16)) + chunk / kGroup * kGroup * 16;
  }
};

// Starts the copy of a kRows x kCols tile: rows at or past `rows` and columns at or past `columns` become zeros.
// g_tile: first element of the tile; stride_bytes between rows. 16-byte aligned.
template <int kThreads, int kRows, int kCols, bool kSwizzle>
__device__ __forceinline__ void load_tile(
    u32 s_tile, unsigned char const* g_tile, i64 stride_bytes, int rows, int columns) {
  using Shared = SmemTile<kCols, kSwizzle>;
  constexpr int kPieces = kRows * Shared::kChunks;
  constexpr int kRowStep = kThreads / Shared::kChunks;
  if constexpr (kThreads % Shared::kChunks == 0 && kRows % kRowStep == 0) {
    // Every thread keeps its chunk and walks down the rows.
    int row = threadIdx.x / Shared::kChunks;
    int const chunk = threadIdx.x % Shared::kChunks;
    if (chunk * 8 >= columns) rows = 0;
    g_tile += row * stride_bytes + chunk * 16;
#pragma unroll 2
    for (int i = 0; i < kRows / kRowStep; ++i) {
      cp_async_16(s_tile + Shared::offset(row, chunk), g_tile, row < rows ? 16 : 0);
      row += kRowStep;
      g_tile += kRowStep * stride_bytes;
    }
  } else {
#pragma unroll 2
    for (int i = 0; i < (kPieces + kThreads - 1) / kThreads; ++i) {
      int const piece = i * kThreads + static_cast<int>(threadIdx.x);
      if (kPieces % kThreads != 0 && piece >= kPieces) break;
      int const row = piece / Shared::kChunks;
      int const chunk = piece % Shared::kChunks;
      bool const exists = row < rows && chunk * 8 < columns;
      cp_async_16(s_tile + Shared::offset(row, chunk), g_tile + row * stride_bytes + chunk * 16, exists ? 16 : 0);
    }
  }
}

// The same for keys in pages: the tile's of the mask's sequence. Keys of no page become zeros, and nothing is read for
// them. g_head: the head's first key in page 0, at the tile's first column.
template <int kThreads, int kRows, int kCols, bool kSwizzle>
__device__ __forceinline__ void load_paged_tile(
    u32 s_tile, unsigned char const* g_head, Strides const& strides, MaskView const& mask, Tile const& tile,
    int columns) {
  PageTable const& table = static_cast<PagedParams const&>(mask.p).pages;
  using Shared = SmemTile<kCols, kSwizzle>;
  constexpr int kPieces = kRows * Shared::kChunks;
#pragma unroll 2
  for (int i = 0; i < (kPieces + kThreads - 1) / kThreads; ++i) {
    int const piece = i * kThreads + static_cast<int>(threadIdx.x);
    if (kPieces % kThreads != 0 && piece >= kPieces) break;
    int const row = piece / Shared::kChunks;
    int const chunk = piece % Shared::kChunks;
    bool exists = row < tile.length() && chunk * 8 < columns;
    unsigned char const* g_source = g_head;
    if (exists) {
      int row_in_page;
      int const page = table.page_of(mask.index, tile.first + row, row_in_page);
      exists = page < table.pages;
      if (exists) g_source += 2 * paged_offset(strides, page, row_in_page) + chunk * 16;
    }
    cp_async_16(s_tile + Shared::offset(row, chunk), g_source, exists ? 16 : 0);
  }
}

// The same for keys of e4m3, which pass through registers: the tile is there after the block's next barrier. Columns
// past `columns` and keys of no page become zeros. s_tile: in generic address space.
template <int kThreads, int kRows, int kCols, bool kSwizzle, bool kPaged, bool kBf16>
__device__ __forceinline__ void load_e4m3_tile(
    unsigned char* s_tile, E4m3Rows const& rows, MaskView const& mask, Tile const& tile, int columns) {
  PageTable const& table = static_cast<PagedParams const&>(mask.p).pages;
  using Shared = SmemTile<kCols, kSwizzle>;
  constexpr int kPieces = kRows * Shared::kChunks;
#pragma unroll 2
  for (int i = 0; i < (kPieces + kThreads - 1) / kThreads; ++i) {
    int const piece = i * kThreads + static_cast<int>(threadIdx.x);
    if (kPieces % kThreads != 0 && piece >= kPieces) break;
    int const row = piece / Shared::kChunks;
    int const chunk = piece % Shared::kChunks;
    uint4 eight = make_uint4(0, 0, 0, 0);
    int page, at;
    if (row < tile.length() && chunk * 8 < columns && find_key<kPaged>(table, mask.index, tile.first + row, page, at)) {
      uint2 const elements = *reinterpret_cast<uint2 const*>(rows.row(page, at) + chunk * 8);
      eight = dequantised<kBf16>(elements, rows.scale(page, at));
    }
    *reinterpret_cast<uint4*>(s_tile + Shared::offset(row, chunk)) = eight;
  }
}

// Zeroes the rows of a V tile whose key no row sees, because 0 * NaN = NaN. The tile has arrived; the caller
// synchronises the block before the tile is read. The swizzle moves chunks inside their row only.
template <int kThreads, int kCols, bool kSwizzle>
__device__ __forceinline__ void zero_dead_rows(unsigned char* s_tile, MaskView const& mask, Tile const& tile) {
  using Shared = SmemTile<kCols, kSwizzle>;
  u32 const* const g_dead = mask.dead_words(tile.first);
#pragma unroll 1  // registers are dearer
  for (int piece = threadIdx.x; piece < tile.length() * Shared::kChunks; piece += kThreads) {
    int const row = piece / Shared::kChunks;
    if (g_dead[row / 32] >> (row % 32) & 1) reinterpret_cast<uint4*>(s_tile)[piece] = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace omni
