// The launch ABI: one struct by value. omnicupy/launch.py packs the same fields in the same order; the entry files
// compare the sizes at compile time.
#pragma once

namespace omni {

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct AttnParams {
  void const* q;  // (batch, q_heads, q_len, head_dim)
  void const* k;  // (batch, kv_heads, k_len, head_dim)
  void const* v;
  void* out;   // as q
  float* lse;  // (batch, q_heads, q_len), contiguous; null when not wanted

  // The block mask (omnicupy/packing.py). Block row b * q_blocks + i is query block i of mask b.
  int const* row_offsets;  // (mask_batch * q_blocks + 1): where the entries of each block row start
  int4 const* entries;     // {kind | flags | keys << 8, payload, first key, common}
  int4 const* parts;       // {first query, mask, first entry, end entry}: what is worked on, longest first
  u32 const* bit_tiles;    // (tiles, kBr, kBc / 32)
  int2 const* spans;       // (mask_batch, n_spans, k_padded): {first visible row, number of rows} of each key
  u32 const* dead;         // (mask_batch, k_padded / 32): keys that no row sees

  i64 q_strides[3];  // batch, head, token; in elements
  i64 k_strides[3];
  i64 v_strides[3];
  i64 out_strides[3];

  float scale;       // of the scores
  float scale_log2;  // scale * log2(e)
  int q_len, k_len, head_dim;
  int batch, q_heads, group;  // group = q_heads / kv_heads
  int q_blocks, mask_batch, diagonal;
  int n_spans, k_padded;
  int section;        // heads that share L2 before the next parts of other heads start
  int tiers[4];  // where each tier of parts ends
};

}  // namespace omni
