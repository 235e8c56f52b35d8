// The producer of the kernel that makes dQ: one thread that takes blocks of queries, and asks the copy engine for Q and
// dO once, and for K and V of every tile.
#pragma once

#include "omni/sm90/backward/query_smem.cuh"

namespace omni {

template <class Cfg>
struct QueryProducer {
  using Smem = QuerySmem<Cfg>;
  using Slot = typename Smem::Slot;

  BackwardParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> ring;      // of K and V
  RingIndex<Smem::kKeyTiles> tiles;  // of spans
  Slot slot;                         // of the item at hand

  __device__ __forceinline__ QueryProducer(BackwardParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory) {}

  // An item is read in its slot rather than kept in registers.
  __device__ __forceinline__ WorkSlot const& work() const { return smem.work[slot.stage()]; }

  __device__ __forceinline__ void load_queries() {
    mbarrier_wait(smem_address(&smem.q_empty), Smem::q_parity(slot) ^ 1);
    TileOrigin const origin{work().q0, work().head, work().batch};
    load_panels<Cfg::kBr, Cfg::kHeadPanels>(smem.q, &args.q_map, &smem.q_full, origin);
    load_panels<Cfg::kBr, Cfg::kValuePanels>(smem.dout, &args.dout_map, &smem.q_full, origin);
  }

  __device__ __forceinline__ void load_keys(Tile const& tile) {
    ForwardParams const& p = args.b.p;
    mbarrier_wait(smem_address(&smem.kv_empty[ring.stage()]), ring.parity() ^ 1);
    smem.tiles[tiles.stage()] = tile;  // released to the consumers by the arrival below
    u64* const full = &smem.kv_full[ring.stage()];
    int const span_bytes = spans_travel(p, tile) ? Cfg::kBc * static_cast<int>(sizeof(int2)) : 0;
    load_panels<Cfg::kBc, Cfg::kHeadPanels>(
        smem.kv[ring.stage()], &args.k_map, full, TileOrigin{tile.first, work().kv_head, work().batch},
        p.n_spans * span_bytes);
    if (span_bytes != 0) {
#pragma unroll 1
      for (int i = 0; i < p.n_spans; ++i) {
        int2 const* const g_spans = MaskView{p, work().mask}.spans() + i * p.k_padded + tile.first;
        bulk_load(smem_address(smem.spans[tiles.stage()][i]), g_spans, span_bytes, smem_address(full));
      }
    }
    tiles.next();
    ring.next();
  }

  __device__ __forceinline__ void load_values(Tile const& tile) {
    mbarrier_wait(smem_address(&smem.kv_empty[ring.stage()]), ring.parity() ^ 1);
    load_panels<Cfg::kBc, Cfg::kValuePanels>(
        smem.kv[ring.stage()], &args.v_map, &smem.kv_full[ring.stage()],
        TileOrigin{tile.first, work().kv_head, work().batch});
    ring.next();
  }

  __device__ __forceinline__ void run() {
    prefetch_tensormap(&args.q_map);
    prefetch_tensormap(&args.dout_map);
    prefetch_tensormap(&args.k_map);
    prefetch_tensormap(&args.v_map);
    WorkList<Smem> const list{args, smem};
    ForwardParams const& p = args.b.p;
#pragma unroll 1
    for (int index = blockIdx.x; index < args.work_items; index = list.take()) {
      WorkItem const item = work_item(p, index);
      EntryWalk<Cfg::kBc> walk(p.lists, item.first, item.tiles);
      list.announce(
          slot, WorkSlot{item.q0, item.mask, item.batch, item.head, item.head / p.group, item.tiles, 0, item.part});
      load_queries();
#pragma unroll 1
      while (walk.has_next()) {
        Tile const tile = walk.take(p.lists);
        load_keys(tile);
        load_values(tile);
      }
      slot.next();
    }
    list.end(slot);
    // Launched behind the kernel of dK and dV it takes places that one leaves, and reads nothing of it; what comes
    // behind both must find both ended.
    wait_for_kernel_ahead();
  }
};

}  // namespace omni
