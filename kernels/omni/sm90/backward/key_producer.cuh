// The producer of the kernel that makes dK and dV: one thread that takes blocks of keys, and asks the copy engine for K
// and V once, and for Q and dO of every tile, for each query head of the group.
#pragma once

#include "omni/sm90/backward/key_smem.cuh"
#include "omni/sm90/backward/work_in_turn.cuh"

namespace omni {

template <class Cfg>
struct KeyProducer {
  using Smem = KeySmem<Cfg>;
  using Slot = typename Smem::Slot;

  BackwardParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> ring;  // of Q and dO
  Slot slot;                     // of the item at hand
  // Tiles to load before K and V, for which the item before must have ended: those that have a stage by then.
  int before_keys;
  int additions = 0;  // to sums of dQ, of all items so far

  __device__ __forceinline__ KeyProducer(BackwardParamsSm90 const& params, Smem& memory) : args(params), smem(memory) {}

  // An item is read in its slot rather than kept in registers.
  __device__ __forceinline__ WorkSlot const& work() const { return smem.work[slot.stage()]; }

  __device__ __forceinline__ void load_keys() {
    mbarrier_wait(smem_address(&smem.kv_empty), Smem::kv_parity(slot) ^ 1);
    ForwardParams const& p = args.b.p;
    TileOrigin const origin{work().q0, work().kv_head, work().batch};
    int const spans = p.n_spans <= Smem::kSpans ? p.n_spans : 0;
    constexpr int kSpanBytes = Cfg::kBc * static_cast<int>(sizeof(int2));
    load_panels<Cfg::kBc, Cfg::kHeadPanels>(smem.k, &args.k_map, &smem.kv_full, origin, spans * kSpanBytes);
#pragma unroll 1
    for (int i = 0; i < spans; ++i) {
      int2 const* const g_spans = MaskView{p, work().mask}.spans() + i * p.k_padded + work().q0;
      bulk_load(smem_address(smem.spans[i]), g_spans, kSpanBytes, smem_address(&smem.kv_full));
    }
    load_panels<Cfg::kBc, Cfg::kValuePanels>(smem.v, &args.v_map, &smem.kv_full, origin);
  }

  // Which sum of dQ a tile of a head adds to.
  __device__ __forceinline__ int sum_of(int q0, int head) const {
    if constexpr (Cfg::kFinishes || Cfg::kBackground) {
      return smem.first_sum + (head - work().kv_head * args.b.p.group) * args.head_sums + q0 / Cfg::kBr;
    }
    return (work().batch * args.b.p.q_heads + head) * (args.b.q_padded / Cfg::kBr) + q0 / Cfg::kBr;
  }

  // Returns when lse2 and delta of a sum's queries are there for the copy engine (rows_ahead.cuh).
  __device__ __forceinline__ void wait_for_rows(int sum) const {
    while (load_acquire(args.turns + sum) < Cfg::kFirstTurn) {
    }
    fence_proxy_async_global();
  }

  // Q with lse2 and delta, and dO on a barrier of its own: its buffer is given back earlier.
  __device__ __forceinline__ void load_queries(Tile const& tile, int rank, int head) {
    constexpr int kBytes = Cfg::kBr * static_cast<int>(sizeof(float));
    int const stage = ring.stage(), q0 = tile.first;
    if constexpr (Cfg::kPrepares) wait_for_rows(sum_of(q0, head));
    mbarrier_wait(smem_address(&smem.q_empty[stage]), ring.parity() ^ 1);
    smem.tiles[stage] = tile;  // released, as the two below, to the consumers by the arrival
    if constexpr (Cfg::kFused) smem.additions[stage] = make_int2(sum_of(q0, head), rank);
    u64* const full = &smem.q_full[stage];
    load_panels<Cfg::kBr, Cfg::kHeadPanels>(
        smem.q[stage], &args.q_map, full, TileOrigin{q0, head, work().batch}, 2 * kBytes);
    i64 const at = args.b.statistics(work().batch, head) + q0;
    bulk_load(smem_address(smem.lse2[stage]), args.b.lse2 + at, kBytes, smem_address(full));
    bulk_load(smem_address(smem.delta[stage]), args.b.delta + at, kBytes, smem_address(full));
    mbarrier_wait(smem_address(&smem.dout_empty[stage]), ring.parity() ^ 1);
    load_panels<Cfg::kBr, Cfg::kValuePanels>(
        smem.dout[stage], &args.dout_map, &smem.dout_full[stage], TileOrigin{tile.first, head, work().batch});
    ring.next();
  }

  // The tile of an entry that begins `done` queries behind the first one, for one head of the group.
  __device__ __forceinline__ void load_tile(int entry, int done, int head_in_group) {
    int4 const e = args.b.p.lists.entries[entry];
    int rank = 0;
    if constexpr (Cfg::kFromLast) {
      int const of_head = Smem::kEitherWalk ? head_in_group * args.head_ranks : 0;
      rank = args.ranks[of_head + e.w + done / Cfg::kBr];
    }
    load_queries(Tile{e.x, e.y, e.z + done}, rank, work().kv_head * args.b.p.group + head_in_group);
    if (--before_keys == 0) load_keys();
  }

