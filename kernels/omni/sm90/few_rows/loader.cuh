// A warp's keys and values on their way to its ring, by cp.async: every kWarps-th tile of an item. Eight lanes copy a
// line of 128 bytes together, so that each is asked for once; elements lie where the lane that needs them reads 16
// bytes, and in an order in which neither who writes nor who reads meets another in a bank:
//
//  keys:   of key 8 * i + lane / 4 the columns 64 * h + 16 * (lane % 4) to + 15, for all i and h. They are the k index
//          of four steps of Q K^T, four columns each, and Q lies in the same order.
//  values: of keys 16 * t + 2 * (lane % 4) + {0, 1, 8, 9}, the k index of step t of P V, the columns
//          kHeadDim / 8 * (lane / 4) and those behind it, one for each block of eight columns of O.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/sm90/few_rows/smem.cuh"

namespace omni {

// Keys or values of one head. Strides are read from the parameters where they are used, and places from shared memory:
// registers are dearer.
template <class Cfg>
struct HeadRows {
  HeadPlace const place;
  Strides const& strides;
  Strides const& scale_strides;

  __device__ __forceinline__ i64 token_bytes() const { return Cfg::kElement * strides.token; }
  __device__ __forceinline__ i64 offset(int page, int row) const {
    return Cfg::kElement * paged_offset(strides, page, row);
  }
};

// Where they lie. scales: null where the head has one scale.
template <class Cfg>
__device__ __forceinline__ HeadPlace
place_of(void const* data, Strides const& strides, float const* scales, Strides const& of_scales, int head) {
  bool const of_tokens = Cfg::kE4m3 && scales != nullptr && (of_scales.batch | of_scales.token) != 0;
  return HeadPlace{
      static_cast<unsigned char const*>(data) + Cfg::kElement * head * strides.head,
      of_tokens ? scales + head * of_scales.head : nullptr};
}

// What all lanes have, as the compiler knows then: where warps may diverge it makes them meet before each shuffle.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Walks the tiles of a part in strides.
template <int kStep>
struct StrideWalk {
  Tile next;  // packed is 0 behind the last one; payload is the index of the entry, whose own is read where it counts

  // first: the index of its first entry.
  __device__ __forceinline__ void begin(BlockLists const& lists, int first, int4 const& first_entry, int start) {
    take(first, first_entry);
    advance(lists, start);
  }

  __device__ __forceinline__ void advance(BlockLists const& lists, int tiles) {
    while (next.packed != 0) {
      int const here = (next.length() + kStep - 1) / kStep;
      if (tiles < here) {
        next.packed -= tiles * kStep << 8;
        next.first += tiles * kStep;
        return;
      }
      tiles -= here;
      if (next.packed & kLastFlag) {
        next.packed = 0;
      } else {
        take(next.payload + 1, lists.entries[next.payload + 1]);
      }
    }
  }

 private:
  __device__ __forceinline__ void take(int index, int4 const& entry) { next = Tile{uniform(entry.x), index, entry.z}; }
};

// How a warp copies rows: a lane 16 bytes of one at a time, all lanes kKeys whole rows.
template <class Cfg>
struct RowCopies {
  static constexpr int kChunks = Cfg::kHeadDim * Cfg::kElement / 16;  // of a row
  static constexpr int kKeys = 32 / kChunks;
  static constexpr int kCount = Cfg::kBc / kKeys;
  static constexpr int kHalves = Cfg::kHeadDim / 64;
  static_assert(kChunks >= 4 && kChunks <= 16, "a row has 64 to 256 bytes");

  // Of keys: where the lane's share of the first copy goes, and how far from there that of copy j does.
  __device__ __forceinline__ static u32 first_key(int lane) {
    int const chunk = lane % kChunks, half = chunk / (4 * Cfg::kElement);
    int const quarter = chunk % (4 * Cfg::kElement) / Cfg::kElement, part = chunk % Cfg::kElement;
    return 512 * (half * Cfg::kElement + part) + 16 * ((4 * (lane / kChunks) + quarter) ^ 4 * odd(half, part));
  }

