// Which query block, head and batch element a thread block works on, and its walk over that block row's entries.
#pragma once

#include "omni/config.cuh"

namespace omni {

struct WorkItem {
  int block_row;  // row of the stacked block mask
  int batch;
  int head;
};

// Index of the mask that a block row belongs to, and the token of the block row's first query. Worked out where they
// are used: registers are dearer.
__device__ __forceinline__ int mask_of(AttnParams const& p, int block_row) { return block_row / p.q_blocks; }

template <int kBr>
__device__ __forceinline__ int first_query(AttnParams const& p, int block_row) {
  return (p.mask_batch == 1 ? block_row : block_row % p.q_blocks) * kBr;
}

// Work index -> (section of heads, block row by rank, head in section): block rows come longest first, and the heads
// of one section, whose K and V fit L2 together, are worked on side by side.
__device__ __forceinline__ WorkItem work_item(AttnParams const& p, int index) {
  int const rows = p.mask_batch * p.q_blocks;
  int const heads = p.q_heads * (p.batch / p.mask_batch);
  int const section = index / (rows * p.section);
  int const width = min(p.section, heads - section * p.section);
  int const rest = index - section * rows * p.section;
  int const rank = rest / width;
  int const head = section * p.section + rest - rank * width;
  WorkItem work;
  work.block_row = p.order[rank];
  work.batch = p.mask_batch == 1 ? head / p.q_heads : mask_of(p, work.block_row);
  work.head = p.mask_batch == 1 ? head % p.q_heads : head;
  return work;
}

// blockIdx.x, hidden from the optimiser: what is worked out from it again at the end was not kept in registers.
__device__ __forceinline__ int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// One tile of keys to visit, in three registers; they are live through the whole step, beside S and O.
struct KeyTile {
  int packed;  // entry kind and flag in the low 8 bits, number of keys that exist above
  int k0;      // first key, in tokens
  int entry;   // where the entry stands in the block mask

  __device__ __forceinline__ int kind() const { return packed & kKindMask; }
  __device__ __forceinline__ bool has_dead() const { return packed & kDeadFlag; }
  __device__ __forceinline__ int length() const { return packed >> 8; }

  // Of a PARTIAL tile: -1 = spans, else the index of its bit tile.
  __device__ __forceinline__ int payload(AttnParams const& p) const { return p.entries[entry].y; }
};

// Walks the entries of one block row. Entries are read two tiles and pieces one tile before they are needed, so that
// neither of the two dependent loads is waited for.
struct Visit {
  int index, end;
  int next_kind, next_piece;  // of the entry after the one in `piece`
  int kind;
  int2 piece;

  __device__ __forceinline__ Visit(AttnParams const& p, int block_row) {
    index = p.row_offsets[block_row];
    end = p.row_offsets[block_row + 1];
    if (index < end) {
      fetch_entry(p, index);
      fetch_piece(p);
    }
  }

  __device__ __forceinline__ bool has_next() const { return index < end; }

  // The tile at the cursor.
  __device__ __forceinline__ KeyTile peek() const { return KeyTile{kind | piece.y << 8, piece.x, index}; }

  // The tile at the cursor; moves the cursor on.
  __device__ __forceinline__ KeyTile take(AttnParams const& p) {
    KeyTile const tile = peek();
    if (++index < end) fetch_piece(p);
    return tile;
  }

 private:
  __device__ __forceinline__ void fetch_entry(AttnParams const& p, int at) {
    int4 const entry = p.entries[at];
    next_kind = entry.x;
    next_piece = entry.z;
  }

  // The piece of the entry at `index`, whose entry is here; then the entry after it.
  __device__ __forceinline__ void fetch_piece(AttnParams const& p) {
    kind = next_kind;
    piece = p.pieces[next_piece];
    if (index + 1 < end) fetch_entry(p, index + 1);
  }
};

}  // namespace omni
