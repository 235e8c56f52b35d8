// The launch ABI of the backward pass: one struct for all of its kernels. params.py packs the same fields in the same
// order, without the nesting.
#pragma once

#include "omni/params.cuh"

namespace omni {

// `p` is what the forward pass got, and what it left: `out`, and `lse` in natural logarithms, never null. p.lists: by
// block rows for dQ; by key blocks for dK and dV, where an entry names queries in place of keys, parts begin with
// {first key, ...}, bit tiles are (kBc, kBr / 32), a word being 32 queries of a key, and q_blocks counts key blocks.
struct BackwardParams {
  ForwardParams p;

  void const* dout;   // as out; any strides, dout_column along the columns
  float const* dlse;  // (batch, q_heads, q_len), contiguous; null where lse has no gradient

  // Left by the kernel that prepares, (batch, q_heads, q_padded): lse * log2(e), or as lse2.cuh says; or +inf for rows
  // that see no key and for rows past q_len, whose weights come out as 0; and rowsum(dO * O) - dlse, or 0 for these.
  // With sink logits lse is that of the keys and the sink together, and dlse is divided by the keys' share of the
  // weights.
  float* lse2;
  float* delta;

  void* dq;  // as q
  void* dk;  // as k
  void* dv;  // as v

  // Copies that are compact and hold zeros where nothing is seen, for the kernels that follow; null where the array
  // serves as it is.
  void* q_copy;
  void* dout_copy;
  void* k_copy;
  void* v_copy;
  u32 const* dead_rows;  // (mask_batch, q_padded / 32): rows that see no key; null where every row sees one

  Strides dout_strides, dq_strides, dk_strides, dv_strides;
  i64 dout_column;
  int q_padded, kv_heads;

  float* sink_sums;     // of each block of the kernel that prepares, what its rows add to - dsink_logits; null for none
  float* dsink_logits;  // (q_heads,)

  // Where the kernel of all gradients finishes dq, the one that prepares writes zeros for it: to the turns of sums, and to
  // rows of dq that dead_rows names. n_cleared: turns; 0 elsewhere.
  int* cleared;
  int n_cleared;

  __device__ __forceinline__ Tensor gradient_of_out() const { return Tensor{dout, dout_strides}; }

  // Where the statistics of a head begin.
  __device__ __forceinline__ i64 statistics(int batch, int head) const {
    return (static_cast<i64>(batch) * p.q_heads + head) * q_padded;
  }
};

}  // namespace omni
