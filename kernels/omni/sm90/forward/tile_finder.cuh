// Where the keys of tiles of e4m3 caches are: two warps beside the producer walk the tiles of work items, find every
// other one each, and tell the warps that load and convert (converter.cuh), a few tiles ahead of them. So the latency
// of a table of pages keeps nobody waiting, and offsets are worked out once. Who waits for whom: these warps for
// work_full, on which the scheduler arrives, and for found_empty; the scheduler for work_empty and work_wanted, on
// which they arrive.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/found_tile.cuh"
#include "omni/sm90/forward/producer.cuh"

namespace omni {

template <class Cfg>
struct TileFinder {
  using Smem = Fp8Smem<Cfg>;
  using Slot = typename Smem::Slot;
  using Found = FoundTile<Cfg>;
  static constexpr int kFirstWarp = 2;  // of the two, behind who loads Q and the scheduler
  static constexpr int kWords = Cfg::kBc / 32;

  ForwardParamsSm90 const& args;
  Smem& smem;
  bool const leads;  // the two warps, and finds the first tile
  bool has_turn;
  RingIndex<Smem::kFound> ring;

  __device__ __forceinline__ TileFinder(ForwardParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory), leads(threadIdx.x / 32 == kFirstWarp), has_turn(leads) {}

  __device__ __forceinline__ PageTable const& table() const { return static_cast<Fp8ParamsSm90 const&>(args).pages; }
  __device__ __forceinline__ KvScales const& scales() const { return static_cast<Fp8ParamsSm90 const&>(args).scales; }

  // The scale of a key: one of tokens comes by a copy, which the barrier awaits.
  __device__ __forceinline__ static void bring_scale(
      float* s_scale, E4m3Rows const& rows, float all, int page, int row, bool exists) {
    if (rows.has_scales_of_tokens()) {
      float const* const g_scale = rows.g_scales + (exists ? paged_offset(rows.scale_strides, page, row) : 0);
      cp_async_4(smem_address(s_scale), g_scale, exists ? 4 : 0);
    } else {
      *s_scale = all;
    }
  }

  // page: -1 where the tile has no key, and behind the pool where the key has no page.
  __device__ __forceinline__ bool exists(int page) const {
    return page >= 0 && (!Cfg::kPaged || page != table().pages);
  }

  // A tile of an item's. k_all, v_all: the scales of all keys of the head, where tokens have none.
  __device__ __forceinline__ void find(
      Tile tile, int sequence, E4m3Rows const& keys, E4m3Rows const& values, float k_all, float v_all) {
    Found& found = smem.found[ring.stage()];
    int const length = min(tile.length(), Cfg::kBc);
    int page[kWords], row[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {  // all looked up before the first is waited for
      int const key = 32 * w + lane_id();
      page[w] = -1;
      row[w] = 0;
      if (key < length) find_key<Cfg::kPaged>(table(), sequence, tile.first + key, page[w], row[w]);
    }
    mbarrier_wait(smem_address(&smem.found_empty[ring.stage()]), ring.parity() ^ 1);
    u32 any_hidden = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      bool const is_there = exists(page[w]);
      if constexpr (Cfg::kPaged) {
        u32 const hidden = __ballot_sync(0xffffffffu, key < length && !is_there);
        if (lane_id() == 0) found.hidden[w] = static_cast<int>(hidden);
        any_hidden |= hidden;
      }
      found.k_offsets[key] = is_there ? keys.row(page[w], row[w]) - static_cast<unsigned char const*>(args.p.k) : -1;
      found.v_offsets[key] = is_there ? values.row(page[w], row[w]) - static_cast<unsigned char const*>(args.p.v) : -1;
      bring_scale(found.k_scales + key, keys, k_all, page[w], row[w], is_there);
      bring_scale(found.v_scales + key, values, v_all, page[w], row[w], is_there);
    }
    if (any_hidden != 0) tile.packed |= kNoPageFlag;
    hand_over(tile, false);
  }

  // Tells of a tile, or of the end of all tiles. The barrier awaits each lane's copies, and the first lane, which comes
  // behind what all have written.
  __device__ __forceinline__ void hand_over(Tile const& tile, bool is_end) {
    Found& found = smem.found[ring.stage()];
    u32 const full = smem_address(&smem.found_full[ring.stage()]);
    if (lane_id() == 0) {
      found.tile = tile;
      found.is_end = is_end;
    }
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(full);
    mbarrier_arrive_when_copied(full);
  }

  __device__ __forceinline__ void find_item(Slot slot) {
    WorkSlot const& work = smem.work[slot.stage()];
    E4m3Rows const keys = e4m3_keys(args.p, scales(), work.kv_head);
    E4m3Rows const values = e4m3_values(args.p, scales(), work.kv_head);
    float const k_all = keys.has_scales_of_tokens() ? 0.f : keys.scale(0, 0);
    float const v_all = values.has_scales_of_tokens() ? 0.f : values.scale(0, 0);
    auto walk = smem.walks[slot.stage()];
#pragma unroll 1
    for (int left = work.tiles; left > 0; --left) {
      Tile const tile = walk.take(args.p.lists);
      if (has_turn) find(tile, work.mask, keys, values, k_all, v_all);
      has_turn = !has_turn;
      ring.next();
    }
  }

  // The next item is asked for when all tiles of one are found, a few tiles before the consumers get there.
  __device__ __forceinline__ void run() {
    wait_for_kernel_ahead();
    Slot slot;
#pragma unroll 1
    while (true) {
      mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
      if (smem.work[slot.stage()].head < 0) break;
      find_item(slot);
      release(smem.work_empty[slot.stage()]);
      if (leads && lane_id() == 0) mbarrier_arrive(smem_address(&smem.work_wanted));
      slot.next();
    }
    if (!has_turn) return;
    mbarrier_wait(smem_address(&smem.found_empty[ring.stage()]), ring.parity() ^ 1);
    hand_over(Tile{}, true);
  }
};

}  // namespace omni
