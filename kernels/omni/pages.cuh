// Keys and values in pages: where the keys of a sequence are. Who loads a tile asks; masks, tiles and sums are in
// positions of the sequence and know nothing of pages, but for keys that have none.
#pragma once

#include "omni/entries.cuh"
#include "omni/numbers.cuh"
#include "omni/tile.cuh"

namespace omni {

// The pools are tensors of (pages, kv_heads, keys of a page, head_dim): their stride of a batch is that of a page.
struct PageTable {
  int const* entries;  // entry i of a sequence: the page of its keys i * size to (i + 1) * size - 1
  int next;            // from the entries of one sequence to those of the next
  int pages;           // in a pool; an entry that names none of them hides its keys, and nothing is read for it
  int size;            // keys of a page

  // The entry of a key of a sequence, and the key's row in that page.
  __device__ __forceinline__ int entry_of(int sequence, int key, int& row) const {
    int const index = static_cast<int>(static_cast<u32>(key) / static_cast<u32>(size));
    row = key - index * size;
    return entries[static_cast<i64>(sequence) * next + index];
  }

  __device__ __forceinline__ bool has(int entry) const { return static_cast<u32>(entry) < static_cast<u32>(pages); }

  // The page that holds a key of a sequence, `pages` where there is none, and the key's row there.
  __device__ __forceinline__ int page_of(int sequence, int key, int& row) const {
    int const page = entry_of(sequence, key, row);
    return has(page) ? page : pages;
  }
};

struct PagedParams : ForwardParams {
  PageTable pages;
};

template <bool kPaged, bool kRagged = false, bool kFp8 = false>
struct ForwardParamsOf {
  using Type = ForwardParams;
};

template <>
struct ForwardParamsOf<true, false> {
  using Type = PagedParams;
};

// Where a key of a pool begins, in elements from the first key of the head in page 0.
__device__ __forceinline__ i64 paged_offset(Strides const& strides, int page, int row) {
  return page * strides.batch + row * strides.token;
}

// Hides the columns of a register tile that a bit is set for in `hidden`, (kCols / kKeys) bits of kKeys columns each.
template <int kKeys, int kWords, class Scores>
__device__ __forceinline__ void hide_columns(Scores& scores, u32 const (&hidden)[kWords]) {
#pragma unroll
  for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const bit = Scores::col(j, e) / kKeys;
      bool const hide = hidden[8 * j / kKeys / 32] >> (bit % 32) & 1;
#pragma unroll
      for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = scores.x[m][4 * j + 2 * h + e];
          score = hide ? neg_inf() : score;
        }
      }
    }
  }
}

// Hides the keys of a tile that have no page. All lanes of a warp look at the table, a key of each 32 each.
template <class Scores>
__device__ __forceinline__ void hide_keys_of_no_page(
    Scores& scores, PageTable const& table, int sequence, Tile const& tile) {
  constexpr int kWords = Scores::kCols / 32;
  int const length = min(tile.length(), Scores::kCols);  // of a run: what the tile has of it
  u32 hidden[kWords], any = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    int const column = 32 * w + lane_id();
    int row;
    bool const none = column < length && table.page_of(sequence, tile.first + column, row) == table.pages;
    hidden[w] = __ballot_sync(0xffffffffu, none);
    any |= hidden[w];
  }
  if (any != 0) hide_columns<1>(scores, hidden);
}

}  // namespace omni
