// A thread block of the kernel for few query rows: item after item. All warps share the 16 rows and divide the tiles
// among them; at the end of an item they add up what each has, in the order of the warps. Who waits for whom: all warps
// for Q of an item, and behind its last tile for each other; nothing else.
#pragma once

#include "omni/sm90/few_rows/warp.cuh"
#include "omni/sm90/forward/packed.cuh"

namespace omni {

template <class Cfg>
struct FewRowsBlock {
  using Smem = FewRowsSmem<Cfg>;
  using Warp = FewRowsWarp<Cfg>;
  using Merge = PackedMerge<Cfg>;

  Fp8ParamsSm90 const& args;
  ForwardParams const& p;
  Smem& smem;
  WorkList<Smem> list;

  __device__ __forceinline__ FewRowsBlock(Fp8ParamsSm90 const& params, Smem& memory)
      : args(params), p(params.p), smem(memory), list{params, memory} {}

  __device__ __forceinline__ void run() {
    wait_for_kernel_ahead();
    if (threadIdx.x == 0) look_up(0, blockIdx.x);
    __syncthreads();
#pragma unroll 1
    for (int slot = 0; uniform(smem.work[slot].head) >= 0; slot ^= 1) {
      run_item(smem.work[slot], slot ^ 1);
    }
    let_next_kernel_come();
    if (threadIdx.x == 0) end();
  }

 private:
  // What an item is, for all warps. unskipped: its first entry here.
  __device__ __forceinline__ void look_up(int slot, int index) {
    WorkSlot& work = smem.work[slot];
    work.head = -1;
    if (index >= list.work_items()) return;
    WorkItem const item = list.item(index);
    int const kv_head = item.head / p.group;
    work = WorkSlot{item.q0, item.mask, item.batch, item.head, kv_head, item.tiles, item.first, item.part};
    KvScales const& scales = args.scales;
    smem.places[slot][0] = place_of<Cfg>(p.k, p.k_strides, scales.k, scales.k_strides, kv_head);
    smem.places[slot][1] = place_of<Cfg>(p.v, p.v_strides, scales.v, scales.v_strides, kv_head);
  }

