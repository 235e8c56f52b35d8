// What the planner of calls on caches is launched with: lengths and the rule, and the block lists that it writes, which
// forward kernels then read as those of any mask (BlockLists), one mask a sequence. params.py packs the same fields.
#pragma once

#include "omni/params.cuh"

namespace omni {

struct PlanParams {
  int const* lengths;  // (batch,): keys of each sequence
  // A tail's masks, (masks, q_len, tail_words): bit b of word w is key 32 * w + b of the last q_len; null for causal.
  u32 const* tail;
  u32 const* tail_any;  // (masks, q_blocks + 1, tail_words): keys that some row of the block sees; last, of all blocks
  u32 const* tail_all;  // (masks, q_blocks, tail_words): keys that every row of the block sees

  int* row_offsets;  // (rows + 1,), written where parts stay in order
  int4* entries;     // (most_parts, most_entries)
  int4* parts;       // (most_parts,)
  int4* splits;      // (most_parts,)
  u32* bit_tiles;    // (rows, most_partial, br, bc / 32)
  u32* dead;         // (batch, k_padded / 32)
  int* n_parts;      // how many of the parts there are

  float item, leave;  // what a part costs beside its tiles, and what a part of a split row does, in tiles
  float of_key;       // of a tile: 1 / bc
  int batch, q_len, q_blocks, capacity;
  int br, bc, k_padded;
  int window, sink;            // window: 0 where all is seen
  int tail_masks, tail_words;  // masks: 1 or one a sequence
  int most_entries, most_partial;
  int in_order;  // parts are whole rows, in their order
  int heads;     // of a sequence; those that share a tile count as one
  int sm_count, split_slots;
  int split_tiles;  // of each part but the last one of a row; 0 where the planner finds out what ends soonest
  int most_cuts, least_tiles;
};

// Where sequences have numbers of rows of their own; q_len is the most of them then. Whether they have, kRaggedRows, is
// said by the entry file ahead of this one.
struct RaggedPlanParams : PlanParams {
  int const* row_starts;  // (batch + 1,): the first row of each sequence among all, and the row behind the last one
  int2* row_ranges;       // (batch,): {first row, row behind the last one}, for the kernels
  int total;              // rows that there are
};

template <bool kRagged>
struct PlanParamsOf {
  using Type = PlanParams;
};

template <>
struct PlanParamsOf<true> {
  using Type = RaggedPlanParams;
};

// {first row among all, how many} of a sequence. Bounds that are none, and more rows than may be, are no rows.
__device__ __forceinline__ int2 rows_of_sequence(PlanParams const& p, int sequence) {
  if constexpr (kRaggedRows) {
    RaggedPlanParams const& ragged = static_cast<RaggedPlanParams const&>(p);
    int const first = ragged.row_starts[sequence], stop = ragged.row_starts[sequence + 1];
    bool const legal = 0 <= first && first <= stop && stop <= ragged.total && stop - first <= p.q_len;
    return legal ? make_int2(first, stop - first) : make_int2(ragged.total, 0);
  }
  return make_int2(0, p.q_len);
}

}  // namespace omni
