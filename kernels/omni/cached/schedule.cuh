// How the rows of all sequences are cut into parts, longest first: schedule/parts.py for lengths that only the device
// knows. Every thread block works it out for itself, so that none waits for another, and writes some of the rows. What
// is decided depends on lengths and launch constants alone, so that the same lengths give the same sums in the same
// order, replayed or not.
#pragma once

#include "omni/cached/part_writer.cuh"

namespace omni {

// A way to cut: no part is longer than `chunk` tiles.
struct Cut {
  int chunk;
  float end;  // when the work ends
};

// The one that ends sooner; of equal ones that with longer parts.
__device__ __forceinline__ Cut sooner(Cut a, Cut b) {
  return b.end < a.end || (b.end == a.end && b.chunk > a.chunk) ? b : a;
}

template <int kThreads>
struct PlanSchedule {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kTogether = 8;  // lanes that try a way to cut
  static constexpr int kTries = kThreads / kTogether;
  static constexpr int kFew = 64;           // rows of which every way is tried
  static constexpr u32 kAll = 0xffffffffu;  // lanes
  static constexpr float kFractions = 8.f;  // of a tile: so many that the tiles of all sequences fit a number
  static constexpr float kEnough = 0.98f;   // of the multiprocessors' time in use: no cut can gain more than it costs

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

  // Of `blocks` thread blocks the part that is this one's: a warp writes a row.
  __device__ __forceinline__ void run(int block, int blocks) {
    int const longest = count_tiles();
    int const chunk = p.split_tiles > 0 ? p.split_tiles : best_chunk(longest);
    float const of_tile = 1.f / static_cast<float>(chunk);
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      int const tiles = s_tiles[row];
      int const parts = p.split_tiles > 0 ? max(up(tiles, chunk), 1) : parts_of(tiles, of_tile);
      s_parts[row] = parts;
      s_cost[row] = p.split_tiles > 0 && parts > 1 ? chunk + p.item + p.leave : cost_of(tiles, parts);
    }
    __syncthreads();
    for (int row = block * kWarps + warp(); row < rows; row += blocks * kWarps) write_row(row);
  }

 private:
  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

