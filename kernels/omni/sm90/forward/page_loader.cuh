// Warps that bring keys and values in pages, a share of each tile a warp. Boxes of the copy engine bring what pages of
// 8 keys and more hold; other pages are copied key by key, 16 bytes a thread at once, to where the copy engine would
// put them. Who waits for whom:
//
//  loading warps: k_empty, v_empty, on which consumers arrive, before they write to a tile.
//  consumers: k_full, v_full, on which each loading warp arrives, with the bytes that its boxes bring; key by key each
//    thread arrives when its copies are there, and on k_full each warp once more, which releases what it wrote about
//    the keys. A fence of the consumers' shows copies of threads to wgmma.
//  scheduler: work_empty, on which the loading warps arrive beside the consumers.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/producer.cuh"

namespace omni {

// One of the warps. It reads the table a tile ahead, so that neither a buffer nor the next tile waits for it.
template <class Cfg>
struct PageLoader {
  using Smem = ForwardSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Walk = typename Smem::Walk;
  using Share = PageShare<Cfg>;
  static constexpr int kWords = Share::kWords;
  static constexpr int kRows = 4;  // of a panel that a warp copies in one instruction
  // As registers allow: times as many rows whose addresses are handed round together; is the table read a tile ahead?
  static constexpr int kAtOnce = Cfg::kConsumers == 1 ? 4 : 2;
  static constexpr bool kAhead = Cfg::kConsumers == 1;
  static constexpr int kAskAt = Cfg::kQSlots == 2 ? 3 : 2;  // tiles of an item left when the next one is wanted

  // A tile, and of the lane's units 32 * word + lane of the warp's: their entries in the table and rows in their pages.
  struct Places {
    Tile tile;
    int entry[kWords], row[kWords];
  };

  ForwardParamsSm90 const& args;
  Smem& smem;
  int const warp;   // of those that load
  int const units;  // of the warp in each tile
  RingIndex<Cfg::kStages> k_ring, v_ring;

  __device__ __forceinline__ PageLoader(ForwardParamsSm90 const& params, Smem& memory, int of_loaders)
      : args(params), smem(memory), warp(of_loaders), units(Share::units(of_loaders)) {}

  __device__ __forceinline__ PageTable const& pages() const { return static_cast<PagedParamsSm90 const&>(args).pages; }
  __device__ __forceinline__ bool leads() const { return warp == 0 && lane_id() == 0; }

  __device__ __forceinline__ void ask() const {
    if (leads()) mbarrier_arrive(smem_address(&smem.work_wanted));
  }

  // Field by field: a Tile has padding, which else would be kept in registers.
  __device__ __forceinline__ static Tile copy_of(Tile const& tile) {
    return Tile{tile.packed, tile.payload, tile.first};
  }

  __device__ __forceinline__ Walk walk_of(Slot at) const {
    Walk const& s_walk = smem.walks[at.stage()];
    Walk walk(args.p.lists, s_walk.index, 0);
    walk.next = copy_of(s_walk.next);
    return walk;
  }

  // Is there a unit of the sequence for the lane?
  __device__ __forceinline__ bool exists(Tile const& tile, int word) const {
    int const unit = 32 * word + lane_id();
    return Cfg::kPage * (warp * Share::kUnits + unit) < (unit < units ? tile.length() : 0);
  }

  // Entries are not looked at before they are needed, a tile later.
  __device__ __forceinline__ void find(Places& places, Tile const& tile, int sequence) const {
    places.tile = copy_of(tile);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = tile.first + Cfg::kPage * (warp * Share::kUnits + 32 * w + lane_id());
      places.entry[w] = places.row[w] = 0;
      if (exists(tile, w)) places.entry[w] = pages().entry_of(sequence, key, places.row[w]);
    }
  }

