// From a work index to what is worked on: block row, head, batch element, and the tiles of the block row.
#pragma once

#include "omni/params.cuh"

namespace omni {

struct WorkItem {
  int q0;    // token of the first query
  int mask;  // index of the mask
  int batch;
  int head;
  int first;  // entry
  int tiles;  // from the entry's first one on
  int part;   // rank among the parts
};

constexpr int kTiers = sizeof(ForwardParams::tiers) / sizeof(int);

// Index among the items of the parts `first` to `end` -> (section of heads, part by rank, head in section).
__device__ __forceinline__ WorkItem work_item_of(ForwardParams const& p, int of_batch, int first, int end, int index) {
  int const heads = of_batch * (p.batch / p.mask_batch);
  int const parts = end - first;
  int const section = index / (parts * p.section);
  int const width = min(p.section, heads - section * p.section);
  int const rest = index - section * parts * p.section;
  int const rank = rest / width;
  int const head = section * p.section + rest - rank * width;
  int4 const part = p.lists.parts[first + rank];
  WorkItem work;
  work.q0 = part.x;
  work.mask = part.y;
  work.batch = p.mask_batch == 1 ? head / of_batch : part.y;
  work.head = p.mask_batch == 1 ? head % of_batch : head;
  work.first = part.z;
  work.tiles = part.w;
  work.part = first + rank;
  return work;
}

// Work index -> (tier, section of heads, part by rank, head in section). Parts of block rows come longest first. The
// heads of one section, whose K and V fit L2 together, are worked on side by side; short parts of all heads come
// after the long ones of all heads, so that what is worked on last is short. of_batch: heads of a batch element.
__device__ __forceinline__ WorkItem work_item_among(ForwardParams const& p, int of_batch, int index) {
  int const heads = of_batch * (p.batch / p.mask_batch);
  int first = 0, end = p.tiers[0];
#pragma unroll
  for (int i = 0; i < kTiers - 1; ++i) {
    if (index >= heads * p.tiers[i]) {
      first = p.tiers[i];
      end = p.tiers[i + 1];
    }
  }
  return work_item_of(p, of_batch, first, end, index - heads * first);
}

// The same for query heads. kHeads: heads that share a tile and count as one; the first is returned.
template <int kHeads = 1>
__device__ __forceinline__ WorkItem work_item(ForwardParams const& p, int index) {
  WorkItem work = work_item_among(p, p.q_heads / kHeads, index);
  work.head *= kHeads;
  return work;
}

// blockIdx.x, hidden from the optimiser: what is worked out from it again at the end was not kept in registers.
__device__ __forceinline__ int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

}  // namespace omni
