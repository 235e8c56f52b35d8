// A warp's keys and values on their way to its ring, by cp.async: every kWarps-th tile of an item. A lane copies what
// it reads itself:
//
//  keys:   of key 8 * i + lane / 4 the columns 64 * h + 16 * (lane % 4) to + 15, for all i and h. They are the k index
//          of four steps of Q K^T, four columns each, and Q lies in the same order.
//  values: of keys 16 * t + 2 * (lane % 4) + {0, 1, 8, 9}, the k index of step t of P V, the columns
//          kHeadDim / 8 * (lane / 4) and those behind it, one for each block of eight columns of O.
#pragma once

#include "omni/mask/rule.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/sm90/few_rows/e4m3.cuh"
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

  __device__ __forceinline__ StrideWalk(BlockLists const& lists, int first, int tiles, int start) : next{} {
    if (uniform(tiles) == 0) return;
    fetch(lists, first);
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
        fetch(lists, next.payload + 1);
      }
    }
  }

 private:
  __device__ __forceinline__ void fetch(BlockLists const& lists, int index) {
    int4 const entry = lists.entries[index];
    next = Tile{uniform(entry.x), index, entry.z};
  }
};

// Where rows of a tile begin that follow each other in steps of eight keys.
template <class Cfg>
struct TileRows {
  unsigned char const* g_row;  // the lane's row; in pages of the head
  i64 step;                    // in pages how far the lane's own key is from there
  int key;                     // of the tile

  // The row at the cursor; moves on by eight keys. Multiples of a stride would be held in registers from tile to tile.
  __device__ __forceinline__ unsigned char const* take() {
    unsigned char const* const g_found = Cfg::kPaged ? g_row + __shfl_sync(0xffffffffu, step, key) : g_row;
    if constexpr (!Cfg::kPaged) g_row += 8 * step;
    key += 8;
    return g_found;
  }
};

template <class Cfg>
struct FewRowsLoader {
  using Smem = FewRowsSmem<Cfg>;
  static constexpr int kParts = Cfg::kElement;  // copies of 16 bytes for 16 columns of a key
  static constexpr int kHalves = Cfg::kHeadDim / 64;
  static constexpr int kValueBytes = Cfg::kHeadDim / 8 * Cfg::kElement;  // that a lane has of a value
  static constexpr int kValueParts = kValueBytes > 16 ? 2 : 1;
  static constexpr int kCopy = kValueBytes / kValueParts;  // 8 or 16

  Fp8ParamsSm90 const& args;
  Smem& smem;
  HeadPlace const (&places)[2];  // of keys, of values
  int const sequence, warp;
  StrideWalk<Cfg::kBc> walk;
  int page = 0, row = 0;  // of the lane's key of the tile at the cursor
  u32 exists = 0;         // keys of it that are read
  int buffer = 0;         // to be filled next
  int slot = 0;           // of the tile at the cursor

  __device__ __forceinline__ FewRowsLoader(
      Fp8ParamsSm90 const& params, Smem& memory, WorkSlot const& work, HeadPlace const (&of_head)[2], int of_warp)
      : args(params),
        smem(memory),
        places(of_head),
        sequence(work.mask),
        warp(of_warp),
        walk(params.p.lists, work.unskipped, work.tiles, of_warp) {
    look_up();
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
      if (tile.has_dead()) exists &= ~*MaskView{args.p, sequence}.dead_words(tile.first);
      u32 const s_keys = smem_address(target.elements) + 16 * lane;
      HeadRows<Cfg> const keys{places[0], args.p.k_strides, args.scales.k_strides};
      TileRows<Cfg> sources = sources_of(keys, lane / 4, 16 * Cfg::kElement * (lane % 4));
#pragma unroll
      for (int i = 0; i < Cfg::kBc / 8; ++i) {
        unsigned char const* const g_key = sources.take();
        int const bytes = exists >> (8 * i + lane / 4) & 1 ? 16 : 0;
#pragma unroll
        for (int n = 0; n < kHalves * kParts; ++n) {
          int const at = n / kParts * 64 * Cfg::kElement + n % kParts * 16;
          cp_async_16(s_keys + 512 * (i * kHalves * kParts + n), g_key + at, bytes);
        }
      }
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
      u32 const s_values = smem_address(target.elements) + kCopy * lane;
      HeadRows<Cfg> const values{places[1], args.p.v_strides, args.scales.v_strides};
      TileRows<Cfg> even = sources_of(values, 2 * (lane % 4), kValueBytes * (lane / 4));
      TileRows<Cfg> odd{Cfg::kPaged ? even.g_row : even.g_row + even.step, even.step, even.key + 1};
#pragma unroll
      for (int i = 0; i < Cfg::kBc / 4; ++i) {
        int const key = i / 2 * 8 + i % 2;
        unsigned char const* const g_value = i % 2 == 0 ? even.take() : odd.take();
        bool const is_there = exists >> (key + 2 * (lane % 4)) & 1;
#pragma unroll
        for (int n = 0; n < kValueParts; ++n) {
          u32 const s_target = s_values + 32 * kCopy * (i * kValueParts + n);
          if constexpr (kCopy == 16) {
            cp_async_16(s_target, g_value + 16 * n, is_there ? 16 : 0);
          } else {
            cp_async_8(s_target, g_value, is_there ? 8 : 0);
          }
        }
      }
      load_scale(target.scales, values);
      walk.advance(args.p.lists, Cfg::kWarps);
      look_up();
    }
    cp_async_commit();
  }

 private:
  // What follows from it is worked out for each tile: in registers it would be dearer.
  __device__ __forceinline__ static int hidden_lane() { return thread_index() % 32; }

  // first: the lane's first key of the tile.  bytes: where in a row it begins.
  __device__ __forceinline__ TileRows<Cfg> sources_of(HeadRows<Cfg> const& rows, int first, int bytes) const {
    if constexpr (Cfg::kPaged) {
      return TileRows<Cfg>{rows.place.g_head + bytes, page == args.pages.pages ? 0 : rows.offset(page, row), first};
    }
    return TileRows<Cfg>{
        rows.place.g_head + rows.offset(sequence, walk.next.first + first) + bytes, rows.token_bytes(), first};
  }

  // Where the lane's key of the tile at the cursor is: asked for long before it is used.
  __device__ __forceinline__ void look_up() {
    page = sequence;
    row = walk.next.first + lane_id();
    if constexpr (Cfg::kPaged) {
      page = args.pages.pages;
      if (lane_id() < walk.next.length()) page = args.pages.page_of(sequence, row, row);
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
