// Caches of e4m3 on Hopper: a warpgroup beside the producer's and the consumers' brings keys and values and converts
// them, so that consumers find the tiles of 16 bits that the copy engine brings else. Who waits for whom:
//
//  converter thread: its own copies (cp.async) to the raw slots, which no other thread reads but for scales, which no
//    other warp reads. So only the thread's own wait, and a __syncwarp for scales, lie between bytes and numbers.
//  converter warp: k_empty, v_empty, on which consumers arrive, before it writes a tile of 16 bits.
//  consumers: k_full, v_full, on which each converter warp arrives behind a fence that shows its ordinary writes to the
//    asynchronous proxy, by which wgmma reads.
//  scheduler: work_empty, on which the converter warps and the thread that loads Q arrive beside the consumers.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/producer.cuh"
#include "omni/sm90/forward/raw_tile.cuh"

namespace omni {

// One of four warps. It asks for tiles kRawSlots ahead, into the next item too where that is known, and converts them
// in the order in which consumers need them: K0 V0 K1 V1 ...
template <class Cfg>
struct Converter {
  using Smem = Fp8Smem<Cfg>;
  using Slot = typename Smem::Slot;
  using Walk = typename Smem::Walk;
  using KeyUnits = RawUnits<Cfg, Cfg::kPanels>;
  using ValueUnits = RawUnits<Cfg, Cfg::kValuePanels>;
  static constexpr int kWords = Cfg::kBc / 32;
  static constexpr int kAskAt = 2;  // tiles to be asked for at which the next item is wanted

  // Where the lane's keys 32 * word + lane of a tile are; the page of a key that is nowhere is -1.
  struct Places {
    int page[kWords], row[kWords];
    int sequence, first, length;  // of the tile

    // Those of a row of the tile, of Units::row(warp, i).
    template <class Units>
    __device__ __forceinline__ int of_unit(int warp, int i, int& row_at) const {
      int const at = Units::row(warp, i);
      if constexpr (!Cfg::kPaged) {
        row_at = first + at;
        return at < length ? sequence : -1;
      }
      row_at = __shfl_sync(0xffffffffu, row[Units::word(i)], at % 32);
      return __shfl_sync(0xffffffffu, page[Units::word(i)], at % 32);
    }
  };

  ForwardParamsSm90 const& args;
  Smem& smem;
  int const warp;  // of the four
  RingIndex<Cfg::kStages> k_ring, v_ring;
  RingIndex<Cfg::kRawSlots> asked_for, converted;  // raw slots
  int ahead = 0;                                   // tiles between them
  Slot asked_item;                                 // whose tiles are asked for
  int left = 0;                                    // tiles of it that were not
  bool no_more = false;                            // items
  Walk walk;

  __device__ __forceinline__ Converter(ForwardParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory), warp(threadIdx.x % 128 / 32), walk(params.p.lists, 0, 0) {}

  __device__ __forceinline__ KvScales const& scales() const { return static_cast<Fp8ParamsSm90 const&>(args).scales; }
  __device__ __forceinline__ bool leads() const { return warp == 0 && lane_id() == 0; }

  // From now on tiles of the item in `slot` are asked for; it is announced.
  __device__ __forceinline__ void enter(Slot slot) {
    asked_item = slot;
    if (smem.work[slot.stage()].head < 0) {
      no_more = true;
      return;
    }
    left = smem.work[slot.stage()].tiles;
    walk = smem.walks[slot.stage()];
    if (left <= kAskAt) ask();
  }

  __device__ __forceinline__ void ask() const {
    if (leads()) mbarrier_arrive(smem_address(&smem.work_wanted));
  }

  // Asks for tiles until all raw slots are taken, or nothing is known to ask for. Never waits: the consumers, and so
  // the scheduler, may wait for what this warp has yet to convert.
  __device__ __forceinline__ void ask_ahead() {
#pragma unroll 1
    while (ahead < Cfg::kRawSlots && !no_more) {
      if (left == 0) {
        Slot next = asked_item;
        next.next();
        bool const known = mbarrier_has_ended(smem_address(&smem.work_full[next.stage()]), next.parity());
        if (!__all_sync(0xffffffffu, known)) return;
        enter(next);
        continue;
      }
      ask_for(walk.take(args.p.lists));
      if (--left == kAskAt) ask();
    }
  }

