// Which query block, head and batch element a thread block works on, and its walk over that block row's entries.
#pragma once

#include "omni/config.cuh"

namespace omni {

struct WorkItem {
  int q0;    // token of the first query
  int mask;  // index of the mask
  int batch;
  int head;
  int first, end;  // entries
  int part;        // rank among the parts
};

constexpr int kTiers = sizeof(AttnParams::tiers) / sizeof(int);

// Work index -> (tier, section of heads, part by rank, head in section). Parts of block rows come longest first. The heads
// of one section, whose K and V fit L2 together, are worked on side by side; short parts of all heads come after the long
// ones of all heads, so that what is worked on last is short. kHeads: heads that share a tile and count as one; the first
// is returned.
template <int kHeads = 1>
__device__ __forceinline__ WorkItem work_item(AttnParams const& p, int index) {
  int const of_batch = p.q_heads / kHeads;
  int const heads = of_batch * (p.batch / p.mask_batch);
  int first = 0, end = p.tiers[0];
#pragma unroll
  for (int i = 0; i < kTiers - 1; ++i) {
    if (index >= heads * p.tiers[i]) {
      first = p.tiers[i];
      end = p.tiers[i + 1];
    }
  }
  index -= heads * first;
  int const parts = end - first;
  int const section = index / (parts * p.section);
  int const width = min(p.section, heads - section * p.section);
  int const rest = index - section * parts * p.section;
  int const rank = rest / width;
  int const head = section * p.section + rest - rank * width;
  int4 const part = p.parts[first + rank];
  WorkItem work;
  work.q0 = part.x;
  work.mask = part.y;
  work.batch = p.mask_batch == 1 ? head / of_batch : part.y;
  work.head = kHeads * (p.mask_batch == 1 ? head % of_batch : head);
  work.first = part.z;
  work.end = part.w;
  work.part = first + rank;
  return work;
}

// blockIdx.x, hidden from the optimiser: what is worked out from it again at the end was not kept in registers.
__device__ __forceinline__ int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// One tile of keys to visit, as packing.py lays it out.
struct KeyTile {
  alignas(16) int packed;  // entry kind and flags in the low 8 bits, number of keys that exist above
  int payload;             // of a PARTIAL tile: -1 = spans, else the index of its bit tile
  int k0;                  // first key, in tokens
  int common;              // entries from this one on, up to the first that has a skip flag

  __device__ __forceinline__ int kind() const { return packed & kKindMask; }
  __device__ __forceinline__ bool has_dead() const { return packed & kDeadFlag; }
  __device__ __forceinline__ bool may_stand() const { return packed & kStandsFlag; }
  __device__ __forceinline__ bool is_skipped(int group) const { return packed >> (kSkipShift + group) & 1; }
  __device__ __forceinline__ int length() const { return packed >> 8; }
};

// Walks entries. One is read a tile before it is needed, so that it is not waited for.
struct Visit {
  int index, end;
  KeyTile next;

  __device__ __forceinline__ Visit(AttnParams const& p, int first, int stop) : index(first), end(stop) {
    if (index < end) fetch(p);
  }

  __device__ __forceinline__ bool has_next() const { return index < end; }

  // Tiles from the cursor on.
  __device__ __forceinline__ int left() const { return end - index; }

  // The tile at the cursor.
  __device__ __forceinline__ KeyTile peek() const { return next; }

  // The tile at the cursor; moves the cursor on.
  __device__ __forceinline__ KeyTile take(AttnParams const& p) {
    KeyTile const tile = next;
    if (++index < end) fetch(p);
    return tile;
  }

 private:
  __device__ __forceinline__ void fetch(AttnParams const& p) {
    int4 const entry = p.entries[index];
    next = KeyTile{entry.x, entry.y, entry.z, entry.w};
  }
};

}  // namespace omni
