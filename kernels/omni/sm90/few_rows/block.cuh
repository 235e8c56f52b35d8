// A thread block of the kernel for few query rows: item after item. All warps share the rows and divide the tiles
// among them; at the end of an item they add up what each has, in the order of the warps. Rings go on from item to
// item: the keys of the next one are on their way before this one ends. Who waits for whom: a warp at the end of an
// item for the one before it (a chain, in which each adds to what was there), and the last one, which says what the
// next item is, for all. Only behind a block's last item all warps meet.
#pragma once

#include "omni/sm90/few_rows/warp.cuh"

namespace omni {

template <class Cfg>
struct FewRowsBlock {
  using Smem = FewRowsSmem<Cfg>;
  using Warp = FewRowsWarp<Cfg>;
  using Params = typename Cfg::Params;

  Params const& args;
  ForwardParams const& p;
  Smem& smem;
  WorkList<Smem> list;
  int const warp;

  __device__ __forceinline__ FewRowsBlock(Params const& params, Smem& memory)
      : args(params), p(params.p), smem(memory), list{params, memory}, warp(uniform(threadIdx.x / 32)) {}

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) smem.init();
    wait_for_kernel_ahead();
    if (threadIdx.x == 0) look_up(0, blockIdx.x);
    __syncthreads();
    if (uniform(smem.work[0].head) >= 0) run_items();
    let_next_kernel_come();
    if (threadIdx.x == 0) end();
  }

 private:
  static constexpr int kLast = Cfg::kWarps - 1;  // the warp

  // What an item is, for all warps. unskipped: its first entry here.
  __device__ __forceinline__ void look_up(int slot, int index) {
    WorkSlot& work = smem.work[slot];
    work.head = -1;
    work.tiles = 0;
    if (index >= list.work_items()) return;
    WorkItem const item = list.item(index);
    int const kv_head = item.head / p.group;
    work = WorkSlot{item.q0, item.mask, item.batch, item.head, kv_head, item.tiles, item.first, item.part};
    if (item.tiles > 0) smem.entries[slot] = p.lists.entries[item.first];
    smem.places[slot][0] = place_of<Cfg>(args, false, kv_head);
    smem.places[slot][1] = place_of<Cfg>(args, true, kv_head);
  }

  // Behind the last item: counters are left as they were found.
  __device__ __forceinline__ void end() {
    if (atomicAdd(args.counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {
      args.counter[0] = 0;
      args.counter[1] = 0;
    }
  }

  __device__ __forceinline__ void run_items() {
    FewRowsLoader<Cfg> loader(args, smem, warp);
    Warp::fill(loader);
    if constexpr (Cfg::kE4m3) write_scales<Cfg::kWarps>(0, warp);
    load_q<Cfg::kWarps>(0, warp);
    __syncthreads();  // Q and scales are there
    int& item = loader.worked_on;
#pragma unroll 1
    while (true) {
      ++item;
      if (warp == kLast) prepare(item + 1);
      Warp one(p, smem, warp, item);
      one.run(loader, smem.work[item % 2]);
      smem.wait_for_item(item + 1);
      WorkSlot const& work = smem.work[item % 2];
      if (uniform(smem.work[(item + 1) % 2].head) < 0) {
        one.leave(rows_of(work).live);
        break;
      }
      one.add_to_chain(item, rows_of(work).live);
      if (warp == kLast) leave_chain(work);
      if (lane_id() == 0) mbarrier_arrive(smem_address(&smem.turn[warp == kLast ? 0 : warp + 1]));
      __syncwarp();  // else the compiler takes lanes for apart from here on, and lets them meet before each product
    }
    __syncthreads();  // all have left theirs
    end_item(smem.work[item % 2]);
  }

  // By the last warp: what the item is, its Q and its scales. All have left the one before the last one.
  __device__ __forceinline__ void prepare(int item) {
    int const slot = item % 2;
    if (lane_id() == 0) look_up(slot, list.take());
    __syncwarp();
    if (uniform(smem.work[slot].head) >= 0) {
      load_q<1>(slot, 0);
      if constexpr (Cfg::kE4m3) write_scales<1>(slot, 0);
    }
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(smem_address(&smem.item_full[slot]));
  }

  // By the last warp: rows of the chain leave. One warp that merges them alone keeps the others waiting.
  __device__ __forceinline__ void leave_chain(WorkSlot const& work) {
    PackedRows<Cfg> const rows = rows_of(work);
    PackedMerge<Cfg> const merge{args, rows, split_of(work)};
    ItemSums<Cfg> const sums{args, smem, merge};
    sums.leave_chain();
    if (uniform(merge.split.x) < 0) return;
    __threadfence();
    __syncwarp();  // all rows, before their arrival
    int last = 0;
    if (lane_id() == 0) last = sums.arrives_last();
    if (uniform(last) == 0) return;
    if constexpr (Cfg::kMergesLate) {
      if (uniform(smem.late.head) < 0) {
        if (lane_id() == 0) smem.late = work;
        return;
      }
    }
    sums.template merge_rows<Cfg::kMergesLate ? 8 : 16>(0, 1);
  }

  // The block's last item, whose rows all warps have left in their rings.
  __device__ __forceinline__ void end_item(WorkSlot const& work) {
    PackedRows<Cfg> const rows = rows_of(work);
    PackedMerge<Cfg> const merge{args, rows, split_of(work)};
    ItemSums<Cfg> const sums{args, smem, merge};
    sums.add_up(warp);
    bool is_last = uniform(merge.split.x) >= 0;
    if (is_last) {
      __threadfence();
      __syncthreads();  // the rows of all warps, before their arrival
      if (threadIdx.x == 0) smem.is_last = sums.arrives_last();
      __syncthreads();
      is_last = uniform(smem.is_last) != 0;
    }
    if constexpr (Cfg::kMergesLate) {
      int const stop = uniform(smem.late.head) >= 0 ? 2 : 1;
#pragma unroll 1
      for (int i = is_last ? 0 : 1; i < stop; ++i) merge_parts(i == 0 ? work : smem.late);
    } else if (is_last) {
      sums.template merge_rows<16>(warp, Cfg::kWarps);
    }
  }

  // By all warps.
  __device__ __forceinline__ void merge_parts(WorkSlot const& work) const {
    PackedRows<Cfg> const rows = rows_of(work);
    PackedMerge<Cfg> const merge{args, rows, split_of(work)};
    ItemSums<Cfg>{args, smem, merge}.template merge_rows<32>(warp, Cfg::kWarps);
  }

  __device__ __forceinline__ int4 split_of(WorkSlot const& work) const {
    return args.n_split_rows == 0 ? make_int4(-1, 0, 0, 0) : args.splits[work.part];
  }

  __device__ __forceinline__ PackedRows<Cfg> rows_of(WorkSlot const& work) const {
    return PackedRows<Cfg>(p, work, row_stop<Cfg, RaggedParamsSm90>(args, p.q_len, work.mask));
  }

  // By kOf warps, of which this is `index`: one for keys, one for values.
  template <int kOf>
  __device__ __forceinline__ void write_scales(int slot, int index) const {
    int const kv_head = smem.work[slot].kv_head;
#pragma unroll 1
    for (int i = index; i < 2; i += kOf) {
      KvScales const& all = args.scales;
      float const* const g_scales = i == 0 ? all.k : all.v;
      Strides const& strides = i == 0 ? all.k_strides : all.v_strides;
      bool const of_tokens = smem.places[slot][i].g_scales != nullptr;
      float scale = i == 0 ? all.k_factor : all.v_factor;
      if (g_scales != nullptr) scale = of_tokens ? 1.f : g_scales[kv_head * strides.head];
      write_scale<Cfg::kBf16>(smem.scales[slot][i], scale, of_tokens);
    }
  }

  // Rows of no token are zeros. By kOf warps, of which this is `index`: a step each at a time.
  template <int kOf>
  __device__ __forceinline__ void load_q(int slot, int index) {
    WorkSlot const& work = smem.work[slot];
    int const live = rows_of(work).live, lane = lane_id();
    constexpr int kOfLane = Cfg::kRows / 8;
    unsigned char const* g_rows[kOfLane];
#pragma unroll
    for (int h = 0; h < kOfLane; ++h) {
      int const row = 8 * h + lane / 4, token = row / p.pack_heads;
      g_rows[h] = nullptr;
      if (row < live) {
        g_rows[h] =
            p.query().row(query_batch<Cfg>(work.batch), work.head + row - token * p.pack_heads, work.q0 + token);
      }
    }
#pragma unroll(kOf == 1 ? Cfg::kSteps : 1)
    for (int step = index; step < Cfg::kSteps; step += kOf) {
      int const column = step / 4 * 64 + lane % 4 * 16 + step % 4 * 4;
      uint2 found[kOfLane];
#pragma unroll
      for (int h = 0; h < kOfLane; ++h) {
        found[h] = make_uint2(0, 0);
        if (g_rows[h] != nullptr) found[h] = *reinterpret_cast<uint2 const*>(g_rows[h] + 2 * column);
      }
      if constexpr (kOfLane == 2) {
        smem.q[slot][step][lane] = make_uint4(found[0].x, found[1].x, found[0].y, found[1].y);
      } else {
        smem.q[slot][step][lane] = found[0];
      }
    }
  }
};

}  // namespace omni
