// A sum of dQ that has had all its additions becomes the result: scaled, rounded and stored by one warp, while the others
// go on. The threads that add hand such sums to it, in the order in which they come to it.
#pragma once

#include "omni/sm90/backward/key_smem.cuh"
#include "omni/sm90/backward/turns.cuh"
#include "omni/store.cuh"

namespace omni {

// In a rank: no addition to the sum comes later.
constexpr int kLastAddition = 1 << 30;

// As bulk_add, but in place of what lies there.
__device__ __forceinline__ void bulk_store(float* g_target, u32 s_source, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(g_target), "r"(s_source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void store_release(int* g_target, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(g_target), "r"(x) : "memory");
}

// By a thread that saw all additions to the sum, -1: no more sums come from it. It waits where as many as the ring holds
// are still to be worked on, which depends on nobody.
template <class Smem>
__device__ __forceinline__ void hand_to_finisher(Smem& smem, int sum) {
  int const number = atomicAdd(&smem.finishing, 1), place = number % Smem::kFinished;
  mbarrier_wait(smem_address(&smem.finished_empty[place]), (number / Smem::kFinished & 1) ^ 1);
  smem.finished[place] = sum;
  mbarrier_arrive(smem_address(&smem.finished_full[place]));
}

// kBlocks blocks of 8 columns, from block `first` on, of 16 rows from 16 * m on, as omni/dq_sums.cuh has them. g_row:
// where the first row's result lies.  rows: that exist.
template <class Cfg, int kBlocks>
__device__ __forceinline__ void finish_columns(
    ForwardParams const& p, float const* g_sum, unsigned char* g_row, i64 row_bytes, int m, int first, int rows) {
  RegTile<1, 8 * kBlocks> dq;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    float4 const four =
        load_past_l1(reinterpret_cast<float4 const*>(g_sum + 128 * (Cfg::kBr / 16 * (first + j) + m)) + lane_id());
    dq.x[0][4 * j] = four.x;
    dq.x[0][4 * j + 1] = four.y;
    dq.x[0][4 * j + 2] = four.z;
    dq.x[0][4 * j + 3] = four.w;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int const row = dq.row(0, h);
    int const columns = row < rows ? p.head_dim - 8 * first : 0;
    store_row<Cfg::kBf16>(dq, 0, h, p.scale, g_row + row * row_bytes + 16 * first, columns);
  }
}

// All of a sum's rows.
template <class Cfg>
__device__ __forceinline__ void finish_sum(BackwardParamsSm90 const& args, int sum) {
  constexpr int kBlocks = Cfg::kHeadDim / 8;
  BackwardParams const& b = args.b;
  ForwardParams const& p = b.p;
  int const head = sum / args.head_sums, q0 = (sum - head * args.head_sums) * Cfg::kBr;
  float const* const g_sum = args.dq_sums + static_cast<i64>(sum & args.sums_mask) * (Cfg::kBr * Cfg::kHeadDim);
  i64 const row_bytes = 2 * b.dq_strides.token;
  unsigned char* const g_tile =
      static_cast<unsigned char*>(b.dq) +
      2 * (head / p.q_heads * b.dq_strides.batch + head % p.q_heads * b.dq_strides.head) + q0 * row_bytes;
#pragma unroll 1
  for (int m = 0; m < Cfg::kBr / 16; ++m) {
    unsigned char* const g_row = g_tile + 16 * m * row_bytes;
    int const rows = p.q_len - q0 - 16 * m;
#pragma unroll 1
    for (int j = 0; j + 4 <= kBlocks; j += 4) finish_columns<Cfg, 4>(p, g_sum, g_row, row_bytes, m, j, rows);
    if constexpr (kBlocks % 4 != 0) {
      finish_columns<Cfg, kBlocks % 4>(p, g_sum, g_row, row_bytes, m, kBlocks / 4 * 4, rows);
    }
  }
}

// The sum was read: its place is the next one's that has it.
__device__ __forceinline__ void give_back(BackwardParamsSm90 const& args, int sum) {
  __syncwarp();
  int const next = (sum >> args.sums_shift) + 1;
  if (lane_id() == 0) store_release(args.turns + (sum & args.sums_mask), next << kGenerationShift);
}

// The warp that does so, until no more sums come. What was added to a sum is there: whose addition was the last one saw
// all others, and this warp sees what that thread saw.
template <class Cfg>
__device__ __forceinline__ void finish_sums(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem) {
  using Smem = KeySmem<Cfg>;
  int adding = Smem::kBuffers;  // threads from which more may come
#pragma unroll 1
  for (RingIndex<Smem::kFinished> ring; adding > 0; ring.next()) {
    mbarrier_wait(smem_address(&smem.finished_full[ring.stage()]), ring.parity());
    int const sum = __shfl_sync(0xffffffffu, smem.finished[ring.stage()], 0);
    if (lane_id() == 0) mbarrier_arrive(smem_address(&smem.finished_empty[ring.stage()]));
    if (sum < 0) {
      --adding;
    } else {
      fence_proxy_async_global();  // the copy engine wrote it
      finish_sum<Cfg>(args, sum);
      give_back(args, sum);
    }
  }
}

}  // namespace omni
