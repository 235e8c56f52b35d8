// Which tiles a block of rows of one sequence sees, by arithmetic on the sequence's length, and which keys of a tile.
#pragma once

#include "omni/cached/params.cuh"
#include "omni/entries.cuh"

namespace omni {

// Keys from `first` on, as bits of the word of 32 keys that begins at `at`.
__device__ __forceinline__ u32 keys_from(int first, int at) {
  int const shift = first - at;
  return shift >= 32 ? 0u : 0xffffffffu << max(shift, 0);
}

__device__ __forceinline__ u32 keys_between(int first, int stop, int at) {
  return keys_from(first, at) & ~keys_from(stop, at);
}

// 32 bits from bit `at` on, zeros outside of the row of so many words.
__device__ __forceinline__ u32 bits_at(u32 const* row, int words, int at) {
  int const word = at >> 5, shift = at & 31;  // at may be negative
  u32 const low = word >= 0 && word < words ? row[word] : 0u;
  u32 const high = word + 1 >= 0 && word + 1 < words ? row[word + 1] : 0u;
  return shift == 0 ? low : low >> shift | high << (32 - shift);
}

// A block of rows of one sequence. Its tiles, in this order: FULL [0, sink_full), FULL [full, own), then those of
// [own, stop) that are FULL; PARTIAL [sink_full, sink_stop), PARTIAL [begin, full), then those of [own, stop) that are.
struct BlockRow {
  PlanParams const& p;
  int sequence, block;
  int keys;         // of the sequence; 0 where it is empty, or its length no length
  int history;      // keys before those of the rows, below 0 where there are more rows than keys
  int first, last;  // positions of the block's first and last row; a row before 0 has no token
  int sink_full, sink_stop, begin, full, own, stop;

  __device__ __forceinline__ BlockRow(PlanParams const& params, int row)
      : p(params), sequence(row / params.q_blocks), block(row % params.q_blocks) {
    int const length = p.lengths[sequence];
    keys = length < 0 || length > p.capacity ? 0 : length;
    int const rows = rows_of_sequence(p, sequence).y;
    history = keys - rows;
    first = history + block * p.br;
    last = history + min((block + 1) * p.br, rows) - 1;
    sink_full = sink_stop = begin = full = own = stop = 0;
    if (keys == 0 || last < 0 || (kRaggedRows && first > last)) return;
    if (p.tail == nullptr) {
      find_causal();
    } else {
      find_history();
    }
  }

  // The block's first row, among all where sequences have numbers of rows of their own.
  __device__ __forceinline__ int query() const {
    if constexpr (kRaggedRows) return rows_of_sequence(p, sequence).x + block * p.br;
    return block * p.br;
  }

  // Whole tiles in so many keys, at least 0: a division, by its inverse. Numbers of keys are exact as floats.
  __device__ __forceinline__ int tiles_in(int n) const {
    int const tiles = static_cast<int>(static_cast<float>(n) * p.of_key);
    int const rest = n - tiles * p.bc;
    return tiles + (rest >= p.bc) - (rest < 0);
  }

  // Does the window hide nothing from any row of the block?
  __device__ __forceinline__ bool sees_all_before() const { return p.window == 0 || last - p.window < p.sink; }

  // Tiles whose kinds are looked at one by one.
  __device__ __forceinline__ int looked_at() const { return sink_stop - sink_full + full - begin + stop - own; }

  // Where a PARTIAL tile's bits lie among those of the block.
  __device__ __forceinline__ int slot_of(int tile) const {
    if (tile < sink_stop) return tile - sink_full;
    int const behind_sink = sink_stop - sink_full;
    return behind_sink + (tile < own ? tile - begin : full - begin + tile - own);
  }

  // The tile with such bits.
  __device__ __forceinline__ int tile_of(int slot) const {
    if (slot < sink_stop - sink_full) return sink_full + slot;
    slot -= sink_stop - sink_full;
    return slot < full - begin ? begin + slot : own + slot - (full - begin);
  }

