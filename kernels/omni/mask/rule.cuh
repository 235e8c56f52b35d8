// The element rule of a mask: which rows see a key, by spans, by the diagonal, or by bits.
#pragma once

#include "omni/entries.cuh"

namespace omni {

// What the element rule of one mask reads. Pointers are worked out where they are used: registers are dearer.
struct MaskView {
  ForwardParams const& p;
  int const index;  // of the mask

  __device__ __forceinline__ int2 const* spans() const {
    return p.lists.spans + static_cast<i64>(index) * p.n_spans * p.k_padded;
  }

  // Bits of the keys from `key` on, a multiple of 32, that no row sees.
  __device__ __forceinline__ u32 const* dead_words(int key) const {
    return p.lists.dead + static_cast<i64>(index) * (p.k_padded / 32) + key / 32;
  }
};

// Rows of a strip of 32 from `first` on, as bits: all of them for first <= 0, none for first >= 32 (PTX shl clamps).
__device__ __forceinline__ u32 rows_from(int first) {
  u32 rows;
  asm("shl.b32 %0, %1, %2;" : "=r"(rows) : "r"(0xffffffffu), "r"(max(first, 0)));
  return rows;
}

// Rows q0 ... that see two neighbouring keys in one span each. span: {first token, number of tokens} of both keys.
// heads: rows that a token has, one below the other.
__device__ __forceinline__ uint2 rows_in_span(int2 const* span, int q0, int heads = 1) {
  int4 const two = *reinterpret_cast<int4 const*>(span);
  int const first = two.x * heads - q0, second = two.z * heads - q0;
  return make_uint2(
      rows_from(first) & ~rows_from(first + two.y * heads), rows_from(second) & ~rows_from(second + two.w * heads));
}

// The same in all spans of the keys, of which there is at least one. next: from one span of a key to its next one.
// kMost: their number is at most this, and no loop is left; 0: any number.
template <int kMost>
__device__ __forceinline__ uint2 rows_in_spans(int2 const* spans, int next, int n_spans, int q0, int heads = 1) {
  uint2 rows = rows_in_span(spans, q0, heads);
  auto const join = [&](int i) {
    uint2 const more = rows_in_span(spans + i * next, q0, heads);
    rows.x |= more.x;
    rows.y |= more.y;
  };
  if constexpr (kMost > 0) {
#pragma unroll
    for (int i = 1; i < kMost; ++i) {
      if (i < n_spans) join(i);
    }
  } else {
#pragma unroll 1
    for (int i = 1; i < n_spans; ++i) join(i);
  }
  return rows;
}

// Spans of a tile that the kernels bring to shared memory with K; masks with more spans a key read them from global
// memory.
constexpr int kSmemSpans = 2;

// Do the spans of the tile travel with its keys?
__device__ __forceinline__ bool spans_travel(ForwardParams const& p, Tile const& tile) {
  return tile.kind() == kPartial && p.n_spans != 0 && p.n_spans <= kSmemSpans;
}

}  // namespace omni