  // All warps look up all keys of a tile: scales and columns of a row are shared out over them.
  __device__ __forceinline__ void find_places(Places& places, Tile const& tile, int sequence) {
    auto& slot = smem.raw[asked_for.stage()];
    int const length = min(tile.length(), Cfg::kBc);
    places.sequence = sequence;
    places.first = tile.first;
    places.length = length;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      bool const exists = key < length;
      bool found = false;
      if (exists) {
        PageTable const& table = static_cast<Fp8ParamsSm90 const&>(args).pages;
        found = find_key<Cfg::kPaged>(table, sequence, tile.first + key, places.page[w], places.row[w]);
      }
      if constexpr (Cfg::kPaged) {
        u32 const hidden = __ballot_sync(0xffffffffu, exists && !found);
        if (leads()) slot.hidden[w] = hidden;
      }
      if (!found) places.page[w] = -1;
    }
    if (leads()) slot.tile = tile;
  }

  template <class Units>
  __device__ __forceinline__ void copy(unsigned char* s_raw, E4m3Rows const& rows, Places const& places, int columns) {
    u32 s_target = smem_address(s_raw) + threadIdx.x % 128 * 16;
#pragma unroll
    for (int i = 0; i < Units::kCount; ++i) {
      int row;
      int const page = places.template of_unit<Units>(warp, i, row);
      int const column = kPanelColumns * Units::panel(warp, i) + lane_id() % 4 * 16;
      bool const exists = page >= 0 && column < columns;
      cp_async_16(s_target + i * 2048, exists ? rows.row(page, row) + column : rows.g_head, exists ? 16 : 0);
    }
  }

