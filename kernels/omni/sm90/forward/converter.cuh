// Caches of e4m3 on Hopper: one or two warpgroups beside the producer's and the consumers' load keys and values and
// convert them, so that consumers find the tiles of 16 bits that the copy engine brings else. Elements wait in
// registers, one or two tiles ahead. Other warps say where the keys of each tile are (tile_finder.cuh). Who waits for
// whom:
//
//  converter warp: found_full, on which a finder arrives when it knows the tile and its scales are there; k_empty
//    and v_empty, on which consumers arrive, before it writes a tile of 16 bits; its threads for their own loads.
//  consumers: k_full, v_full, on which each converter warp arrives behind a fence that shows its ordinary writes to the
//    asynchronous proxy, by which wgmma reads.
//  finders: found_empty, on which converter warps arrive when they have converted the tile.
#pragma once

#include "omni/sm90/forward/tile_finder.cuh"

namespace omni {

// One of the warps that convert. Tiles follow each other across items, in the order in which consumers need them:
// K0 V0 K1 V1 ...
template <class Cfg>
struct Converter {
  using Smem = Fp8Smem<Cfg>;
  using Found = FoundTile<Cfg>;
  using KeyUnits = E4m3Units<Cfg, Cfg::kPanels>;
  using ValueUnits = E4m3Units<Cfg, Cfg::kValuePanels>;
  // Tiles in registers, a unit in four of them: two where there is room.
  static constexpr int kHeld = KeyUnits::kCount + ValueUnits::kCount <= 64 / Cfg::kApartWarps ? 2 : 1;
  static_assert(kHeld < Smem::kFound, "a tile is found while others are in registers");

  // A thread's share of a tile that is on its way, or waits to be converted.
  struct Held {
    bool is_any = false;
    uint4 keys[KeyUnits::kCount], values[ValueUnits::kCount];
  };

  ForwardParamsSm90 const& args;
  Smem& smem;
  int const warp;                         // of those that convert
  RingIndex<Cfg::kStages> ring;           // tiles of 16 bits
  RingIndex<Smem::kFound> loaded, found;  // the next tile to load, and to convert
  bool no_more = false;                   // tiles to load

  __device__ __forceinline__ Converter(ForwardParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory), warp(threadIdx.x / 32 - 4 * (1 + Cfg::kConsumers)) {}

  // Is the next tile known? Where tiles are yet to be converted nobody waits for it: the consumers, and through them
  // the scheduler and the finders, may wait for these.
  __device__ __forceinline__ bool has_next(bool may_wait) {
    u32 const full = smem_address(&smem.found_full[loaded.stage()]);
    if (no_more) return false;
    if (may_wait) {
      mbarrier_wait(full, loaded.parity());
    } else if (!__all_sync(0xffffffffu, mbarrier_has_ended(full, loaded.parity()))) {
      return false;
    }
    no_more = smem.found[loaded.stage()].is_end;
    return !no_more;
  }

  // Starts the loads of the thread's share of a tile.
  template <class Units>
  __device__ __forceinline__ void load(
      uint4 (&share)[Units::kCount], void const* pool, i64 const* s_offsets, int columns) const {
    int const in_row = lane_id() % 4 * 16;
    unsigned char const* const g_pool = static_cast<unsigned char const*>(pool) + in_row;
#pragma unroll
    for (int i = 0; i < Units::kCount; ++i) {
      int const row = Units::exists(warp, i) ? Units::row(warp, i) : 0, column = kPanelColumns * Units::panel(warp, i);
      i64 const offset = load_shared_i64(s_offsets + row);
      bool const exists = Units::exists(warp, i) && offset >= 0 && column + in_row < columns;
      share[i] = load_16_or_zeros(g_pool + offset + column, exists);
    }
  }

