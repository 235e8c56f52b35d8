// The launch ABI: structs that kernels take by value. params.py packs the same fields in the same order, without the
// nesting; the entry files compare the sizes at compile time.
#pragma once

namespace omni {

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// Steps from one element to the next along an axis, in elements. Along the columns it is 1.
struct Strides {
  i64 batch, head, token;
};

// A tensor of 16-bit elements, (batch, heads, tokens, columns).
struct Tensor {
  void const* data;
  Strides const& strides;

  // Where the rows of a head begin.
  __device__ __forceinline__ unsigned char const* rows(int batch, int head) const {
    return static_cast<unsigned char const*>(data) + 2 * (batch * strides.batch + head * strides.head);
  }

  __device__ __forceinline__ unsigned char const* row(int batch, int head, int token) const {
    return static_cast<unsigned char const*>(data) +
           2 * (batch * strides.batch + head * strides.head + token * strides.token);
  }
};

// The block mask: for each block row the tiles that are to be visited, and what the element rule reads.
struct BlockLists {
  // (mask_batch * q_blocks + 1): where the entries of each block row start; row b * q_blocks + i is block i of mask b.
  int const* row_offsets;
  int4 const* entries;   // {kind | flags | keys << 8, payload, first key, unskipped}: a tile, or a run of FULL ones
  int4 const* parts;     // {first query, mask, first entry, tiles}: what is worked on, longest first
  u32 const* bit_tiles;  // (tiles, kBr, kBc / 32)
  // Of the keys of listed tiles; the pointers are those of key 0, which may lie before the memory that there is.
  int2 const* spans;  // (mask_batch, n_spans, k_padded): {first visible row, number of rows} of each key
  u32 const* dead;    // (mask_batch, k_padded / 32): keys that no row sees
};

struct ForwardParams {
  void const* q;  // (batch, q_heads, q_len, head_dim)
  void const* k;  // (batch, kv_heads, k_len, head_dim)
  void const* v;  // (batch, kv_heads, k_len, value_dim)
  void* out;      // (batch, q_heads, q_len, value_dim)
  float* lse;     // (batch, q_heads, q_len), contiguous; null when not wanted

  BlockLists lists;

  Strides q_strides, k_strides, v_strides, out_strides;

  float scale;       // of the scores; where they are capped that of their tanh, softcap (not in the backward pass)
  float scale_log2;  // that factor * log2(e), in both passes
  int q_len, k_len, head_dim;
  int batch, q_heads, group;  // group = q_heads / kv_heads
  int q_blocks, mask_batch, diagonal;
  int n_spans, k_padded;
  int section;   // heads that share L2 before the next parts of other heads start
  int tiers[4];  // where each tier of parts ends

  // Of kernels that pack query heads of a group into the rows of a tile: row r is token r / pack_heads of the tile and
  // head r % pack_heads of the pack; rows from pack_tokens * pack_heads on are of no token.
  int pack_heads, pack_tokens;
  int packs;      // that the heads of a group make; of one token each where there is more than one
  int part_rows;  // for which a part of a split block row has room, an even number

  float const* sink_logits;  // (q_heads,): one more logit of each row of a head, without a value; null for none
  float tanh_scale;          // where scores are capped: scale / softcap
  int value_dim;             // columns of v and out

  __device__ __forceinline__ Tensor query() const { return Tensor{q, q_strides}; }
  __device__ __forceinline__ Tensor key() const { return Tensor{k, k_strides}; }
  __device__ __forceinline__ Tensor value() const { return Tensor{v, v_strides}; }
};

// Columns of v and out. Kernels whose values are as wide as keys take tensors of one width alone, and read one number.
template <class Cfg>
__device__ __forceinline__ int value_columns(ForwardParams const& p) {
  return Cfg::kValueDim == Cfg::kHeadDim ? p.head_dim : p.value_dim;
}

}  // namespace omni
