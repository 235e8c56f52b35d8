// The producer: one thread that walks the tiles of work items and asks the copy engine for Q, K and V. Where K and V
// are in pages and there is no scheduler a warp walks, and its first lane does what one thread has to. Where others
// bring K and V (page_loader.cuh, converter.cuh) it loads Q alone.
#pragma once

#include "omni/sm90/forward/pages.cuh"

namespace omni {

template <class Cfg>
struct Producer {
  using Smem = ForwardSmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Walk = typename Smem::Walk;

  // Tiles before an item's end at which the next item is asked for: so late that whoever is done first gets it, in
  // time for the answer.
  static constexpr int kAskAt = Cfg::kScheduler && Cfg::kQSlots == 2 ? 3 : 2;

  ForwardParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> k_ring, v_ring;
  Slot slot;  // of the item at hand, or the one after it where this thread announces items

  __device__ __forceinline__ Producer(ForwardParamsSm90 const& params, Smem& memory) : args(params), smem(memory) {}

  __device__ __forceinline__ static bool leads() { return !Cfg::kPaged || lane_id() == 0; }

  // The warp is together again, and its lanes see what the first one wrote.
  __device__ __forceinline__ static void meet() {
    if constexpr (Cfg::kPaged) __syncwarp();
  }

  // An item is read in its slot rather than kept in registers.
  __device__ __forceinline__ WorkSlot const& work(Slot at) const { return smem.work[at.stage()]; }

  __device__ __forceinline__ PageTable const& pages() const { return static_cast<PagedParamsSm90 const&>(args).pages; }

  __device__ __forceinline__ TailMaps const& tails() const { return static_cast<TailParamsSm90 const&>(args).tails; }

  // The table is read ahead of the wait for a buffer, which is where a producer's time goes.
  __device__ __forceinline__ void load_k_in_boxes(Slot at, Tile tile) {
    bool none;
    PageBox const box = page_box<Cfg>(pages(), work(at).mask, tile, none);
    int const stage = k_ring.stage(), kv_head = work(at).kv_head;
    mbarrier_wait(smem_address(&smem.k_empty[stage]), k_ring.parity() ^ 1);
    u32 const hidden = __ballot_sync(0xffffffffu, none);
    if (leads()) {
      if (hidden != 0) tile.packed |= kNoPageFlag;
      smem.tiles[stage] = tile;
      smem.spans[stage][0][0].x = static_cast<int>(hidden);  // no spans travel
      mbarrier_expect_tx(smem_address(&smem.k_full[stage]), Cfg::kKBytes);
    }
    meet();
    load_boxes<Cfg, Cfg::kPanels>(smem.k[stage], &args.k_map, &smem.k_full[stage], kv_head, box, Cfg::kBc / Cfg::kPage);
    k_ring.next();
  }

  __device__ __forceinline__ void load_v_in_boxes(Slot at, Tile const& tile) {
    bool none;
    PageBox const box = page_box<Cfg>(pages(), work(at).mask, tile, none);
    int const stage = v_ring.stage(), kv_head = work(at).kv_head;
    mbarrier_wait(smem_address(&smem.v_empty[stage]), v_ring.parity() ^ 1);
    if (leads()) mbarrier_expect_tx(smem_address(&smem.v_full[stage]), Cfg::kVBytes);
    meet();
    load_boxes<Cfg, Cfg::kValuePanels>(
        smem.v[stage], &args.v_map, &smem.v_full[stage], kv_head, box, Cfg::kBc / Cfg::kPage);
    v_ring.next();
  }

  __device__ __forceinline__ void load_k(Slot at, Tile const& tile) {
    if constexpr (Cfg::kPaged) return load_k_in_boxes(at, tile);
    mbarrier_wait(smem_address(&smem.k_empty[k_ring.stage()]), k_ring.parity() ^ 1);
    smem.tiles[k_ring.stage()] = tile;  // released to the consumers by the arrival below
    int const span_bytes = spans_travel(args.p, tile) ? Cfg::kBc * static_cast<int>(sizeof(int2)) : 0;
    u64* const full = &smem.k_full[k_ring.stage()];
    TileOrigin const origin{tile.first, work(at).kv_head, work(at).batch};
    load_panels_and_tail<Cfg::kBc, Cfg::kPanels, Cfg::kTail>(
        smem.k[k_ring.stage()], &args.k_map, &tails().k, full, origin, args.p.n_spans * span_bytes);
    if (span_bytes != 0) {
#pragma unroll 1
      for (int i = 0; i < args.p.n_spans; ++i) {
        int2 const* const g_spans = MaskView{args.p, work(at).mask}.spans() + i * args.p.k_padded + tile.first;
        bulk_load(smem_address(smem.spans[k_ring.stage()][i]), g_spans, span_bytes, smem_address(full));
      }
    }
    k_ring.next();
  }

  __device__ __forceinline__ void load_v(Slot at, Tile const& tile) {
    if constexpr (Cfg::kPaged) return load_v_in_boxes(at, tile);
    mbarrier_wait(smem_address(&smem.v_empty[v_ring.stage()]), v_ring.parity() ^ 1);
    TileOrigin const origin{tile.first, work(at).kv_head, work(at).batch};
    load_panels_and_tail<Cfg::kBc, Cfg::kValuePanels, Cfg::kValueTail>(
        smem.v[v_ring.stage()], &args.v_map, &tails().v, &smem.v_full[v_ring.stage()], origin);
    v_ring.next();
  }