  // Tells consumers about the tile that comes to a stage. none: units of the warp that have no page.
  __device__ __forceinline__ void describe(int stage, Tile const& tile, u32 const (&none)[kWords]) const {
    if (lane_id() != 0) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) smem.units_of_no_page(stage)[warp * kWords + w] = none[w];
    if (warp == 0) smem.tiles[stage] = tile;
  }

  // Starts the copies of 32 of the warp's rows of a tile, or as many as it has. s_rows: of the first one.  own: where
  // the lane's key is.  there: which ones are anywhere; the others become zeros, and so do columns that tensors lack.
  template <int kPanels>
  __device__ __forceinline__ static void copy(u32 s_rows, i64 own, u32 there, int rows, int columns) {
    constexpr int kStep = kRows * kAtOnce, kSteps = 32 / kStep;
    int const row = lane_id() / 8, chunk = lane_id() % 8;
    u32 const s_lane = s_rows + row * kPanelRowBytes, swizzled = (chunk ^ row) * 16;
#pragma unroll Cfg::kConsumers == 1 ? kSteps : 1
    for (int i = 0; i < kSteps; ++i) {
      if (kStep * i >= rows) break;
      i64 at[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) at[n] = __shfl_sync(0xffffffffu, own, kStep * i + kRows * n + row) + 16 * chunk;
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        int const first = kStep * i + kRows * n;
        bool const exists = there >> (first + row) & 1;
        u32 const s_target = s_lane + first * kPanelRowBytes + (swizzled ^ kRows * n % 8 * 16);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          int const bytes = exists && kPanelColumns * panel + 8 * chunk < columns ? 16 : 0;
          void const* const g_source = reinterpret_cast<unsigned char const*>(at[n]) + kPanelRowBytes * panel;
          cp_async_16(s_target + panel * Cfg::kKvPanelBytes, g_source, bytes);
        }
      }
    }
  }

  template <bool kOfKeys>
  __device__ __forceinline__ void load(Places const& places, int kv_head) {
    constexpr int kPanels = kOfKeys ? Cfg::kPanels : Cfg::kValuePanels;
    RingIndex<Cfg::kStages>& ring = kOfKeys ? k_ring : v_ring;
    int const stage = ring.stage();
    bool found[kWords];
    u32 none[kWords] = {};
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      bool const is_unit = exists(places.tile, w);
      found[w] = is_unit && pages().has(places.entry[w]);
      if constexpr (kOfKeys) none[w] = __ballot_sync(0xffffffffu, is_unit && !found[w]);
    }
    u64* const full = kOfKeys ? &smem.k_full[stage] : &smem.v_full[stage];
    u64* const empty = kOfKeys ? &smem.k_empty[stage] : &smem.v_empty[stage];
    int const first = warp * Share::kUnits * Cfg::kPage;  // row of the tile
    unsigned char* const s_rows = (kOfKeys ? smem.k[stage] : smem.v[stage]) + first * kPanelRowBytes;
    if constexpr (Cfg::kKeyByKey) {
      Tensor const pool = kOfKeys ? args.p.key() : args.p.value();
      unsigned char const* const g_head = pool.rows(0, kv_head);
      i64 own[kWords];
      u32 there[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        there[w] = __ballot_sync(0xffffffffu, found[w]);
        i64 const offset = found[w] ? 2 * paged_offset(pool.strides, places.entry[w], places.row[w]) : 0;
        own[w] = reinterpret_cast<i64>(g_head + offset);
      }
      mbarrier_wait(smem_address(empty), ring.parity() ^ 1);
      int const columns = kOfKeys ? args.p.head_dim : value_columns<Cfg>(args.p);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        u32 const s_word = smem_address(s_rows) + 32 * w * kPanelRowBytes;
        copy<kPanels>(s_word, own[w], there[w], units - 32 * w, columns);
      }
      mbarrier_arrive_when_copied(smem_address(full));
      if constexpr (kOfKeys) {
        describe(stage, places.tile, none);
        if (lane_id() == 0) mbarrier_arrive(smem_address(full));
      }
    } else {
      PageBox const box{found[0] ? places.entry[0] : pages().pages, found[0] ? places.row[0] : 0};
      mbarrier_wait(smem_address(empty), ring.parity() ^ 1);
      __syncwarp();  // no lane waits still when the buffer goes round once more
      if constexpr (kOfKeys) describe(stage, places.tile, none);
      if (lane_id() == 0) mbarrier_expect_tx(smem_address(full), units * Cfg::kPage * kPanelRowBytes * kPanels);
      load_boxes<Cfg, kPanels>(s_rows, kOfKeys ? &args.k_map : &args.v_map, full, kv_head, box, units);
    }
    ring.next();
  }

  // One item: K0 Q V0 K1 V1 ..., so that nothing of a tile is kept. has_q: Q is on its way.
  __device__ __forceinline__ void load_item(Slot at, bool has_q) {
    WorkSlot const& work = smem.work[at.stage()];
    int const kv_head = work.kv_head, sequence = work.mask;
    int left = work.tiles;
    Walk walk = walk_of(at);
    if (left <= kAskAt) ask();
    Places now, next;
    if (left != 0) {
      if (kAhead) find(next, walk.take(args.p.lists), sequence);
    } else {
      if (!has_q) load_q(at);
      load_next_q(at);
    }
#pragma unroll 1
    while (left > 0) {
      if constexpr (kAhead) {
        now = next;
        if (left > 1) find(next, walk.take(args.p.lists), sequence);
      } else {
        find(now, walk.take(args.p.lists), sequence);
      }
      load<true>(now, kv_head);
      if (!has_q) load_q(at);
      has_q = true;
      if (--left == 0) load_next_q(at);
      load<false>(now, kv_head);
      if (left == kAskAt) ask();
    }
  }

  // Q, where no thread apart loads it: by the first warp, the next item's before this one's last V if it has a slot.
  __device__ __forceinline__ void load_q(Slot at) const {
    if constexpr (!Cfg::kApart) {
      if (warp == 0) Producer<Cfg>(args, smem).load_q(at);
      __syncwarp();
    }
  }

  __device__ __forceinline__ void load_next_q(Slot at) const {
    if constexpr (!Cfg::kApart && Cfg::kQSlots == 2) {
      at.next();
      if (warp != 0) return;
      mbarrier_wait(smem_address(&smem.work_full[at.stage()]), at.parity());
      if (smem.work[at.stage()].head >= 0) load_q(at);
    }
  }

  __device__ __forceinline__ void run() {
    if (leads() && !Cfg::kKeyByKey) {
      prefetch_tensormap(&args.k_map);
      prefetch_tensormap(&args.v_map);
    }
    wait_for_kernel_ahead();
    bool has_q = Cfg::kApart;
#pragma unroll 1
    for (Slot slot{};; slot.next()) {
      mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
      if (smem.work[slot.stage()].head < 0) break;
      load_item(slot, has_q);
      release(smem.work_empty[slot.stage()]);
      has_q = Cfg::kApart || Cfg::kQSlots == 2;
    }
    let_next_kernel_come();
  }
};

// By the warps of a warpgroup: all four, or those beside the scheduler's. Nothing of kernels that load no pages so.
template <class Cfg, class Smem>
__device__ __forceinline__ void run_page_loader(ForwardParamsSm90 const& args, Smem& smem) {
  if constexpr (Cfg::kLoaders != 0) {
    constexpr int kSchedulers = 1;
    int const warp = threadIdx.x % 128 / 32;
    if (Cfg::kApart) {
      if (warp < Cfg::kLoaders) PageLoader<Cfg>(args, smem, warp).run();
    } else if (warp != kSchedulers) {
      PageLoader<Cfg>(args, smem, warp == 0 ? 0 : warp - 1).run();
    }
  }
}

}  // namespace omni
