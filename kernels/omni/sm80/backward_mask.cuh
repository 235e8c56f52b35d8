// Which weights of a step of the backward loop are hidden. Hidden weights are set to 0 by select. Two register layouts:
// rows are keys, for dK and dV, where a key's spans and bits are its word at once; and rows are queries, for dQ, as in
// the forward pass (mask/keep.cuh).
#pragma once

#include "omni/mask/keep.cuh"

namespace omni {

// A step as one warp sees it: its own tokens against walked ones. tile: of walked tokens.
struct WarpStep {
  MaskView const& mask;
  Tile const& tile;
  int owned0;   // the warp's first token
  int row0;     // where it stands in the thread block's
  int walked0;  // the step's first token
  int column0;  // where it stands in the tile
};

// Rows are keys. Bit 8 * j + 2 * i + e stands for row (m, h) and column (4 * w + j, e), i being the rank of (m, h, w): all
// that a lane keeps of the step is one word.
template <class Cfg, class Weights>
struct HiddenFromKeys {
  static constexpr int kWords = Weights::kCols / 32;
  static_assert(Weights::kTilesM * kWords <= 2, "the lane's bits fill a word");
  u32 bits;

  __device__ __forceinline__ static constexpr int rank(int m, int h, int w) { return (2 * m + h) * kWords + w; }

  // queries_of(row, w) -> the 32 queries from column 32 * w on that see the key in `row` of the register tile.
  template <class QueriesOf>
  __device__ __forceinline__ void set_bits(QueriesOf const& queries_of) {
    bits = 0;
#pragma unroll
    for (int m = 0; m < Weights::kTilesM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          u32 const queries = queries_of(Weights::row(m, h), w);
          bits |= (queries >> Weights::col(0, 0) & 0x03030303u) << (2 * rank(m, h, w));
        }
      }
    }
  }

  __device__ __forceinline__ void find(WarpStep const& step) {
    MaskView const& mask = step.mask;
    if (step.tile.kind() == kCausal) {
      int const first = step.owned0 - mask.p.diagonal - step.walked0;  // column that sees the warp's first key first
      set_bits([&](int row, int w) { return rows_from(first + row - 32 * w); });
    } else if (int const payload = step.tile.payload; payload >= 0) {
      constexpr int kTileWords = Cfg::kBr / 32;
      u32 const* const g_words =
          mask.p.lists.bit_tiles + (static_cast<i64>(payload) * Cfg::kBc + step.row0) * kTileWords + step.column0 / 32;
      set_bits([&](int row, int w) { return g_words[row * kTileWords + w]; });
    } else {
      int2 const* const g_spans = mask.spans() + step.owned0;
      set_bits([&](int row, int w) {
        u32 queries = 0;
#pragma unroll 1
        for (int i = 0; i < mask.p.n_spans; ++i) {
          int2 const span = g_spans[static_cast<i64>(i) * mask.p.k_padded + row];
          int const first = span.x - step.walked0 - 32 * w;
          queries |= rows_from(first) & ~rows_from(first + span.y);
        }
        return queries;
      });
    }
  }

  // Does any row of the warp's see any column?
  __device__ __forceinline__ bool is_anything() const { return __any_sync(0xffffffffu, bits != 0); }

  __device__ __forceinline__ void apply(Weights& weights) const {
#pragma unroll
    for (int m = 0; m < Weights::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 2 * Weights::kBlocks; ++i) {
        int const j = i / 2, h = i % 2;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& weight = weights.x[m][4 * j + 2 * h + e];
          weight = bits & 1u << (8 * (j % 4) + 2 * rank(m, h, j / 4) + e) ? weight : 0.f;
        }
      }
    }
  }
};

// Rows are queries: the bits of mask/keep.cuh.
template <class Cfg, class Weights>
struct HiddenFromQueries {
  static_assert(Weights::kCols <= 64, "one group of columns");
  using Keep = KeepBits<Weights>;
  Keep keep;

  __device__ __forceinline__ void find(WarpStep const& step) {
    MaskView const& mask = step.mask;
    int const q0 = step.owned0;
    if (step.tile.kind() == kCausal) {
      int const first = step.walked0 - mask.p.diagonal - q0;  // row that sees the step's first key as the first one
      keep.set_rows([&](int key) { return make_uint2(rows_from(first + key), rows_from(first + key + 1)); });
    } else if (step.tile.payload >= 0) {
      set_bits(step);
    } else {
      int2 const* const g_spans = mask.spans() + step.walked0;
      keep.set_rows([&](int key) { return rows_in_spans<0>(g_spans + key, mask.p.k_padded, mask.p.n_spans, q0); });
    }
  }

  // Bit b of word w of a bit tile's row is key 32 * w + b.
  __device__ __forceinline__ void set_bits(WarpStep const& step) {
    constexpr int kTileWords = Cfg::kBc / 32;
    i64 const row0 = static_cast<i64>(step.tile.payload) * Cfg::kBr + step.row0;
    u32 const* const g_words = step.mask.p.lists.bit_tiles + row0 * kTileWords + step.column0 / 32;
#pragma unroll
    for (int m = 0; m < Weights::kTilesM; ++m) {
      keep.bits[m][0] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int w = 0; w < Weights::kCols / 32; ++w) {
          u32 const pairs = g_words[Weights::row(m, h) * kTileWords + w] >> Weights::col(0, 0);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            u32 const four = (pairs >> e & 0x01010101u) * 0x01020408u >> 24;  // bit 0 of each byte, gathered
            keep.bits[m][0] |= four << (16 * e + 8 * h + 4 * w);
          }
        }
      }
    }
  }

  __device__ __forceinline__ bool is_anything() const {
    constexpr u32 kUsed = 0x01010101u * ((1u << Weights::kBlocks) - 1);
    u32 any = 0;
#pragma unroll
    for (int m = 0; m < Weights::kTilesM; ++m) any |= keep.bits[m][0];
    return __any_sync(0xffffffffu, any & kUsed);
  }

  __device__ __forceinline__ void apply(Weights& weights) const {
#pragma unroll
    for (int m = 0; m < Weights::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 2 * Weights::kBlocks; ++i) {
        int const j = i / 2, h = i % 2;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& weight = weights.x[m][4 * j + 2 * h + e];
          weight = keep.bits[m][0] & 1u << (16 * e + 8 * h + j) ? weight : 0.f;
        }
      }
    }
  }
};

}  // namespace omni
