// Which weights of a register tile are kept where its rows are keys and its columns queries. A key's rows of the mask are
// a word of the tile as they stand: no lanes are exchanged, as keep.cuh must.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/tile.cuh"

namespace omni {

// The queries of a tile that a warp's keys see, 32 at a time. tile: queries from tile.first on. key0: token of the warp's
// first key; row0: where it stands in the block of kBc keys. s_spans: (kSpans, kBc) spans of the block in shared memory,
// of masks that have no more of them a key.
template <int kBr, int kBc, int kSpans>
struct KeepQueries {
  static_assert(kBr % 32 == 0, "whole words of queries");
  static constexpr int kWords = kBr / 32;

  MaskView const& mask;
  Tile const& tile;
  int key0, row0;
  int2 const* s_spans;

  // Bit b says whether query 32 * i + b sees the key of the thread's row h. Shifted right by the thread's first column,
  // so that bit 8 * (j % 4) + e stands for the element (j, h, e), j / 4 = i.
  __device__ __forceinline__ u32 word(int h, int i) const {
    int const row = RegTile<1, kBr>::row(0, h), q0 = tile.first + 32 * i;
    u32 queries = 0;
    if (tile.kind() == kCausal) {
      queries = rows_from(key0 + row - mask.p.diagonal - q0);
    } else if (tile.payload >= 0) {
      queries = mask.p.lists.bit_tiles[(static_cast<i64>(tile.payload) * kBc + row0 + row) * kWords + i];
    } else if (mask.p.n_spans <= kSpans) {
      queries = of_span(s_spans[row0 + row], q0);
#pragma unroll
      for (int n = 1; n < kSpans; ++n) {
        if (n < mask.p.n_spans) queries |= of_span(s_spans[n * kBc + row0 + row], q0);
      }
    } else {
      int2 const* const g_spans = mask.spans() + key0 + row;
#pragma unroll 1
      for (int n = 0; n < mask.p.n_spans; ++n) queries |= of_span(g_spans[n * mask.p.k_padded], q0);
    }
    return queries >> (2 * (lane_id() % 4));
  }

 private:
  __device__ __forceinline__ static u32 of_span(int2 span, int q0) {
    return rows_from(span.x - q0) & ~rows_from(span.x - q0 + span.y);
  }
};

}  // namespace omni