  __device__ __forceinline__ static u32 key_step(int j) {
    return 512 * kHalves * Cfg::kElement * (kKeys * j / 8) + 64 * (kKeys * j % 8);
  }

  // Where lanes change places, so that both halves of a row, or both parts of 16 columns, go to other banks.
  __device__ __forceinline__ static int odd(int half, int part) { return Cfg::kElement == 1 ? half : part; }

  // Of values: units of 16 bytes, four keys of a chunk side by side. Chunks turn them.
  __device__ __forceinline__ static u32 unit(int chunk, int pair, int odd_key) {
    return 16 * (4 * chunk + (pair ^ chunk / 2 % 4 ^ (kChunks == 4 ? 2 * odd_key : 0)));
  }

  static constexpr int kValueBlock = 64 * kChunks;  // bytes of these four keys

  __device__ __forceinline__ static u32 value(int lane, int j) {
    int const key = lane / kChunks;
    u32 const first = kValueBlock * (key % 2) + unit(lane % kChunks, key / 2, key % 2);
    return (first ^ 16 * (kKeys * j % 8 / 2)) + 2 * kValueBlock * (kKeys * j / 8);
  }
};

// Where rows of a tile begin that follow each other in steps of as many keys as a warp copies at once.
template <class Cfg>
struct TileRows {
  unsigned char const* g_row;  // the lane's row; in pages of the head
  i64 step;                    // in pages how far the lane's own key is from there
  int key;                     // of the tile

  // The row at the cursor; moves on. Multiples of a stride would be held in registers from tile to tile.
  __device__ __forceinline__ unsigned char const* take() {
    unsigned char const* const g_found = Cfg::kPaged ? g_row + __shfl_sync(0xffffffffu, step, key) : g_row;
    if constexpr (!Cfg::kPaged) g_row += RowCopies<Cfg>::kKeys * step;
    key += RowCopies<Cfg>::kKeys;
    return g_found;
  }
};

template <class Cfg>
struct FewRowsLoader {
  using Smem = FewRowsSmem<Cfg>;
  using Copies = RowCopies<Cfg>;

  Fp8ParamsSm90 const& args;
  Smem& smem;
  int const warp;
  int item = 0, worked_on = -1;  // of the block: where the cursor is, and what the warp works on
  StrideWalk<Cfg::kBc> walk;
  int page = 0, row = 0;  // of the lane's key of the tile at the cursor
  u32 exists = 0;         // keys of it that are read
  int buffer = 0;         // to be filled next
  int slot = 0;           // of the tile at the cursor

  __device__ __forceinline__ FewRowsLoader(Fp8ParamsSm90 const& params, Smem& memory, int of_warp)
      : args(params), smem(memory), warp(of_warp) {
    enter();
  }

  // Starts to load the keys of the tile at the cursor, and says what the tile is.
  __device__ __forceinline__ void load_keys() {
    Tile const tile = walk.next;
    int const lane = hidden_lane();
    WarpBuffer<Cfg>& target = next_buffer();
    if (lane == 0) smem.tiles[warp][slot] = tile;
    if (tile.packed != 0) {
      bool const inside = lane < tile.length(), has_page = !Cfg::kPaged || page != args.pages.pages;
      exists = __ballot_sync(0xffffffffu, inside && has_page);
      if constexpr (Cfg::kPaged) {
        u32 const hidden = __ballot_sync(0xffffffffu, inside && !has_page);
        if (lane == 0) smem.hidden[warp][slot] = hidden;
      }
      if (tile.has_dead()) exists &= ~*MaskView{args.p, sequence()}.dead_words(tile.first);
      HeadRows<Cfg> const keys{smem.places[item % 2][0], args.p.k_strides, args.scales.k_strides};
      TileRows<Cfg> sources = sources_of(keys, lane);
      u32 const s_keys = smem_address(target.elements) + Copies::first_key(lane);
#pragma unroll
      for (int j = 0; j < Copies::kCount; ++j) copy(s_keys + Copies::key_step(j), sources, lane, j);
      load_scale(target.scales, keys);
    }
    cp_async_commit();
  }