  // Behind the last item: counters are left as they were found.
  __device__ __forceinline__ void end() {
    if (atomicAdd(args.counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {
      args.counter[0] = 0;
      args.counter[1] = 0;
    }
  }

  __device__ __forceinline__ void run_item(WorkSlot const& work, int next_slot) {
    int taken = 0;
    if (threadIdx.x == 0) taken = list.take();
    int const warp = uniform(threadIdx.x / 32);
    {
      FewRowsLoader<Cfg> loader(args, smem, work, smem.places[next_slot ^ 1], warp);
      Warp::fill(loader);
      if constexpr (Cfg::kE4m3) write_scales(work.kv_head, smem.places[next_slot ^ 1], warp);
      load_q(work);
      if (threadIdx.x == 0) smem.next_item = taken;
      __syncthreads();  // Q and scales are there
      Warp one(p, smem);
      one.run(loader, work);
      one.leave(rows_of(work).live);
    }
    if (threadIdx.x == 0) look_up(next_slot, smem.next_item);
    __syncthreads();  // all have left theirs
    PackedRows<Cfg> const rows = rows_of(work);
    int4 const split = args.n_split_rows == 0 ? make_int4(-1, 0, 0, 0) : args.splits[work.part];
    Merge const merge{args, rows, split};
    add_up(merge);
    if (uniform(split.x) < 0) {
      __syncthreads();  // all rings are read
      return;
    }
    if (!is_last(merge)) return;
#pragma unroll 1
    for (int row = warp; row < uniform(rows.live); row += Cfg::kWarps) merge_row(merge, row);
  }

  __device__ __forceinline__ PackedRows<Cfg> rows_of(WorkSlot const& work) const {
    return PackedRows<Cfg>(p, work, row_stop<Cfg, RaggedParamsSm90>(args, p.q_len, work.mask));
  }

  // A warp for keys, another one for values.
  __device__ __forceinline__ void write_scales(int kv_head, HeadPlace const (&places)[2], int warp) const {
#pragma unroll 1
    for (int i = warp; i < 2; i += Cfg::kWarps) {
      KvScales const& all = args.scales;
      float const* const g_scales = i == 0 ? all.k : all.v;
      Strides const& strides = i == 0 ? all.k_strides : all.v_strides;
      bool const of_tokens = places[i].g_scales != nullptr;
      float scale = i == 0 ? all.k_factor : all.v_factor;
      if (g_scales != nullptr) scale = of_tokens ? 1.f : g_scales[kv_head * strides.head];
      write_scale<Cfg::kBf16>(smem.scales[i], scale, of_tokens);
    }
  }

  // Rows of no token are zeros.
  __device__ __forceinline__ void load_q(WorkSlot const& work) {
    int const live = rows_of(work).live;
    int const batch = query_batch<Cfg>(work.batch);
#pragma unroll 1
    for (int i = threadIdx.x; i < 32 * Cfg::kSteps; i += Cfg::kThreads) {
      int const step = i / 32, column = step / 4 * 64 + i % 4 * 16 + step % 4 * 4;
      uint2 found[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int const row = 8 * h + i % 32 / 4, token = row / p.pack_heads;
        found[h] = make_uint2(0, 0);
        if (row >= live) continue;
        unsigned char const* const g_row =
            p.query().row(batch, work.head + row - token * p.pack_heads, work.q0 + token);
        found[h] = *reinterpret_cast<uint2 const*>(g_row + 2 * column);
      }
      smem.q[step][i % 32] = make_uint4(found[0].x, found[1].x, found[0].y, found[1].y);
    }
  }

  // A row a warp: O of all warps, added in their order, leaves as a row that is whole or as that of a part.
  __device__ __forceinline__ void add_up(Merge const& merge) const {
#pragma unroll 1
    for (int row = threadIdx.x / 32; row < merge.rows.live; row += Cfg::kWarps) {
      float row_max = neg_inf(), row_sum = 0.f;
#pragma unroll
      for (int w = 0; w < Cfg::kWarps; ++w) row_max = fmaxf(row_max, smem.sums[w][row].x);
      float out[1][4] = {};
      bool const has_columns = 4 * lane_id() < Cfg::kValueDim;
      int const first = has_columns ? 4 * lane_id() : 0;
#pragma unroll
      for (int w = 0; w < Cfg::kWarps; ++w) {
        float2 const of_warp = smem.sums[w][row];
        float const share = merge.share(of_warp.x, row_max);
        row_sum = fmaf(share, of_warp.y, row_sum);
        float const* const s_row = smem.rings[w].out + row * Smem::kPitch;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int const block = (first + e) % (Cfg::kValueDim / 8), n = first / (Cfg::kValueDim / 8);
          out[0][e] = fmaf(share, s_row[Smem::at_column(8 * block) + n], out[0][e]);
        }
      }
      if (merge.split.x < 0) {
        merge.store(out, row, row_max, row_sum);
        continue;
      }
      if (has_columns) {
        float* const g_row = merge.part(merge.split.y) + row * Cfg::kValueDim + first;
        *reinterpret_cast<float4*>(g_row) = make_float4(out[0][0], out[0][1], out[0][2], out[0][3]);
      }
      if (lane_id() == 0) merge.sums(merge.split.y)[row] = make_float2(row_max, row_sum);
    }
  }

  // As PackedMerge does it, in the same order, by a pointer that goes from part to part.
  __device__ __forceinline__ void merge_row(Merge const& merge, int row) const {
    constexpr int kAtOnce = 16;
    int const parts = uniform(merge.split.z);
    bool const has_columns = 4 * lane_id() < Cfg::kValueDim;
    i64 const step = p.part_rows * (Cfg::kValueDim + 2);
    float const* g_row = merge.part(0) + row * Cfg::kValueDim + (has_columns ? 4 * lane_id() : 0);
    float row_max = neg_inf(), row_sum = 0.f;
    float2 found = make_float2(neg_inf(), 0.f);
#pragma unroll 1
    for (int base = 0; base < parts; base += 32) {
      if (base + lane_id() < parts) found = load_past_l1(merge.sums(base + lane_id()) + row);
      row_max = fmaxf(row_max, found.x);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffffu, row_max, lanes));
    }
    float out[1][4] = {};
#pragma unroll 1
    for (int base = 0; base < parts; base += 32) {
      bool const is_there = base + lane_id() < parts;
      if (parts > 32 && is_there) found = load_past_l1(merge.sums(base + lane_id()) + row);
      float const weight = is_there ? merge.share(found.x, row_max) : 0.f;
      row_sum = fmaf(weight, is_there ? found.y : 0.f, row_sum);
#pragma unroll 1
      for (int i = base; i < min(base + 32, parts); i += kAtOnce) {
        float4 more[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          more[n] = make_float4(0.f, 0.f, 0.f, 0.f);
          if (i + n < parts) more[n] = load_past_l1(reinterpret_cast<float4 const*>(g_row));
          g_row += step;
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          float const factor = __shfl_sync(0xffffffffu, weight, i - base + n);
          out[0][0] = fmaf(factor, more[n].x, out[0][0]);
          out[0][1] = fmaf(factor, more[n].y, out[0][1]);
          out[0][2] = fmaf(factor, more[n].z, out[0][2]);
          out[0][3] = fmaf(factor, more[n].w, out[0][3]);
        }
      }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) row_sum += __shfl_xor_sync(0xffffffffu, row_sum, lanes);
    merge.store(out, row, row_max, row_sum);
  }

  // Counts the arrival of the block. The last one puts the counter back to zero, for the next launch.
  __device__ __forceinline__ bool is_last(Merge const& merge) {
    __threadfence();
    __syncthreads();  // the rows of all warps, before their arrival
    if (threadIdx.x == 0) {
      u32* const arrivals = args.arrivals + static_cast<i64>(merge.rows.tile) * args.n_split_rows + merge.split.x;
      bool const last = static_cast<int>(atomicAdd(arrivals, 1u)) == merge.split.z - 1;
      if (last) *arrivals = 0;
      smem.is_last = last;
      __threadfence();  // the arrivals seen, before the others' rows
    }
    __syncthreads();
    return uniform(smem.is_last) != 0;
  }
};

}  // namespace omni