  // Queries of an entry ahead of the tile that is walked first. In order, and where sums become dQ, tiles are walked
  // from the last one to the first: in causal masks blocks of keys share their last tiles, and so follow each other.
  __device__ __forceinline__ int first_of(int entry) const {
    if constexpr (!Cfg::kFromLast) return 0;
    return ((args.b.p.lists.entries[entry].x >> 8) - 1) / Cfg::kBr * Cfg::kBr;
  }

  // To the next tile of the part; false behind the last one. The entry is read once more: there are no registers to
  // keep it in.
  __device__ __forceinline__ bool advance(int& entry, int& done) const {
    int const packed = args.b.p.lists.entries[entry].x;
    if constexpr (Cfg::kFromLast) {
      done -= Cfg::kBr;
      if (done >= 0) return true;
    } else {
      done += Cfg::kBr;
      if (done < packed >> 8) return true;
    }
    if (packed & kLastFlag) return false;
    done = first_of(++entry);
    return true;
  }

  // As above, where either walk is possible: heads of a group innermost, or head by head. The part is read once more.
  __device__ __forceinline__ bool advance_either(int& entry, int& done, int& head) const {
    if (args.head_ranks == 0) {
      if (++head < args.b.p.group) return true;
      head = 0;
    }
    if (advance(entry, done)) return true;
    if (args.head_ranks == 0 || ++head == args.b.p.group) return false;
    entry = args.b.p.lists.parts[work().part].z;
    done = first_of(entry);
    return true;
  }

  // Returns when every addition of the items so far has its turn. An item that was taken sooner would stand behind one
  // that waits, and what waits for it, too: if that is what the other one waits for, nobody goes on.
  __device__ __forceinline__ void wait_for_turns() const {
    int granted;
    do {
      granted = 0;
#pragma unroll
      for (int i = 0; i < Smem::kBuffers; ++i) granted += load_shared_volatile(smem_address(&smem.granted[i]));
    } while (granted != additions);
  }

  // As WorkList::take. The number of thread blocks is asked for anew: there is no register to keep it in.
  __device__ __forceinline__ int take() const {
    int blocks;
    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
    return atomicAdd(args.counter, 1) + blocks;
  }

  __device__ __forceinline__ WorkItem take_item(int index) const {
    if constexpr (Cfg::kFinishes) return work_item_in_turn(args, index);
    if constexpr (Cfg::kBackground) return work_item_with_early_heads(args, index);
    return work_item_among(args.b.p, args.b.kv_heads, index);
  }

  // The block mask was there before the kernel ahead began; what else is read or written, by the consumers too, comes
  // after that kernel has ended. What is launched behind this one may come up from then on: it finds a place where a
  // thread block of this one has ended.
  __device__ __forceinline__ void run() {
    prefetch_tensormap(&args.q_map);
    prefetch_tensormap(&args.dout_map);
    prefetch_tensormap(&args.k_map);
    prefetch_tensormap(&args.v_map);
    WorkList<Smem> const list{args, smem};
    int const group = args.b.p.group;
    int index = blockIdx.x;
    wait_for_kernel_ahead();
    let_next_kernel_come();
#pragma unroll 1
    for (; index < args.work_items; index = take()) {
      WorkItem const item = take_item(index);
      if constexpr (Cfg::kFinishes || Cfg::kBackground) {
        smem.first_sum = item.batch * args.batch_sums + item.head * args.kv_sums;
      }
      list.announce(
          slot, WorkSlot{item.q0, item.mask, item.batch, item.head, item.head, item.tiles * group, 0, item.part});
      before_keys = Cfg::kStages - 1;
      if constexpr (Cfg::kPrepares) {
        if (index < static_cast<int>(gridDim.x)) {  // the first one, which waits for rows longest
          load_keys();
          before_keys = 0;
        }
      }
      if (item.tiles == 0) {
        // Nothing sees these keys: their gradients are zeros.
      } else if constexpr (Smem::kEitherWalk) {
        int entry = item.first, done = first_of(entry), head = 0;
#pragma unroll 1
        do load_tile(entry, done, head);
        while (advance_either(entry, done, head));
      } else if constexpr (Smem::kHeadByHead) {
#pragma unroll 1
        for (int i = 0; i < group; ++i) {
          int entry = item.first, done = first_of(entry);
#pragma unroll 1
          do load_tile(entry, done, i);
          while (advance(entry, done));
        }
      } else {
        // What the thread blocks of one head of keys read of Q and dO lies close together.
        int entry = item.first, done = first_of(entry);
#pragma unroll 1
        do {
#pragma unroll 1
          for (int i = 0; i < group; ++i) load_tile(entry, done, i);
        } while (advance(entry, done));
      }
      asm volatile("" : "+r"(slot.packed));  // its stage is worked out anew rather than kept
      if (before_keys > 0) load_keys();
      slot.next();
      if constexpr (Cfg::kOrdered) {
        additions += item.tiles * group;
        wait_for_turns();
      }
    }
    list.end(slot);
  }
};

}  // namespace omni
