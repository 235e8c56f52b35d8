// The element rule inside CAUSAL and PARTIAL tiles. Scores are set to -inf by select, never by addition.
#pragma once

#include "omni/convert.cuh"
#include "omni/tile.cuh"
#include "omni/visit.cuh"

namespace omni {

// What the element rule of one mask reads. Pointers are worked out where they are used: registers are dearer.
struct MaskView {
  AttnParams const& p;
  int const block_row;

  __device__ __forceinline__ int2 const* spans() const {
    return p.spans + static_cast<i64>(mask_of(p, block_row)) * p.n_spans * p.k_padded;
  }

  __device__ __forceinline__ bool is_dead(int key) const {
    return p.dead[static_cast<i64>(mask_of(p, block_row)) * (p.k_padded / 32) + key / 32] >> (key % 32) & 1;
  }
};

// q inside [start, start + count), in one unsigned comparison.
__device__ __forceinline__ bool in_span(int q, int start, int count) {
  return static_cast<u32>(q - start) < static_cast<u32>(count);
}

// Which elements of a register tile are kept: of the row (m, h), bit 2 * j + e of the words stands for column
// col(j, e), 16 blocks of 8 columns a word. All element rules fill this, one loop applies it.
template <class Scores>
struct KeepBits {
  static constexpr int kWords = (Scores::kBlocks + 15) / 16;
  u32 bits[Scores::kTilesM][2][kWords];

  // Key k of the tile is seen by row q iff k <= q + diagonal. q0: token of the register tile's row 0.
  __device__ __forceinline__ void set_causal(MaskView const& mask, int q0, int k0) {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // Columns up to and with `last` are seen, counted from the lane's own first column.
        int const last = q0 + Scores::row(m, h) + mask.p.diagonal - k0 - Scores::col(0, 0);
        int const kept = last < 0 ? 0 : last / 8 * 2 + min(last % 8 + 1, 2);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          int const here = kept - 32 * w;
          bits[m][h][w] = here >= 32 ? 0xffffffffu : here <= 0 ? 0u : (1u << here) - 1;
        }
      }
    }
  }

  // Each key is seen by the rows of its spans. spans: those of the tile's first key; next: from one span of a key to
  // its next one.
  __device__ __forceinline__ void set_spans(int2 const* spans, int next, int n_spans, int q0) {
#pragma unroll
    for (int i = 0; i < Scores::kTilesM * 2 * kWords; ++i) (&bits[0][0][0])[i] = 0;
    spans += Scores::col(0, 0);
    for (int i = 0; i < n_spans; ++i, spans += next) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
#pragma unroll(Scores::kTilesM == 1 ? 4 : 1)  // two m16 tiles leave few registers
        for (int j = 0; j < min(16, Scores::kBlocks - 16 * w); ++j) {
          int4 const two = *reinterpret_cast<int4 const*>(spans + 8 * (16 * w + j));  // {start, count} of two keys
#pragma unroll
          for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              int const q = q0 + Scores::row(m, h);
              u32 const pair = (in_span(q, two.x, two.y) ? 1u : 0u) | (in_span(q, two.z, two.w) ? 2u : 0u);
              bits[m][h][w] |= pair << (2 * j);
            }
          }
        }
      }
    }
  }

  // Bit b of word w of a bit tile's row is key 32 * w + b. row0: row of the tile at the register tile's row 0.
  template <int kBr>
  __device__ __forceinline__ void set_bit_tile(u32 const* bit_tiles, int payload, int row0) {
    constexpr int kTileWords = Scores::kCols / 32;
    u32 const* tile = bit_tiles + static_cast<i64>(payload) * kBr * kTileWords;
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        u32 const* words = tile + (row0 + Scores::row(m, h)) * kTileWords;
#pragma unroll
        for (int w = 0; w < kWords; ++w) bits[m][h][w] = 0;
#pragma unroll
        for (int w = 0; w < kTileWords; ++w) {
          u32 pairs = words[w] >> Scores::col(0, 0) & 0x03030303u;  // the lane's two columns of four blocks
          pairs = (pairs | pairs >> 6) & 0x000f000fu;
          bits[m][h][w / 4] |= ((pairs | pairs >> 12) & 0xffu) << (8 * (w % 4));
        }
      }
    }
  }

  __device__ __forceinline__ void apply(Scores& scores) const {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores.x[m][4 * j + i];
          score = bits[m][i / 2][j / 16] >> (2 * (j % 16) + i % 2) & 1 ? score : neg_inf();
        }
      }
    }
  }
};

// Spans of a tile that the kernels bring to shared memory with K; masks with more spans a key read them from global
// memory.
constexpr int kSmemSpans = 2;

// Do the spans of the tile travel with its keys?
__device__ __forceinline__ bool spans_travel(AttnParams const& p, KeyTile const& tile) {
  return tile.kind() == kPartial && p.n_spans != 0 && p.n_spans <= kSmemSpans;
}

// A tile as one warp sees it. row0: the warp's first row in the tile. s_spans: (kSmemSpans, kBc) spans of the tile in
// shared memory, or null.
struct WarpTile {
  MaskView const& mask;
  KeyTile const& keys;
  int row0;
  int2 const* s_spans;
};

template <int kBr, class Scores>
__device__ __forceinline__ void mask_tile(Scores& scores, WarpTile const& warp) {
  MaskView const& mask = warp.mask;
  KeyTile const& tile = warp.keys;
  int const q0 = first_query<kBr>(mask.p, mask.block_row) + warp.row0;
  KeepBits<Scores> keep;
  if (tile.kind() == kCausal) {
    keep.set_causal(mask, q0, tile.k0);
  } else if (int const payload = tile.payload(mask.p); payload < 0) {
    bool const here = warp.s_spans != nullptr && spans_travel(mask.p, tile);
    int2 const* const spans = here ? warp.s_spans : mask.spans() + tile.k0;
    keep.set_spans(spans, here ? Scores::kCols : mask.p.k_padded, mask.p.n_spans, q0);
  } else {
    keep.template set_bit_tile<kBr>(mask.p.bit_tiles, payload, warp.row0);
  }
  keep.apply(scores);
}

}  // namespace omni
