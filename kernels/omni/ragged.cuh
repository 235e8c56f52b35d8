// Rows of all sequences one behind the other, as many as each sequence has: q is (1, heads, rows of all, head_dim) to
// kernels, and a part's first query is a row among all. A tile may reach into the rows of the sequences behind, which
// are worked on and left out of what is written.
#pragma once

#include "omni/pages.cuh"

namespace omni {

struct RaggedParams : PagedParams {
  int2 const* row_ranges;  // (sequences,): {first row, row behind the last one}, written by the planner
};

template <bool kPaged>
struct ForwardParamsOf<kPaged, true> {
  using Type = RaggedParams;
};

// The row behind a sequence's last one. Params: RaggedParams, or what is derived from its counterpart.
template <class Cfg, class Ragged, class Params>
__device__ __forceinline__ int row_stop(Params const& params, int q_len, int sequence) {
  if constexpr (Cfg::kRagged) return static_cast<Ragged const&>(params).row_ranges[sequence].y;
  return q_len;
}

// The batch element of q, out and lse.
template <class Cfg>
__device__ __forceinline__ int query_batch(int batch) {
  return Cfg::kRagged ? 0 : batch;
}

}  // namespace omni