  // The same of values; moves on to the warp's next tile.
  __device__ __forceinline__ void load_values() {
    WarpBuffer<Cfg>& target = next_buffer();
    slot = slot == Cfg::kTiles - 1 ? 0 : slot + 1;
    if (walk.next.packed != 0) {
      int const lane = hidden_lane();
      HeadRows<Cfg> const values{smem.places[item % 2][1], args.p.v_strides, args.scales.v_strides};
      TileRows<Cfg> sources = sources_of(values, lane);
      u32 const s_values = smem_address(target.elements);
#pragma unroll
      for (int j = 0; j < Copies::kCount; ++j) copy(s_values + Copies::value(lane, j), sources, lane, j);
      load_scale(target.scales, values);
      walk.advance(args.p.lists, Cfg::kWarps);
      look_up();
    }
    cp_async_commit();
    leave_items();
  }

 private:
  // The item's tiles for this warp; none behind the last item.
  __device__ __forceinline__ void enter() {
    WorkSlot const& work = smem.work[item % 2];
    walk.next.packed = 0;
    if (uniform(work.tiles) > 0) walk.begin(args.p.lists, work.unskipped, smem.entries[item % 2], warp);
    look_up();
  }

  // To the next item that has tiles for this warp, if it is known yet, but not beyond the one behind that which the
  // warp works on: its slot is still in use. Meanwhile buffers are left empty. Not between the keys and the values of a
  // tile.
  __device__ __forceinline__ void leave_items() {
#pragma unroll 1
    while (walk.next.packed == 0) {
      if (item < worked_on) {
        item = worked_on;  // those before it had no tile for this warp
      } else if (item == worked_on && smem.has_item(item + 1)) {
        ++item;
      } else {
        return;
      }
      enter();
    }
  }

  __device__ __forceinline__ int sequence() const { return smem.work[item % 2].mask; }

  // What follows from it is worked out for each tile: in registers it would be dearer.
  __device__ __forceinline__ static int hidden_lane() { return thread_index() % 32; }

  // The lane's rows of a tile, from its own 16 bytes on.
  __device__ __forceinline__ TileRows<Cfg> sources_of(HeadRows<Cfg> const& rows, int lane) const {
    int const first = lane / Copies::kChunks, bytes = 16 * (lane % Copies::kChunks);
    if constexpr (Cfg::kPaged) {
      return TileRows<Cfg>{rows.place.g_head + bytes, page == args.pages.pages ? 0 : rows.offset(page, row), first};
    }
    return TileRows<Cfg>{
        rows.place.g_head + rows.offset(sequence(), walk.next.first + first) + bytes, rows.token_bytes(), first};
  }

  // Copy j of a tile. Keys that are not read become zeros.
  __device__ __forceinline__ void copy(u32 s_target, TileRows<Cfg>& sources, int lane, int j) const {
    unsigned char const* const g_row = sources.take();
    bool const is_there = exists >> (Copies::kKeys * j + lane / Copies::kChunks) & 1;
    cp_async_16_once(s_target, g_row, is_there ? 16 : 0);
  }

  // Where the lane's key of the tile at the cursor is: asked for long before it is used.
  __device__ __forceinline__ void look_up() {
    page = sequence();
    row = walk.next.first + lane_id();
    if constexpr (Cfg::kPaged) {
      page = args.pages.pages;
      if (lane_id() < walk.next.length()) page = args.pages.page_of(sequence(), row, row);
    }
  }

  __device__ __forceinline__ WarpBuffer<Cfg>& next_buffer() {
    WarpBuffer<Cfg>& found = smem.rings[warp].buffers[buffer];
    buffer = buffer == Cfg::kBuffers - 1 ? 0 : buffer + 1;
    return found;
  }

  __device__ __forceinline__ void load_scale(float* s_scales, HeadRows<Cfg> const& rows) const {
    if (!Cfg::kE4m3 || rows.place.g_scales == nullptr) return;
    bool const is_there = exists >> lane_id() & 1;
    float const* const g_scale = rows.place.g_scales + (is_there ? paged_offset(rows.scale_strides, page, row) : 0);
    cp_async_4(smem_address(s_scales + lane_id()), g_scale, is_there ? 4 : 0);
  }
};

}  // namespace omni
