// The entries of a block row, each a tile or a run of FULL ones: kinds, flags beside them, and the walk over the tiles.
#pragma once

#include "omni/params.cuh"

namespace omni {

// Kinds as BlockMask has them, and flags that order.py sets beside them: the tile holds dead keys; none of the query
// rows 64 * g to 64 * g + 63 of the block sees a key of it (bit kSkipShift + g, g < 3; never of a tile with dead keys);
// the part of a block row has FULL tiles of 64 keys before this entry, so that rows may be rescaled lazily
// (softmax.cuh); the entry is the last one of its part.
constexpr int kFull = 1;
constexpr int kCausal = 2;
constexpr int kPartial = 3;
constexpr int kKindMask = 3;
constexpr int kDeadFlag = 4;
constexpr int kSkipShift = 3;
constexpr int kLazyFlag = 64;
constexpr int kLastFlag = 128;

// One tile to walk, or an entry: a tile or a run of neighbouring FULL ones with the same flags.
struct Tile {
  alignas(16) int packed;  // kind and flags in the low 8 bits, above them the number of keys that exist: of a tile in a
                           // run, of it and of those behind it
  int payload;             // of a PARTIAL tile: -1 = spans, else the index of its bit tile
  int first;               // key, in tokens

  __device__ __forceinline__ int kind() const { return packed & kKindMask; }
  __device__ __forceinline__ bool has_dead() const { return packed & kDeadFlag; }
  __device__ __forceinline__ bool allows_lazy() const { return packed & kLazyFlag; }
  __device__ __forceinline__ bool is_skipped(int group) const { return packed >> (kSkipShift + group) & 1; }
  __device__ __forceinline__ int length() const { return packed >> 8; }
};

// Walks the tiles of a part. kStep: keys of a tile, by which a run is walked. An entry is read a tile before it is
// needed, so that it is not waited for.
template <int kStep>
struct EntryWalk {
  int index;
  Tile next;

  // first: the part's first entry.  tiles: of the part.
  __device__ __forceinline__ EntryWalk(BlockLists const& lists, int first, int tiles) : index(first), next{} {
    if (tiles != 0) fetch(lists);
  }

  __device__ __forceinline__ bool has_next() const { return next.packed != 0; }

  // The tile at the cursor.
  __device__ __forceinline__ Tile peek() const { return next; }

  // The tile at the cursor; moves the cursor on.
  __device__ __forceinline__ Tile take(BlockLists const& lists) {
    Tile const tile = next;
    if (next.packed >= (kStep + 1) << 8) {  // more of the run
      next.packed -= kStep << 8;
      next.first += kStep;
    } else if (next.packed & kLastFlag) {
      next.packed = 0;
    } else {
      ++index;
      fetch(lists);
    }
    return tile;
  }

 private:
  __device__ __forceinline__ void fetch(BlockLists const& lists) {
    int4 const entry = lists.entries[index];
    next = Tile{entry.x, entry.y, entry.z};
  }
};

// Walks the tiles of a block row, whatever its parts, for the plain kernels: written anew, so that they show errors of
// the walk above.
template <int kStep>
struct RowWalk {
  int index, end;
  int done = 0;  // keys of the entry at the cursor

  // entries: first and end one.
  __device__ __forceinline__ RowWalk(int const* entries) : index(entries[0]), end(entries[1]) {}

  __device__ __forceinline__ bool has_next() const { return index < end; }

  __device__ __forceinline__ Tile take(BlockLists const& lists) {
    int4 const entry = lists.entries[index];
    int const left = (entry.x >> 8) - done;
    Tile const tile{(entry.x & 255) | min(left, kStep) << 8, entry.y, entry.z + done};
    done += kStep;
    if (left <= kStep) {
      done = 0;
      ++index;
    }
    return tile;
  }
};

}  // namespace omni
