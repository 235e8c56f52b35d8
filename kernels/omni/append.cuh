// New keys and values for caches: what a launch passes, and where a token goes. A cache without pages is a pool with
// one page a sequence.
#pragma once

#include "omni/pages.cuh"

namespace omni {

struct AppendParams {
  void const* k_new;  // (batch, kv_heads, tokens, head_dim), with slots (1, kv_heads, tokens, head_dim)
  void const* v_new;  // the same with value_dim columns, as v has them
  void* k;            // (pages, kv_heads, page_size, head_dim)
  void* v;
  int const* lengths;     // (batch,): keys of each sequence, the new ones among them; not read where there are slots
  int const* page_table;  // null where page b is that of sequence b
  void const* slots;      // (tokens,): page * page_size + row, below 0 for a token that is left out; null for none
  Strides k_new_strides, v_new_strides, k_strides, v_strides;
  int batch, kv_heads, tokens, head_dim, value_dim;
  int page_next, pages, page_size;
  int capacity;    // keys that a sequence may have
  int wide_slots;  // slots have 64 bits
};

// What a thread writes: columns 8 * chunk to 8 * chunk + 7 of a new token of a head, as a row of a page.
struct Place {
  int chunk, head, token, sequence;
  int page, row;
};

// Where a token goes: `pages` for nowhere.
__device__ __forceinline__ int place_of(AppendParams const& p, int sequence, int token, int& row) {
  if (p.slots != nullptr) {
    i64 const slot = p.wide_slots ? static_cast<i64 const*>(p.slots)[token] : static_cast<int const*>(p.slots)[token];
    if (slot < 0 || slot >= static_cast<i64>(p.pages) * p.page_size) return p.pages;
    row = static_cast<int>(slot % p.page_size);
    return static_cast<int>(slot / p.page_size);
  }
  int const length = p.lengths[sequence];
  int const position = length - p.tokens + token;
  if (position < 0 || length > p.capacity) return p.pages;
  row = position;
  if (p.page_table == nullptr) return sequence;
  return PageTable{p.page_table, p.page_next, p.pages, p.page_size}.page_of(sequence, position, row);
}

// Calls write(place) in thread `index` of the grid, where it writes something.
template <class Write>
__device__ __forceinline__ void at_place(AppendParams const& p, i64 index, Write const& write) {
  int const chunks = max(p.head_dim, p.value_dim) / 8;
  int const chunk = static_cast<int>(index % chunks);
  int const head = static_cast<int>(index / chunks % p.kv_heads);
  int const token = static_cast<int>(index / chunks / p.kv_heads % p.tokens);
  int const sequence = static_cast<int>(index / chunks / p.kv_heads / p.tokens);
  if (sequence >= p.batch) return;
  int row;
  int const page = place_of(p, sequence, token, row);
  if (page == p.pages) return;
  write(Place{chunk, head, token, sequence, page, row});
}

}  // namespace omni
