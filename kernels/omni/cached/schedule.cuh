// How the rows of all sequences are cut into parts, longest first, by one thread block: schedule/parts.py for lengths
// that only the device knows. What is decided depends on lengths and launch constants alone, so that the same lengths
// give the same sums in the same order, replayed or not.
#pragma once

#include "omni/cached/part_writer.cuh"

namespace omni {

// A way to cut: no part is longer than `chunk` tiles.
struct Cut {
  int chunk;
  float end;  // when the work ends
};

template <int kThreads>
struct PlanSchedule {
  static constexpr int kWarps = kThreads / 32;
  static constexpr u32 kAll = 0xffffffffu;  // lanes
  static constexpr float kFractions = 8.f;  // of a tile: so many that the tiles of all sequences fit a number

  PlanParams const& p;
  int const rows;
  int* s_tiles;   // (rows,): of each block of rows
  int* s_parts;   // (rows,): into how many it is cut
  float* s_cost;  // (rows,): of one of them
  Cut* s_cuts;    // (kWarps,)
  int* s_most;    // (kWarps,)

  __device__ __forceinline__ PlanSchedule(PlanParams const& params, unsigned char* s_memory)
      : p(params), rows(params.batch * params.q_blocks) {
    s_tiles = reinterpret_cast<int*>(s_memory);
    s_parts = s_tiles + rows;
    s_cost = reinterpret_cast<float*>(s_parts + rows);
    s_cuts = reinterpret_cast<Cut*>(s_cost + rows);
    s_most = reinterpret_cast<int*>(s_cuts + kWarps);
  }

  __device__ __forceinline__ void run() {
    count_tiles();
    int const longest = most_of_block(most_tiles());
    float const of_tile = 1.f / static_cast<float>(best_chunk(longest));
    int most_parts = 1;
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      int const parts = parts_of(s_tiles[row], of_tile);
      s_parts[row] = parts;
      s_cost[row] = cost_of(s_tiles[row], parts);
      most_parts = max(most_parts, parts);
    }
    most_parts = most_of_block(most_parts);
    // So many threads write the parts of a row.
    int together = 1;
    while (together < most_parts && together < 32) together *= 2;
    for (int row = threadIdx.x / together; row < rows; row += kThreads / together) {
      write_row(row, threadIdx.x % together, together);
    }
  }

 private:
  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

  __device__ __forceinline__ void count_tiles() {
    for (int row = threadIdx.x; row < rows; row += kThreads) s_tiles[row] = tiles_of(BlockRow(p, row));
    __syncthreads();
  }

  __device__ __forceinline__ int most_tiles() const {
    int most = 1;
    for (int row = threadIdx.x; row < rows; row += kThreads) most = max(most, s_tiles[row]);
    return most;
  }

  // The greatest number of all threads.
  __device__ __forceinline__ int most_of_block(int value) const {
    value = __reduce_max_sync(kAll, value);
    __syncthreads();
    if (lane() == 0) s_most[warp()] = value;
    __syncthreads();
    value = s_most[0];
    for (int i = 1; i < kWarps; ++i) value = max(value, s_most[i]);
    return value;
  }

  __device__ __forceinline__ static int up(int a, int b) { return (a + b - 1) / b; }

  // Into how many parts a row is cut. of_tile: of a part, one over its length. Less than a rounding error is no part.
  __device__ __forceinline__ static int parts_of(int tiles, float of_tile) {
    return max(1, static_cast<int>(ceilf(static_cast<float>(tiles) * of_tile - 1e-3f)));
  }

  // Of one of so many parts.
  __device__ __forceinline__ float cost_of(int tiles, int parts) const {
    return static_cast<float>(tiles) / static_cast<float>(parts) + p.item + (parts > 1 ? p.leave : 0.f);
  }

  __device__ __forceinline__ int whole_cost_of(int tiles, int parts) const {
    return static_cast<int>(kFractions * cost_of(tiles, parts));
  }

