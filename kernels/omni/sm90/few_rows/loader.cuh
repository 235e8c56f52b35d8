// A warp's keys and values on their way to its ring: every kWarps-th tile of an item, then of the next one. A tile
// of e4m3 whose keys follow each other without a gap is one copy of the copy engine, which a lane asks for. Others, in
// pages, of fewer keys and of 16 bits, come by cp.async (row_copies.cuh).
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/sm90/few_rows/row_copies.cuh"
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

// Strides of the scales of values, else of keys. Those of 16 bits have none, and nobody asks.
template <class Cfg>
__device__ __forceinline__ Strides const& scale_strides(typename Cfg::Params const& args, bool values) {
  if constexpr (Cfg::kE4m3) return values ? args.scales.v_strides : args.scales.k_strides;
  return args.p.k_strides;
}

// Where values of a head lie, else its keys. Scales are null where the head has one.
template <class Cfg>
__device__ __forceinline__ HeadPlace place_of(typename Cfg::Params const& args, bool values, int head) {
  void const* const data = values ? args.p.v : args.p.k;
  Strides const& strides = values ? args.p.v_strides : args.p.k_strides;
  HeadPlace found{static_cast<unsigned char const*>(data) + Cfg::kElement * head * strides.head, nullptr};
  if constexpr (Cfg::kE4m3) {
    float const* const scales = values ? args.scales.v : args.scales.k;
    Strides const& steps = scale_strides<Cfg>(args, values);
    if (scales != nullptr && (steps.batch | steps.token) != 0) found.g_scales = scales + head * steps.head;
  }
  return found;
}

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

  typename Cfg::Params const& args;
  Smem& smem;
  int const warp;
  int item = 0, worked_on = -1;  // of the block: where the cursor is, and what the warp works on
  StrideWalk<Cfg::kBc> walk;
  int page = 0, row = 0;  // of the lane's key of the tile at the cursor
  u32 exists = 0;         // keys of it that are read
  int buffer = 0;         // to be filled next, in two rounds

  __device__ __forceinline__ FewRowsLoader(typename Cfg::Params const& params, Smem& memory, int of_warp)
      : args(params), smem(memory), warp(of_warp) {
    enter();
  }

  // Starts to load the keys of the tile at the cursor, and says what the tile is.
  __device__ __forceinline__ void load_keys() {
    if (load_plain<0>()) return;
    Tile const tile = walk.next;
    int const lane = hidden_lane(), slot = buffer / 2;
    WarpBuffer<Cfg>& target = next_buffer();
    if (lane == 0) smem.tiles[warp][slot] = tile;
    if (tile.packed != 0) {
      bool const inside = lane < tile.length();
      exists = __ballot_sync(0xffffffffu, inside);
      if constexpr (Cfg::kPaged) {
        u32 const hidden = __ballot_sync(0xffffffffu, inside && page == args.pages.pages);
        exists &= ~hidden;
        if (lane == 0) smem.hidden[warp][slot] = hidden;
      }
      if (tile.has_dead()) exists &= ~*MaskView{args.p, smem.work[item % 2].mask}.dead_words(tile.first);
      HeadRows<Cfg> const keys{smem.places[item % 2][0], args.p.k_strides, scale_strides<Cfg>(args, false)};
      if (!load_at_once(target, keys)) copy_rows(target, keys, lane);
      load_scale(target.scales, keys);
    }
    cp_async_commit();
  }

  // The same of values; moves on to the warp's next tile.
  __device__ __forceinline__ void load_values() {
    if (load_plain<1>()) {
      move_on();
      leave_items();
      return;
    }
    WarpBuffer<Cfg>& target = next_buffer();
    if (walk.next.packed != 0) {
      int const lane = hidden_lane();
      HeadRows<Cfg> const values{smem.places[item % 2][1], args.p.v_strides, scale_strides<Cfg>(args, true)};
      if (!load_at_once(target, values)) copy_rows(target, values, lane);
      load_scale(target.scales, values);
      move_on();
    }
    cp_async_commit();
    leave_items();
  }

 private:
  // Loads a tile all of whose keys are there, one behind the other, and whose head has one scale: nothing is asked key
  // by key. kValues: 0 for keys, 1 for values. Says whether it is such a tile.
  template <int kValues>
  __device__ __forceinline__ bool load_plain() {
    if constexpr (!Copies::kAtOnce) return false;
    Tile const tile = walk.next;
    HeadPlace const place = smem.places[item % 2][kValues];
    Strides const& strides = kValues != 0 ? args.p.v_strides : args.p.k_strides;
    bool const is_plain = tile.packed != 0 && tile.length() >= Cfg::kBc && !tile.has_dead() &&
                          place.g_scales == nullptr && strides.token == Cfg::kHeadDim;
    if (!is_plain) return false;
    int const index = buffer % Cfg::kBuffers;
    if (elect_one()) {
      if constexpr (kValues == 0) smem.tiles[warp][buffer / 2] = tile;
      ask_for(smem.rings[warp].buffers[index], index, place.g_head + paged_offset(strides, sequence(), tile.first));
    }
    exists = 0xffffffffu;
    count_buffer();
    cp_async_commit();
    return true;
  }

  // By one lane: a whole tile by the copy engine.
  __device__ __forceinline__ void ask_for(WarpBuffer<Cfg>& target, int index, unsigned char const* g_source) {
    u32 const s_full = smem_address(&smem.full[warp][index]);
    fence_proxy_async();  // what this warp has read, and what it has copied there otherwise
    mbarrier_expect_tx(s_full, Cfg::kTileBytes);
    bulk_load_once(smem_address(target.elements), g_source, Cfg::kTileBytes, s_full);
  }

  __device__ __forceinline__ void move_on() {
    walk.advance(args.p.lists, Cfg::kWarps);
    look_up();
  }

  __device__ __forceinline__ void count_buffer() { buffer = buffer == 2 * Cfg::kBuffers - 1 ? 0 : buffer + 1; }

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

  __device__ __forceinline__ int sequence() const { return smem.work[item % 2].batch; }

  // What follows from it is worked out for each tile: in registers it would be dearer.
  __device__ __forceinline__ static int hidden_lane() { return thread_index() % 32; }

  // The rows of the tile at the cursor, where they can come by one copy; else says that they cannot. Either way the
  // buffer's barrier has its arrival.
  __device__ __forceinline__ bool load_at_once(WarpBuffer<Cfg>& target, HeadRows<Cfg> const& rows) {
    if constexpr (!Copies::kAtOnce) return false;
    bool const can = exists == 0xffffffffu && rows.strides.token == Cfg::kHeadDim;
    int const index = (buffer + Cfg::kBuffers - 1) % Cfg::kBuffers;  // the buffer before
    if (lane_id() == 0) {
      if (can) {
        ask_for(target, index, rows.place.g_head + rows.offset(sequence(), walk.next.first));
      } else {
        mbarrier_arrive(smem_address(&smem.full[warp][index]));
      }
    }
    return can;
  }

  // The lane's rows of a tile, from its own 16 bytes on.
  __device__ __forceinline__ TileRows<Cfg> sources_of(HeadRows<Cfg> const& rows, int lane) const {
    int const first = lane / Copies::kChunks, bytes = 16 * (lane % Copies::kChunks);
    if constexpr (Cfg::kPaged) {
      return TileRows<Cfg>{rows.place.g_head + bytes, page == args.pages.pages ? 0 : rows.offset(page, row), first};
    }
    return TileRows<Cfg>{
        rows.place.g_head + rows.offset(sequence(), walk.next.first + first) + bytes, rows.token_bytes(), first};
  }

  // The rows of the tile at the cursor, key by key. Keys that are not read become zeros.
  __device__ __forceinline__ void copy_rows(WarpBuffer<Cfg>& target, HeadRows<Cfg> const& rows, int lane) const {
    TileRows<Cfg> sources = sources_of(rows, lane);
    u32 const s_elements = smem_address(target.elements);
    u32 const s_first = Copies::first_target(Copies::kAtOnce ? s_elements : uniform(s_elements), lane);
#pragma unroll
    for (int j = 0; j < Copies::kCount; ++j) {
      unsigned char const* const g_row = sources.take();
      bool const is_there = exists >> (Copies::kKeys * j + lane / Copies::kChunks) & 1;
      cp_async_16_once(Copies::target(s_first, j), g_row, is_there ? 16 : 0);
    }
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
    int const index = buffer % Cfg::kBuffers;
    WarpBuffer<Cfg>& found = smem.rings[warp].buffers[index];
    if constexpr (Copies::kAtOnce) {
      if (walk.next.packed == 0 && lane_id() == 0) mbarrier_arrive(smem_address(&smem.full[warp][index]));
    }
    count_buffer();
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