  __device__ __forceinline__ void load_q(Slot at) {
    if (!leads()) return;
    int const i = Smem::q_slot(at);
    mbarrier_wait(smem_address(&smem.q_empty[i]), Smem::q_parity(at) ^ 1);
    if constexpr (Cfg::kPack) {
      load_packed_q(work(at), i);
    } else {
      int const only = 0;
      TileOrigin const origin{work(at).q0, work(at).head, Cfg::kRagged ? only : work(at).batch};
      load_panels_and_tail<Cfg::kQRows, Cfg::kPanels, Cfg::kTail>(
          smem.q[i], &args.q_map, &tails().q, &smem.q_full[i], origin);
    }
  }

  // A box holds all heads of a pack; heads and tokens that there are not read as zeros.
  __device__ __forceinline__ void load_packed_q(WorkSlot const& item, int i) {
    u32 const s_q = smem_address(smem.q[i]), full = smem_address(&smem.q_full[i]);
    int const rows = args.p.pack_heads * args.p.pack_tokens, head = item.head - item.kv_head * args.p.group;
    mbarrier_expect_tx(full, Cfg::kPanels * kPanelRowBytes * rows);
#pragma unroll
    for (int panel = 0; panel < Cfg::kPanels; ++panel) {
      tma_load_5d(
          s_q + panel * Cfg::kQPanelBytes, &args.q_map, full, kPanelColumns * panel, head, item.q0, item.kv_head,
          query_batch<Cfg>(item.batch));
    }
  }

  // One item: K0 Q (K1 V0) (K2 V1) ... V(n-1), in the order in which the consumers need them. ask() asks for the next
  // item, before_last() comes before the last V, for which a buffer is waited for. has_q: Q is on its way.
  template <class Ask, class BeforeLast>
  __device__ __forceinline__ void produce(
      Slot at, Walk& walk, bool has_q, Ask const& ask, BeforeLast const& before_last) {
    int left = work(at).tiles;
    if (left <= kAskAt) ask();
    Tile tile{};
    bool const any = left > 0;
    if (any) {
      tile = walk.take(args.p.lists);
      load_k(at, tile);
    }
    if (!has_q) load_q(at);
#pragma unroll 1
    while (--left > 0) {
      if (left == kAskAt) ask();
      Tile const before = tile;
      tile = walk.take(args.p.lists);
      load_k(at, tile);
      load_v(at, before);
    }
    before_last();
    if (any) load_v(at, tile);
  }

  // Takes the items itself. The block mask was there before the kernel ahead began; what else is read or written, by
  // the consumers too, comes after that kernel has ended.
  __device__ __forceinline__ void run_alone() {
    WorkList<Smem> const list{args, smem};
    int index = blockIdx.x;
    list.wait_for_lists();
#pragma unroll 1
    while (index < list.work_items()) {
      WorkItem const item = list.item(index);
      Walk walk(args.p.lists, item.first, item.tiles);
      if (leads()) list.announce_item(slot, item);
      slot.next();
      wait_for_kernel_ahead();
      meet();
      produce(
          slot.before(), walk, false,
          [&] {
            if (leads()) index = list.take();
          },
          [] {});
      if constexpr (Cfg::kPaged) index = __shfl_sync(0xffffffffu, index, 0);
    }
    let_next_kernel_come();
    if (leads()) list.end(slot);
  }

  __device__ __forceinline__ void wait_for_item(Slot at) const {
    mbarrier_wait(smem_address(&smem.work_full[at.stage()]), at.parity());
  }

  // Behind a scheduler, which knows the next item by the end of this one: where Q has two slots the next one is
  // loaded then.
  __device__ __forceinline__ void run_behind() {
    wait_for_kernel_ahead();
    auto const ask = [&] {
      if (leads()) mbarrier_arrive(smem_address(&smem.work_wanted));
    };
    auto const load_next_q = [&] {
      if constexpr (Cfg::kQSlots == 1) return;
      Slot next = slot;
      next.next();
      wait_for_item(next);
      if (work(next).head >= 0) load_q(next);
    };
#pragma unroll 1
    for (bool has_q = false;; has_q = Cfg::kQSlots == 2) {
      wait_for_item(slot);
      if (work(slot).head < 0) break;
      Walk walk = smem.walks[slot.stage()];
      produce(slot, walk, has_q, ask, load_next_q);
      meet();  // nobody is an item behind, whose slot would be written anew
      slot.next();
    }
    let_next_kernel_come();
  }

  // Beside warps that bring K and V: one thread that loads Q of item after item.
  __device__ __forceinline__ void run_for_queries() {
    prefetch_tensormap(&args.q_map);
    wait_for_kernel_ahead();
#pragma unroll 1
    while (true) {
      wait_for_item(slot);
      if (work(slot).head < 0) break;
      load_q(slot);
      mbarrier_arrive(smem_address(&smem.work_empty[slot.stage()]));
      slot.next();
    }
  }

  __device__ __forceinline__ void run() {
    prefetch_tensormap(&args.q_map);
    prefetch_tensormap(&args.k_map);
    prefetch_tensormap(&args.v_map);
    if constexpr (Cfg::kTail != 0) {
      prefetch_tensormap(&tails().q);
      prefetch_tensormap(&tails().k);
    }
    if constexpr (Cfg::kValueTail != 0) prefetch_tensormap(&tails().v);
    if constexpr (Cfg::kScheduler) {
      run_behind();
    } else {
      run_alone();
    }
  }
};

}  // namespace omni