  // The thread's share of a tile as numbers of 16 bits, where the swizzle of wgmma has them: chunk c of row r of a
  // panel, 8 columns, at c ^ r % 8. The eight lanes of a quarter warp write to eight bank groups.
  template <class Units>
  __device__ __forceinline__ void convert(
      unsigned char* s_tile, uint4 const (&share)[Units::kCount], float const* s_scales) const {
    int const chunk = 2 * (lane_id() % 4), phase = lane_id() / 4;
#pragma unroll
    for (int i = 0; i < Units::kCount; ++i) {
      if (!Units::exists(warp, i)) continue;
      int const row = Units::row(warp, i);
      unsigned char* const s_row = s_tile + Units::panel(warp, i) * Cfg::kKvPanelBytes + row * kPanelRowBytes;
      float const scale = s_scales[row];
      *reinterpret_cast<uint4*>(s_row + (chunk ^ phase) * 16) = numbers(share[i].x, share[i].y, scale);
      *reinterpret_cast<uint4*>(s_row + ((chunk + 1) ^ phase) * 16) = numbers(share[i].z, share[i].w, scale);
    }
  }

  __device__ __forceinline__ static uint4 numbers(u32 first, u32 second, float scale) {
    float4 const a = cvt_f32x4_e4m3x4(first), b = cvt_f32x4_e4m3x4(second);
    return make_uint4(pair(a.x, a.y, scale), pair(a.z, a.w, scale), pair(b.x, b.y, scale), pair(b.z, b.w, scale));
  }

  __device__ __forceinline__ static u32 pair(float low, float high, float scale) {
    return scaled_pair<Cfg::kBf16>(make_float2(low, high), scale);
  }

  // The tile is written: consumers may have it as soon as all warps say so.
  __device__ __forceinline__ void hand_over(u64& full) const {
    fence_proxy_async();
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(smem_address(&full));
  }

  // What consumers read beside the keys of a tile.
  __device__ __forceinline__ void write_tile(int stage, Found const& of) const {
    if (warp != 0 || lane_id() != 0) return;
    smem.tiles[stage] = of.tile;
    if constexpr (Cfg::kPaged) {
#pragma unroll
      for (int w = 0; w < Cfg::kBc / 32; ++w) smem.spans[stage][0][w].x = of.hidden[w];  // no spans travel
    }
  }

  // Converts a tile, and begins to load the next one in its place.
  __device__ __forceinline__ void step(Held& held, bool any) {
    bool const converts = held.is_any, loads = has_next(!any);
    int const stage = ring.stage();
    Found const& of = smem.found[found.stage()];
    Found const& next = smem.found[loaded.stage()];
    if (converts) {
      mbarrier_wait(smem_address(&smem.k_empty[stage]), ring.parity() ^ 1);
      write_tile(stage, of);
      convert<KeyUnits>(smem.k[stage], held.keys, of.k_scales);
      hand_over(smem.k_full[stage]);
    }
    if (loads) load<KeyUnits>(held.keys, args.p.k, next.k_offsets, args.p.head_dim);
    if (converts) {
      mbarrier_wait(smem_address(&smem.v_empty[stage]), ring.parity() ^ 1);
      convert<ValueUnits>(smem.v[stage], held.values, of.v_scales);
      hand_over(smem.v_full[stage]);
      release(smem.found_empty[found.stage()]);
      ring.next();
      found.next();
    }
    if (loads) {
      load<ValueUnits>(held.values, args.p.v, next.v_offsets, value_columns<Cfg>(args.p));
      loaded.next();
    }
    held.is_any = loads;
  }

  __device__ __forceinline__ void run() {
    Held held[kHeld];
    bool any = false;
#pragma unroll 1
    do {
      bool any_left = false;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        step(held[i], any || any_left);
        any_left |= held[i].is_any;
      }
      any = any_left;
    } while (any || !no_more);
    let_next_kernel_come();
  }
};

// Nothing of kernels without e4m3.
template <class Cfg, class Smem>
__device__ __forceinline__ void run_finder(ForwardParamsSm90 const& args, Smem& smem) {
  using Finder = TileFinder<Cfg>;
  if constexpr (Cfg::kFp8) {
    if (threadIdx.x / 32 >= Finder::kFirstWarp) Finder(args, smem).run();
  }
}

template <class Cfg, class Smem>
__device__ __forceinline__ void run_converter(ForwardParamsSm90 const& args, Smem& smem) {
  if constexpr (Cfg::kFp8) Converter<Cfg>(args, smem).run();
}

}  // namespace omni
