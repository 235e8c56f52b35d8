// Which weights of a register tile are kept where its rows are keys and its columns queries. A key's rows of the mask
// are a word of the tile as they stand: no lanes are exchanged, as keep.cuh must.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/tile.cuh"

namespace omni {

// The queries of a tile that a warp's keys see. Bit b of [h][i] says whether query 32 * i + b sees the key of the
// thread's row h. Shifted right by the thread's first column, so that bit 8 * (j % 4) + e of [h][j / 4] stands for the
// element (j, h, e).
template <int kBr, int kBc, int kSpans>
struct KeepQueries {
  static_assert(kBr % 32 == 0, "whole words of queries");
  static constexpr int kWords = kBr / 32;
  u32 words[2][kWords];

  // tile: queries from tile.first on. key0: token of the warp's first key; row0: where it stands in the block of kBc
  // keys. s_spans: (kSpans, kBc) spans of the block in shared memory, of masks that have no more of them a key. One
  // branch for all words, and their loads side by side: this is a chain of latencies.
  __device__ __forceinline__ void find(
      MaskView const& mask, Tile const& tile, int key0, int row0, int2 const* s_spans) {
    int const row = RegTile<1, kBr>::row(0, 0);
    if (tile.kind() == kCausal) {
      int const first = key0 + row - mask.p.diagonal - tile.first;
      set([&](int h, int i) { return rows_from(first + 8 * h - 32 * i); });
    } else if (tile.payload >= 0) {
      u32 const* const g_words = mask.p.lists.bit_tiles + (static_cast<i64>(tile.payload) * kBc + row0 + row) * kWords;
      set([&](int h, int i) { return g_words[8 * h * kWords + i]; });
    } else if (mask.p.n_spans <= kSpans) {
      int2 const two[2] = {s_spans[row0 + row], s_spans[row0 + row + 8]};
      set([&](int h, int i) { return of_span(two[h], tile.first + 32 * i); });
      if (kSpans > 1 && mask.p.n_spans > 1) join(s_spans + kBc + row0 + row, tile.first);
    } else {
      set([](int, int) { return 0u; });
#pragma unroll 1
      for (int n = 0; n < mask.p.n_spans; ++n) join(mask.spans() + n * mask.p.k_padded + key0 + row, tile.first);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[h][i] >>= 2 * (lane_id() % 4);
    }
  }

 private:
  template <class WordOf>
  __device__ __forceinline__ void set(WordOf const& word) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[h][i] = word(h, i);
    }
  }

  // One more span of both keys.
  __device__ __forceinline__ void join(int2 const* span, int q0) {
    int2 const two[2] = {span[0], span[8]};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[h][i] |= of_span(two[h], q0 + 32 * i);
    }
  }

  __device__ __forceinline__ static u32 of_span(int2 span, int q0) {
    return rows_from(span.x - q0) & ~rows_from(span.x - q0 + span.y);
  }
};

}  // namespace omni
