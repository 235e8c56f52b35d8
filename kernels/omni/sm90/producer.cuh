// The producer: one thread that walks the tiles of work items and asks the copy engine for Q, K and V.
#pragma once

#include "omni/sm90/work.cuh"

namespace omni {

template <class Cfg>
struct Producer {
  using Smem = SmemSm90<Cfg>;

  AttnParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> k_ring, v_ring;
  WorkList<Cfg> list;  // its slot is the one after that of the item at hand

  __device__ __forceinline__ Producer(AttnParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory), list(params, memory) {}

  // The item at hand: read in its slot rather than kept in registers.
  __device__ __forceinline__ WorkSlot const& work() const { return smem.work[list.slot.before().stage()]; }

  // The copies of one operand's panels; the barrier expects whole boxes, also where they reach past the tensor.
  // more_bytes: what else comes on the same barrier.
  template <int kRows>
  __device__ __forceinline__ void load(
      unsigned char* s_tile, TensorMap const* map, u64* full, int token, int map_head, int more_bytes = 0) {
    constexpr int kPanelBytes = kRows * Cfg::kRowBytes;
    mbarrier_expect_tx(smem_address(full), Cfg::kPanels * kPanelBytes + more_bytes);
    int const batch = work().batch;
#pragma unroll
    for (int panel = 0; panel < Cfg::kPanels; ++panel) {
      tma_load_4d(smem_address(s_tile) + panel * kPanelBytes, map, smem_address(full), 64 * panel, token, map_head, batch);
    }
  }

  __device__ __forceinline__ void load_k(KeyTile const& tile) {
    mbarrier_wait(smem_address(&smem.k_empty[k_ring.stage()]), k_ring.parity() ^ 1);
    smem.tiles[k_ring.stage()] = tile;  // released to the consumers by the arrival below
    int const span_bytes = spans_travel(args.p, tile) ? Cfg::kBc * static_cast<int>(sizeof(int2)) : 0;
    u64* const full = &smem.k_full[k_ring.stage()];
    load<Cfg::kBc>(smem.k[k_ring.stage()], &args.k_map, full, tile.k0, work().kv_head, args.p.n_spans * span_bytes);
    if (span_bytes != 0) {
#pragma unroll 1
      for (int i = 0; i < args.p.n_spans; ++i) {
        int2 const* const g_spans = MaskView{args.p, work().mask}.spans() + i * args.p.k_padded + tile.k0;
        bulk_load(smem_address(smem.spans[k_ring.stage()][i]), g_spans, span_bytes, smem_address(full));
      }
    }
    k_ring.next();
  }

  __device__ __forceinline__ void load_v(int k0) {
    mbarrier_wait(smem_address(&smem.v_empty[v_ring.stage()]), v_ring.parity() ^ 1);
    load<Cfg::kBc>(smem.v[v_ring.stage()], &args.v_map, &smem.v_full[v_ring.stage()], k0, work().kv_head);
    v_ring.next();
  }

  __device__ __forceinline__ void load_q() {
    typename Smem::Slot const at = list.slot.before();
    int const i = Smem::q_slot(at);
    mbarrier_wait(smem_address(&smem.q_empty[i]), Smem::q_parity(at) ^ 1);
    load<Cfg::kBr>(smem.q[i], &args.q_map, &smem.q_full[i], work().q0, work().head);
  }

  // Asks for the work item after this one; a scheduler answers through the slot.
  __device__ __forceinline__ int ask() const {
    if constexpr (!Cfg::kScheduler) return list.take();
    mbarrier_arrive(smem_address(&smem.work_wanted));
    return 0;
  }

  // K0 Q (K1 V0) (K2 V1) ... V(n-1): in the order in which the consumers need them. Returns the next work item, asked for
  // kAskAt tiles before the end: so late that whoever is done first gets it, in time for the answer.
  __device__ __forceinline__ int produce(Visit& visit) {
    constexpr int kAskAt = 2;
    int next = 0;
    if (visit.left() <= kAskAt) next = ask();
    KeyTile tile{};
    bool const any = visit.has_next();
    if (any) {
      tile = visit.take(args.p);
      load_k(tile);
    }
    load_q();
#pragma unroll 1
    while (visit.has_next()) {
      if (visit.left() == kAskAt) next = ask();
      int const k0 = tile.k0;
      tile = visit.take(args.p);
      load_k(tile);
      load_v(k0);
    }
    if (any) load_v(tile.k0);
    return next;
  }

  // The block mask was there before the kernel ahead began; what else is read or written, by the consumers too, comes
  // after that kernel has ended.
  __device__ __forceinline__ void run() {
    prefetch_tensormap(&args.q_map);
    prefetch_tensormap(&args.k_map);
    prefetch_tensormap(&args.v_map);
    if constexpr (Cfg::kScheduler) {
      wait_for_kernel_ahead();
#pragma unroll 1
      while (true) {
        mbarrier_wait(smem_address(&smem.work_full[list.slot.stage()]), list.slot.parity());
        list.slot.next();
        if (work().head < 0) break;
        Visit visit = smem.walks[list.slot.before().stage()];
        produce(visit);
      }
      let_next_kernel_come();
    } else {
      int index = blockIdx.x;
#pragma unroll 1
      while (index < args.work_items) {
        WorkItem const item = work_item(args.p, index);
        Visit visit(args.p, item.first, item.end);
        list.announce_item(item, visit);
        wait_for_kernel_ahead();
        index = produce(visit);
      }
      let_next_kernel_come();
      list.end();
    }
  }
};

}  // namespace omni