  // Of each row; the most of all.
  __device__ __forceinline__ int count_tiles() {
    int most = 1;
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      int const tiles = tiles_of(BlockRow(p, row));
      s_tiles[row] = tiles;
      most = max(most, tiles);
    }
    return of_block(__reduce_max_sync(kAll, most), [](int a, int b) { return max(a, b); });
  }

  // What all warps come to, each with a number of its own.
  template <class Combine>
  __device__ __forceinline__ int of_block(int value, Combine const& combine) const {
    __syncthreads();  // who still reads the one before
    if (lane() == 0) s_most[warp()] = value;
    __syncthreads();
    value = s_most[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) value = combine(value, s_most[i]);
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

  // Of so many long parts, the shortest of which costs so much, some multiprocessor works on a share.
  __device__ __forceinline__ float rounds(int long_parts, int shortest) const {
    return static_cast<float>(up(long_parts * p.heads, p.sm_count)) * static_cast<float>(shortest);
  }

  // The work of all, shared by the multiprocessors.
  __device__ __forceinline__ float shared(int all) const {
    return static_cast<float>(all) * static_cast<float>(p.heads) / static_cast<float>(p.sm_count);
  }

  // Each group of lanes tries another number of parts for the longest row.
  __device__ __forceinline__ int best_chunk(int longest) const {
    if (p.split_slots == 0 || (rows > kFew && is_enough(longest))) return longest;
    Cut best{longest, __int_as_float(0x7f800000)};
    for (int before = 0; before < p.most_cuts; before += kTries) {
      int const parts = before + static_cast<int>(threadIdx.x) / kTogether + 1;
      int const chunk = parts == 1 ? longest : max(up(longest, parts), p.least_tiles);
      best = sooner(best, Cut{chunk, end_of(chunk, parts <= p.most_cuts)});
    }
#pragma unroll
    for (int mask = kTogether; mask < 32; mask *= 2) {
      best = sooner(best, Cut{__shfl_xor_sync(kAll, best.chunk, mask), __shfl_xor_sync(kAll, best.end, mask)});
    }
    if (lane() == 0) s_cuts[warp()] = best;
    __syncthreads();
    best = s_cuts[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) best = sooner(best, s_cuts[i]);
    return best.chunk;
  }

  // Whole rows keep the multiprocessors so busy that no cut is worth a look.
  __device__ __forceinline__ bool is_enough(int longest) const {
    int const highest = whole_cost_of(longest, 1);
    int all = 0, long_rows = 0, shortest = highest;
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      int const cost = whole_cost_of(s_tiles[row], 1);
      all += cost;
      if (2 * cost <= highest) continue;
      ++long_rows;
      shortest = min(shortest, cost);
    }
    auto const add = [](int a, int b) { return a + b; };
    all = of_block(__reduce_add_sync(kAll, all), add);
    long_rows = of_block(__reduce_add_sync(kAll, long_rows), add);
    shortest = of_block(__reduce_min_sync(kAll, shortest), [](int a, int b) { return min(a, b); });
    float const end = fmaxf(fmaxf(rounds(long_rows, shortest), static_cast<float>(highest)), shared(all));
    return kEnough * end <= shared(all);
  }

  // What the lanes of a group come to.
  template <class Combine>
  __device__ __forceinline__ static int of_group(int value, Combine const& combine) {
#pragma unroll
    for (int mask = 1; mask < kTogether; mask *= 2) value = combine(value, __shfl_xor_sync(kAll, value, mask));
    return value;
  }

  // When the work ends with parts of at most `chunk` tiles: a bound from below that handing out the longest first comes
  // near to. Infinite where the merge has no memory for them, and where it is not asked. Groups of lanes call it, whole
  // warps of them, and add in whole fractions of a tile: no rounding.
  __device__ __forceinline__ float end_of(int chunk, bool asked) const {
    auto const add = [](int a, int b) { return a + b; };
    float const never = __int_as_float(0x7f800000), of_tile = 1.f / static_cast<float>(chunk);
    int const first = lane() % kTogether, stop = asked ? rows : 0;
    int all = 0, highest = 0, slots = 0;
    for (int row = first; row < stop; row += kTogether) {
      int const parts = parts_of(s_tiles[row], of_tile), cost = whole_cost_of(s_tiles[row], parts);
      all += parts * cost;
      slots += parts > 1 ? parts : 0;
      highest = max(highest, cost);
    }
    all = of_group(all, add);
    slots = of_group(slots, add);
    highest = of_group(highest, [](int a, int b) { return max(a, b); });
    int long_parts = 0, shortest = highest;
    for (int row = first; row < stop; row += kTogether) {
      int const parts = parts_of(s_tiles[row], of_tile), cost = whole_cost_of(s_tiles[row], parts);
      if (2 * cost <= highest) continue;
      long_parts += parts;
      shortest = min(shortest, cost);
    }
    long_parts = of_group(long_parts, add);
    shortest = of_group(shortest, [](int a, int b) { return min(a, b); });
    if (!asked || slots > p.split_slots) return never;
    return fmaxf(fmaxf(rounds(long_parts, shortest), static_cast<float>(highest)), shared(all));
  }

  // The parts of one row, by a warp: their places follow from all rows whose parts cost more.
  __device__ __forceinline__ void write_row(int row) const {
    BlockRow const of(p, row);
    int const tiles = s_tiles[row], parts = s_parts[row];
    float const cost = s_cost[row];
    int place = 0, slot = 0, all = 0;
    for (int other = lane(); other < rows; other += 32) {
      int const of_other = s_parts[other];
      float const more = s_cost[other];
      all += of_other;
      if (more > cost || (more == cost && other < row)) place += of_other;
      if (other < row && of_other > 1) slot += of_other;
    }
    place = __reduce_add_sync(kAll, place);
    slot = __reduce_add_sync(kAll, slot);
    if (row == 0) {
      all = __reduce_add_sync(kAll, all);
      if (lane() == 0) *p.n_parts = all;
    }
    // The merge counts slots from its batch element's on; these are numbered through all of them.
    slot -= of.sequence * p.heads * p.split_slots;
    for (int part = lane(); part < parts; part += 32) {
      int const from = begin_of(part, tiles, parts), to = begin_of(part + 1, tiles, parts);
      int const at = (place + part) * p.most_entries;
      p.parts[place + part] = make_int4(of.query(), of.sequence, at, to - from);
      p.splits[place + part] = parts > 1 ? make_int4(of.block, part, parts, slot) : make_int4(-1, 0, 1, 0);
      PartWriter(of, p.entries + at, from, to).write();
    }
  }

  // Where a part of a row of so many tiles begins.
  __device__ __forceinline__ int begin_of(int part, int tiles, int parts) const {
    if (p.split_tiles > 0) return min(part * p.split_tiles, tiles);
    return static_cast<int>(static_cast<i64>(tiles) * part / parts);
  }
};

}  // namespace omni
