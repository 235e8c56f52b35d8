// The entries of a block row: kinds of tiles, the flags beside them, and the walk from tile to tile.
#pragma once

#include "omni/params.cuh"

namespace omni {

// Kinds as BlockMask has them, and flags that order.py sets beside them: the tile holds dead keys; none of the query
// rows 64 * g to 64 * g + 63 of the block sees a key of it (bit kSkipShift + g, g < 3; never of a tile with dead keys);
// the block row has FULL tiles of 64 keys before this one, so that rows may be rescaled lazily (softmax.cuh).
constexpr int kFull = 1;
constexpr int kCausal = 2;
constexpr int kPartial = 3;
constexpr int kKindMask = 3;
constexpr int kDeadFlag = 4;
constexpr int kSkipShift = 3;
constexpr int kLazyFlag = 64;

// One tile to walk.
struct Tile {
  alignas(16) int packed;  // kind and flags in the low 8 bits, number of keys that exist above
  int payload;             // of a PARTIAL tile: -1 = spans, else the index of its bit tile
  int first;               // key, in tokens
  int unskipped;           // entries from this one on, up to the first that has a skip flag

  __device__ __forceinline__ int kind() const { return packed & kKindMask; }
  __device__ __forceinline__ bool has_dead() const { return packed & kDeadFlag; }
  __device__ __forceinline__ bool allows_lazy() const { return packed & kLazyFlag; }
  __device__ __forceinline__ bool is_skipped(int group) const { return packed >> (kSkipShift + group) & 1; }
  __device__ __forceinline__ int length() const { return packed >> 8; }
};

// Walks entries. One is read a tile before it is needed, so that it is not waited for.
struct EntryWalk {
  int index, end;
  Tile next;

  __device__ __forceinline__ EntryWalk(BlockLists const& lists, int first, int stop) : index(first), end(stop) {
    if (index < end) fetch(lists);
  }

  __device__ __forceinline__ bool has_next() const { return index < end; }

  // Tiles from the cursor on.
  __device__ __forceinline__ int left() const { return end - index; }

  // The tile at the cursor.
  __device__ __forceinline__ Tile peek() const { return next; }

  // The tile at the cursor; moves the cursor on.
  __device__ __forceinline__ Tile take(BlockLists const& lists) {
    Tile const tile = next;
    if (++index < end) fetch(lists);
    return tile;
  }

 private:
  __device__ __forceinline__ void fetch(BlockLists const& lists) {
    int4 const entry = lists.entries[index];
    next = Tile{entry.x, entry.y, entry.z, entry.w};
  }
};

}  // namespace omni
