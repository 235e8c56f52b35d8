// Writes the entries of one part of a block of rows, in the order in which kernels visit tiles: FULL ones first.
#pragma once

#include "omni/cached/block_row.cuh"

namespace omni {

constexpr int kLazyKeys = 64;  // of FULL tiles of the part, behind which rescaling may be lazy (pieces.py)

struct PartWriter {
  BlockRow const& row;
  int4* entries;  // of the part
  int from, to;   // tiles of the row, in the order of visits
  int at = 0;     // tiles of the row so far
  int written = 0;
  int full_ahead = 0;  // FULL tiles of the part

  __device__ __forceinline__ PartWriter(BlockRow const& of, int4* g_entries, int first, int stop)
      : row(of), entries(g_entries), from(first), to(stop) {}

  // All entries. Slots that stay are entries without keys, for walks that go by row_offsets.
  __device__ __forceinline__ void write() {
    full_run(0, row.sink_full);
    full_run(row.full, row.own);
    own_tiles(kFull);
    partial_tiles(row.sink_full, row.sink_stop);
    partial_tiles(row.begin, row.full);
    own_tiles(kPartial);
    if (written > 0) entries[written - 1].x |= kLastFlag;
    if (!row.p.in_order) return;
    for (int i = written; i < row.p.most_entries; ++i) entries[i] = make_int4(kPartial, -1, 0, 0);
  }

 private:
  __device__ __forceinline__ int need() const { return row.tiles_in(kLazyKeys + row.p.bc - 1); }

  __device__ __forceinline__ void put(int flags, int payload, int tile, int keys) {
    int const lazy = full_ahead >= need() ? kLazyFlag : 0;
    entries[written++] = make_int4(flags | lazy | keys << 8, payload, tile * row.p.bc, to - from);
  }

  // Tiles first to stop, those of them that are the part's; cut where rescaling turns lazy.
  __device__ __forceinline__ void full_run(int first, int stop) {
    int tile = first + max(from - at, 0);
    int const end = min(stop, first + to - at);
    at += stop - first;
    while (tile < end) {
      int const tiles = full_ahead < need() ? min(end - tile, need() - full_ahead) : end - tile;
      put(kFull, -1, tile, tiles * row.p.bc);
      full_ahead += tiles;
      tile += tiles;
    }
  }

  __device__ __forceinline__ void partial_tiles(int first, int stop) {
    int const begin = first + max(from - at, 0), end = min(stop, first + to - at);
    at += stop - first;
    for (int tile = begin; tile < end; ++tile) partial(tile);
  }

  __device__ __forceinline__ void partial(int tile) {
    int const bits = (row.sequence * row.p.q_blocks + row.block) * row.p.most_partial + row.slot_of(tile);
    int const keys = min(row.p.bc, row.keys - tile * row.p.bc);
    put(row.has_dead(tile) ? kPartial | kDeadFlag : kPartial, bits, tile, keys);
  }

  __device__ __forceinline__ void own_tiles(int kind) {
    for (int tile = row.own; tile < row.stop; ++tile) {
      if (row.kind_of_own(tile) != kind) continue;
      if (kind == kFull) {
        full_run(tile, tile + 1);
      } else {
        partial_tiles(tile, tile + 1);
      }
    }
  }
};

}  // namespace omni