  // Kind of one of the tiles [own, stop); 0 where no row sees it.
  __device__ __forceinline__ int kind_of_own(int tile) const {
    if (p.tail == nullptr) return kPartial;
    u32 const* const any = p.tail_any + (mask() * (p.q_blocks + 1) + block) * static_cast<i64>(p.tail_words);
    u32 const* const all = p.tail_all + (mask() * p.q_blocks + block) * static_cast<i64>(p.tail_words);
    bool is_any = false, is_all = first >= 0;
    for (int at = tile * p.bc; at < (tile + 1) * p.bc; at += 32) {
      u32 const mine = keys_between(max(history, 0), keys, at);
      is_any |= (seen_of_history(max(first, 0), at) | (bits_at(any, p.tail_words, at - history) & mine)) != 0;
      is_all &= (seen_of_history(last, at) | (bits_at(all, p.tail_words, at - history) & mine)) == 0xffffffffu;
    }
    return is_all ? kFull : is_any ? kPartial : 0;
  }

  // Keys of the word at `at` that the row at `position` sees.
  __device__ __forceinline__ u32 seen_by(int position, int at) const {
    if (position < 0 || keys == 0) return 0;
    if (p.tail == nullptr) return keys_between(0, position + 1, at) & near(position, at);
    u32 const* const row = p.tail + (mask() * p.q_len + position - history) * static_cast<i64>(p.tail_words);
    u32 const of_tail = bits_at(row, p.tail_words, at - history) & keys_between(max(history, 0), keys, at);
    return seen_of_history(position, at) | of_tail;
  }

  // Keys of the word at `at` that no row of the sequence sees.
  __device__ __forceinline__ u32 dead_at(int at) const {
    int const earliest = max(history, 0);
    if (p.tail == nullptr) return ~(keys_between(0, keys, at) & near(earliest, at));
    u32 seen = 0;
    if (history >= 0) {
      u32 const* const any = p.tail_any + (mask() * (p.q_blocks + 1) + p.q_blocks) * static_cast<i64>(p.tail_words);
      seen = bits_at(any, p.tail_words, at - history) & keys_between(earliest, keys, at);
    } else {  // rows without a token see nothing
      for (int position = 0; position < keys; ++position) seen |= seen_by(position, at);
    }
    return ~(seen_of_history(earliest, at) | seen);
  }

  __device__ __forceinline__ bool has_dead(int tile) const {
    u32 dead = 0;
    for (int at = tile * p.bc; at < (tile + 1) * p.bc; at += 32) dead |= dead_at(at);
    return dead != 0;
  }

 private:
  __device__ __forceinline__ int mask() const { return p.tail_masks == 1 ? 0 : sequence; }

  // Keys inside of the window of the row at `position`, or in its sink.
  __device__ __forceinline__ u32 near(int position, int at) const {
    if (p.window == 0) return 0xffffffffu;
    return keys_from(position - p.window + 1, at) | keys_between(0, p.sink, at);
  }

  __device__ __forceinline__ u32 seen_of_history(int position, int at) const {
    return keys_between(0, max(history, 0), at) & near(position, at);
  }

  // Without a tail a row sees the keys up to its own, inside of its window.
  __device__ __forceinline__ void find_causal() {
    int const whole = tiles_in(max(first + 1, 0));  // tiles that lie before every row
    stop = tiles_in(last) + 1;
    own = whole;
    if (sees_all_before()) return;
    sink_full = min(tiles_in(p.sink), whole);
    sink_stop = tiles_in(p.sink + p.bc - 1);
    begin = max(tiles_in(max(max(first, 0) - p.window + 1, 0)), sink_stop);
    full = max(tiles_in(last - p.window + p.bc), begin);
    own = whole;
    if (whole <= full) own = full = begin;
  }

  // With one: the history by the window, the last keys tile by tile.
  __device__ __forceinline__ void find_history() {
    int const before = max(history, 0);
    own = tiles_in(before);
    stop = tiles_in(keys + p.bc - 1);
    if (sees_all_before()) return;
    int const sink = min(p.sink, before);
    sink_full = min(tiles_in(sink), own);
    sink_stop = min(tiles_in(sink + p.bc - 1), own);
    begin = min(max(tiles_in(max(max(first, 0) - p.window + 1, 0)), sink_stop), own);
    full = min(max(tiles_in(last - p.window + p.bc), begin), own);
  }
};

// Tiles of a block of rows that some row sees.
__device__ __forceinline__ int tiles_of(BlockRow const& row) {
  int tiles = row.sink_stop + row.own - row.begin;
  if (row.p.tail == nullptr) return tiles + row.stop - row.own;
  for (int tile = row.own; tile < row.stop; ++tile) tiles += row.kind_of_own(tile) != 0;
  return tiles;
}

}  // namespace omni
