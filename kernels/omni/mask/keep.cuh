// Which scores of a register tile are kept inside CAUSAL and PARTIAL tiles; its rows are queries. Scores are set to
// -inf by select, never by addition.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/numbers.cuh"
#include "omni/tile.cuh"

namespace omni {

// Transposes four 8 x 8 bit matrices at once, one a byte: bit i of lane 4 * r + c goes to bit r of lane 4 * i + c.
__device__ __forceinline__ u32 transpose_over_lanes(u32 x) {
#pragma unroll
  for (int step = 1; step <= 4; step *= 2) {
    u32 const lower = step == 1 ? 0x55555555u : step == 2 ? 0x33333333u : 0x0f0f0f0fu;  // bits that even lanes keep
    bool const odd = lane_id() / 4 & step;
    u32 const got = __shfl_xor_sync(0xffffffffu, x, 4 * step);
    u32 const keep = odd ? ~lower : lower;
    x = (x & keep) | (__funnelshift_l(got, got, odd ? 32 - step : step) & ~keep);
  }
  return x;
}

// Which elements of a register tile are kept. Bit 16 * e + 8 * h + i of the word [m][g] stands for row (m, h) and
// column col(8 * g + i, e). All element rules fill this, one loop applies it.
template <class Scores>
struct KeepBits {
  static constexpr int kGroups = (Scores::kBlocks + 7) / 8;  // of 64 columns
  u32 bits[Scores::kTilesM][kGroups];

  // First of the two neighbouring keys of a group whose rows the lane works out; the last group may be short.
  __device__ __forceinline__ static int first_key(int group) {
    int const block = 8 * group + lane_id() / 4;
    bool const short_group = Scores::kBlocks < 8 * group + 8;
    return 8 * (short_group ? min(block, Scores::kBlocks - 1) : block) + 2 * (lane_id() % 4);
  }

  // rows_of(key) -> the rows of the register tile that see the keys `key` and `key + 1` of the tile, as bits. A lane
  // asks for two keys a group and gets back the bits of its own rows for all keys.
  template <class RowsOf>
  __device__ __forceinline__ void set_rows(RowsOf const& rows_of) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint2 const rows = rows_of(first_key(g));
#pragma unroll
      for (int m = 0; m < Scores::kTilesM; ++m) {
        bits[m][g] = transpose_over_lanes(__byte_perm(rows.x, rows.y, m == 0 ? 0x5410 : 0x7632));
      }
    }
  }

  // Bit b of word w of a bit tile's row is key 32 * w + b. row_of(row): of the bit tile, for a row of the register
  // tile.  br: rows of a bit tile.
  template <class RowOf>
  __device__ __forceinline__ void set_bit_tile(u32 const* bit_tiles, int payload, int br, RowOf const& row_of) {
    constexpr int kTileWords = Scores::kCols / 32;
    u32 const* tile = bit_tiles + static_cast<i64>(payload) * br * kTileWords;
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) bits[m][g] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        u32 const* words = tile + row_of(Scores::row(m, h)) * kTileWords;
#pragma unroll
        for (int w = 0; w < kTileWords; ++w) {
          // The lane's two columns of four blocks: bits 0, 1 of each byte.
          u32 const pairs = words[w] >> Scores::col(0, 0);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            u32 const four = (pairs >> e & 0x01010101u) * 0x01020408u >> 24;  // bit 0 of each byte, gathered
            bits[m][w / 2] |= four << (16 * e + 8 * h + 4 * (w % 2));
          }
        }
      }
    }
  }

  // Does every row of the warp see every key?
  __device__ __forceinline__ bool is_everything() const {
    u32 all = 0xffffffffu;
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        constexpr int kShort = Scores::kBlocks % 8;  // blocks of a last group that is not whole
        u32 const unused = kShort != 0 && g == kGroups - 1 ? 0x01010101u * (0xffu & 0xffu << kShort) : 0;
        all &= bits[m][g] | unused;
      }
    }
    return __all_sync(0xffffffffu, all == 0xffffffffu);
  }

  // Four neighbouring bits of a byte after the other: ptxas turns them into predicates by one instruction, and four
  // leave room for those that live around this. With seven at once (bits in order) the others are worked out anew in
  // every tile, masked or not.
  __device__ __forceinline__ void apply(Scores& scores) const {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int part = 0; part < 8; part += 4) {
          u32 fours = bits[m][g] >> part;
          asm("" : "+r"(fours));  // another word: ptxas does not join the halves
#pragma unroll
          for (int e = 0; e < 2; ++e) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                if (8 * g + part + i >= Scores::kBlocks) continue;
                float& score = scores.x[m][4 * (8 * g + part + i) + 2 * h + e];
                score = fours & 1u << (16 * e + 8 * h + i) ? score : neg_inf();
              }
            }
          }
        }
      }
    }
  }
};

// A tile as one warp sees it. q0: token of the warp's first row; row0: where it stands in the tile. s_spans:
// (kSmemSpans, kBc) spans of the tile in shared memory, or null. heads: rows that a token has, one below the other, of
// `tokens` tokens; q0 then counts rows as well.
struct WarpTile {
  MaskView const& mask;
  Tile const& keys;
  int q0, row0;
  int2 const* s_spans;
  int heads = 1, tokens = 0;
};

// Finds what a tile hides, without a loop: products of the tensor cores may be under way. False for spans that have
// to be read in one: find_in_spans. kBr: 0 where tokens have several rows.
template <int kBr, class Scores>
__device__ __forceinline__ bool find_at_once(KeepBits<Scores>& keep, WarpTile const& warp) {
  MaskView const& mask = warp.mask;
  Tile const& tile = warp.keys;
  int const q0 = warp.q0;
  if (tile.kind() == kCausal) {
    // Row that sees the tile's first key as the first one.
    int const first = (tile.first - mask.p.diagonal) * warp.heads - q0;
    keep.set_rows([&](int key) {
      return make_uint2(rows_from(first + key * warp.heads), rows_from(first + (key + 1) * warp.heads));
    });
    return true;
  }
  if (tile.payload >= 0) {
    if constexpr (kBr == 0) {  // rows of no token read those of the last one
      keep.set_bit_tile(mask.p.lists.bit_tiles, tile.payload, warp.tokens, [&](int row) {
        return min((warp.row0 + row) / warp.heads, warp.tokens - 1);
      });
    } else {
      keep.set_bit_tile(mask.p.lists.bit_tiles, tile.payload, kBr, [&](int row) { return warp.row0 + row; });
    }
    return true;
  }
  if (warp.s_spans == nullptr || !spans_travel(mask.p, tile)) return false;
  keep.set_rows([&](int key) {
    return rows_in_spans<kSmemSpans>(warp.s_spans + key, Scores::kCols, mask.p.n_spans, q0, warp.heads);
  });
  return true;
}

// The same from spans in global memory, any number of them.
template <class Scores>
__device__ __forceinline__ void find_in_spans(KeepBits<Scores>& keep, WarpTile const& warp) {
  MaskView const& mask = warp.mask;
  int2 const* const g_spans = mask.spans() + warp.keys.first;
  keep.set_rows(
      [&](int key) { return rows_in_spans<0>(g_spans + key, mask.p.k_padded, mask.p.n_spans, warp.q0, warp.heads); });
}

template <int kBr, class Scores>
__device__ __forceinline__ void mask_tile(Scores& scores, WarpTile const& warp) {
  KeepBits<Scores> keep;
  if (!find_at_once<kBr>(keep, warp)) find_in_spans(keep, warp);
  if (!keep.is_everything()) keep.apply(scores);
}

}  // namespace omni