  // Scales of tokens, those of all keys for each warp.
  __device__ __forceinline__ void copy_scales(float* s_scales, E4m3Rows const& rows, Places const& places) {
    if (!rows.has_scales_of_tokens()) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      bool const exists = places.page[w] >= 0;
      float const* const g_scale =
          rows.g_scales + (exists ? paged_offset(rows.scale_strides, places.page[w], places.row[w]) : 0);
      cp_async_4(smem_address(s_scales + 32 * w + lane_id()), g_scale, exists ? 4 : 0);
    }
  }

  // Starts the copies of a tile into the next raw slot: two groups, keys and values.
  __device__ __forceinline__ void ask_for(Tile const& tile) {
    auto& slot = smem.raw[asked_for.stage()];
    WorkSlot const& work = smem.work[asked_item.stage()];
    Places places;
    find_places(places, tile, work.mask);
    E4m3Rows const keys = e4m3_keys(args.p, scales(), work.kv_head);
    copy<KeyUnits>(slot.k, keys, places, args.p.head_dim);
    copy_scales(slot.k_scales[warp], keys, places);
    cp_async_commit();
    E4m3Rows const values = e4m3_values(args.p, scales(), work.kv_head);
    copy<ValueUnits>(slot.v, values, places, value_columns<Cfg>(args.p));
    copy_scales(slot.v_scales[warp], values, places);
    cp_async_commit();
    asked_for.next();
    ++ahead;
  }

  // The copies of the oldest tile's keys, or of its values, are there. Where fewer tiles are on their way than there
  // are raw slots, hardly anything is behind them that were worth a count.
  template <int kGroupsBehind>
  __device__ __forceinline__ void wait_for_copies() {
    if (ahead == Cfg::kRawSlots) {
      cp_async_wait<kGroupsBehind>();
    } else {
      cp_async_wait<0>();
    }
    __syncwarp();
  }

  // The lane's share of a tile as numbers of 16 bits, where the swizzle of wgmma has them: chunk c of row r of a panel,
  // 8 columns, at c ^ r % 8. The eight lanes of a quarter warp write to eight bank groups.
  template <class Units>
  __device__ __forceinline__ void convert(
      unsigned char* s_tile, unsigned char const* s_raw, float const* s_scales, float all, bool of_tokens) {
    unsigned char const* const s_source = s_raw + threadIdx.x % 128 * 16;
    int const chunk = 2 * (lane_id() % 4), phase = lane_id() / 4;
    uint4 next = *reinterpret_cast<uint4 const*>(s_source);
    float next_scale = of_tokens ? s_scales[Units::row(warp, 0)] : all;
#pragma unroll
    for (int i = 0; i < Units::kCount; ++i) {
      uint4 const raw = next;
      float const scale = next_scale;
      if (i + 1 < Units::kCount) {  // ahead of the stores, which the compiler takes for some that may change it
        next = *reinterpret_cast<uint4 const*>(s_source + (i + 1) * 2048);
        if (of_tokens) next_scale = s_scales[Units::row(warp, i + 1)];
      }
      unsigned char* const s_row =
          s_tile + Units::panel(warp, i) * Cfg::kKvPanelBytes + Units::row(warp, i) * kPanelRowBytes;
      *reinterpret_cast<uint4*>(s_row + (chunk ^ phase) * 16) = numbers(raw.x, raw.y, scale);
      *reinterpret_cast<uint4*>(s_row + ((chunk + 1) ^ phase) * 16) = numbers(raw.z, raw.w, scale);
    }
  }

  __device__ __forceinline__ static uint4 numbers(u32 first, u32 second, float scale) {
    float4 const a = cvt_f32x4_e4m3x4(first), b = cvt_f32x4_e4m3x4(second);
    return make_uint4(pair(a.x, a.y, scale), pair(a.z, a.w, scale), pair(b.x, b.y, scale), pair(b.z, b.w, scale));
  }

  __device__ __forceinline__ static u32 pair(float low, float high, float scale) {
    return scaled_pair<Cfg::kBf16>(make_float2(low, high), scale);
  }

  // The tile is written: consumers may have it as soon as all four warps say so.
  __device__ __forceinline__ void hand_over(u64& full) const {
    fence_proxy_async();
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(smem_address(&full));
  }

  // What consumers read beside the keys of a tile.
  __device__ __forceinline__ void write_tile(int stage) const {
    auto const& slot = smem.raw[converted.stage()];
    Tile tile = slot.tile;
    if constexpr (Cfg::kPaged) {
      u32 any = 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        smem.spans[stage][0][w].x = static_cast<int>(slot.hidden[w]);  // no spans travel
        any |= slot.hidden[w];
      }
      if (any != 0) tile.packed |= kNoPageFlag;
    }
    smem.tiles[stage] = tile;
  }

  // One item, from its first tile to its last.
  __device__ __forceinline__ void convert_item(WorkSlot const& work) {
    E4m3Rows const keys = e4m3_keys(args.p, scales(), work.kv_head);
    E4m3Rows const values = e4m3_values(args.p, scales(), work.kv_head);
    bool const k_of_tokens = keys.has_scales_of_tokens(), v_of_tokens = values.has_scales_of_tokens();
    float const k_all = k_of_tokens ? 0.f : keys.scale(0, 0), v_all = v_of_tokens ? 0.f : values.scale(0, 0);
#pragma unroll 1
    for (int tiles = work.tiles; tiles > 0; --tiles) {
      ask_ahead();
      auto const& slot = smem.raw[converted.stage()];
      wait_for_copies<2 * Cfg::kRawSlots - 1>();
      mbarrier_wait(smem_address(&smem.k_empty[k_ring.stage()]), k_ring.parity() ^ 1);
      if (leads()) write_tile(k_ring.stage());
      convert<KeyUnits>(smem.k[k_ring.stage()], slot.k, slot.k_scales[warp], k_all, k_of_tokens);
      hand_over(smem.k_full[k_ring.stage()]);
      k_ring.next();
      wait_for_copies<2 * Cfg::kRawSlots - 2>();
      mbarrier_wait(smem_address(&smem.v_empty[v_ring.stage()]), v_ring.parity() ^ 1);
      convert<ValueUnits>(smem.v[v_ring.stage()], slot.v, slot.v_scales[warp], v_all, v_of_tokens);
      hand_over(smem.v_full[v_ring.stage()]);
      v_ring.next();
      converted.next();
      --ahead;
    }
  }

  __device__ __forceinline__ void run() {
    wait_for_kernel_ahead();
    Slot item;
    mbarrier_wait(smem_address(&smem.work_full[item.stage()]), item.parity());
    enter(item);
#pragma unroll 1
    while (true) {
      mbarrier_wait(smem_address(&smem.work_full[item.stage()]), item.parity());
      WorkSlot const& work = smem.work[item.stage()];
      if (asked_item.packed != item.packed) enter(item);  // it was not known when there was room
      if (work.head < 0) break;
      convert_item(work);
      release(smem.work_empty[item.stage()]);
      item.next();
    }
    let_next_kernel_come();
  }
};

// Nothing of kernels without e4m3.
template <class Cfg, class Smem>
__device__ __forceinline__ void run_converter(ForwardParamsSm90 const& args, Smem& smem) {
  if constexpr (Cfg::kFp8) Converter<Cfg>(args, smem).run();
}

}  // namespace omni
