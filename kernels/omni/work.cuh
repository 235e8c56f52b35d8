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

// Query heads of a batch element, those that share a tile counted as one: kHeads of a group, or where they are packed
// as many as the parameters say.
template <int kHeads, bool kPack>
__device__ __forceinline__ int tile_heads(ForwardParams const& p) {
  return kPack ? p.q_heads / p.group * p.packs : p.q_heads / kHeads;
}

// The first query head of such a tile.
template <int kHeads, bool kPack>
__device__ __forceinline__ int first_head(ForwardParams const& p, int of_tile) {
  if constexpr (!kPack) return of_tile * kHeads;
  int const kv_head = of_tile / p.packs;
  return kv_head * p.group + (of_tile - kv_head * p.packs) * p.pack_heads;
}

// The same for query heads; the first of those that share a tile is returned.
template <int kHeads = 1, bool kPack = false>
__device__ __forceinline__ WorkItem work_item(ForwardParams const& p, int index) {
  WorkItem work = work_item_among(p, tile_heads<kHeads, kPack>(p), index);
  work.head = first_head<kHeads, kPack>(p, work.head);
  return work;
}

// blockIdx.x, hidden from the optimiser: what is worked out from it again at the end was not kept in registers.
__device__ __forceinline__ int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

}  // namespace omni