  // Each warp tries every kWarps-th number of parts for the longest row.
  __device__ __forceinline__ int best_chunk(int longest) const {
    Cut best{longest, end_of(longest, warp() == 0)};
    if (p.split_slots > 0) {
      for (int parts = 2 + warp(); parts <= p.most_cuts; parts += kWarps) {
        int const chunk = max(up(longest, parts), p.least_tiles);
        Cut const cut{chunk, end_of(chunk, true)};
        if (cut.end < best.end || (cut.end == best.end && chunk > best.chunk)) best = cut;
      }
    }
    if (lane() == 0) s_cuts[warp()] = best;
    __syncthreads();
    best = s_cuts[0];
    for (int i = 1; i < kWarps; ++i) {
      Cut const cut = s_cuts[i];
      if (cut.end < best.end || (cut.end == best.end && cut.chunk > best.chunk)) best = cut;
    }
    return best.chunk;
  }

  // When the work ends with parts of at most `chunk` tiles: a bound from below that handing out the longest first comes
  // near to. Infinite where the merge has no memory for them, and at once where it is not asked. Called by whole warps,
  // which add in whole fractions of a tile: one instruction, and no rounding.
  __device__ __forceinline__ float end_of(int chunk, bool asked) const {
    float const never = __int_as_float(0x7f800000), of_tile = 1.f / static_cast<float>(chunk);
    if (!asked) return never;
    int all = 0, highest = 0, slots = 0;
    for (int row = lane(); row < rows; row += 32) {
      int const parts = parts_of(s_tiles[row], of_tile), cost = whole_cost_of(s_tiles[row], parts);
      all += parts * cost;
      slots += parts > 1 ? parts : 0;
      highest = max(highest, cost);
    }
    if (__reduce_add_sync(kAll, slots) > p.split_slots) return never;
    all = __reduce_add_sync(kAll, all);
    highest = __reduce_max_sync(kAll, highest);
    int long_parts = 0, shortest = highest;
    for (int row = lane(); row < rows; row += 32) {
      int const parts = parts_of(s_tiles[row], of_tile), cost = whole_cost_of(s_tiles[row], parts);
      if (2 * cost <= highest) continue;
      long_parts += parts;
      shortest = min(shortest, cost);
    }
    long_parts = __reduce_add_sync(kAll, long_parts);
    shortest = __reduce_min_sync(kAll, shortest);
    // Some multiprocessor works on so many of the long ones.
    float const rounds = static_cast<float>(up(long_parts * p.heads, p.sm_count)) * static_cast<float>(shortest);
    float const shared = static_cast<float>(all) * static_cast<float>(p.heads) / static_cast<float>(p.sm_count);
    return fmaxf(fmaxf(rounds, static_cast<float>(highest)), shared);
  }

  // The parts of one row: their places follow from all rows whose parts cost more. first, step: which of the parts.
  __device__ __forceinline__ void write_row(int row, int first, int step) const {
    int const tiles = s_tiles[row], parts = s_parts[row];
    float const cost = s_cost[row];
    int place = 0, slot = 0, all = 0;
    for (int other = 0; other < rows; ++other) {
      int const of_other = s_parts[other];
      all += of_other;
      if (s_cost[other] > cost || (s_cost[other] == cost && other < row)) place += of_other;
      if (other < row && of_other > 1) slot += of_other;
    }
    if (row == 0 && first == 0) *p.n_parts = all;
    BlockRow const of(p, row);
    // The merge counts slots from its batch element's on; these are numbered through all of them.
    slot -= of.sequence * p.heads * p.split_slots;
    for (int part = first; part < parts; part += step) {
      int const from = static_cast<int>(static_cast<i64>(tiles) * part / parts);
      int const to = static_cast<int>(static_cast<i64>(tiles) * (part + 1) / parts);
      int const at = (place + part) * p.most_entries;
      p.parts[place + part] = make_int4(of.block * p.br, of.sequence, at, to - from);
      p.splits[place + part] = parts > 1 ? make_int4(of.block, part, parts, slot) : make_int4(-1, 0, 1, 0);
      PartWriter(of, p.entries + at, from, to).write();
    }
  }
};

}  // namespace omni
