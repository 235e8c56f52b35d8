// Block lists of calls on caches, for lengths that only the device knows: made by one small launch a step, read by the
// forward kernels of all layers (omni/cached/params.cuh). Half of the thread blocks cut rows into parts and write their
// entries; the others write the bits of PARTIAL tiles and of dead keys.
namespace omni {
constexpr bool kRaggedRows = OMNI_RAGGED;  // do sequences have numbers of rows of their own?
}

#include "omni/cached/schedule.cuh"

namespace omni {

constexpr int kPlanThreads = OMNI_THREADS;

// Parts as rows stand, by any thread block.
__device__ __forceinline__ void write_in_order(PlanParams const& p, int thread, int threads) {
  int const rows = p.batch * p.q_blocks;
  if (thread == 0) {
    *p.n_parts = rows;
    p.row_offsets[rows] = rows * p.most_entries;
  }
  for (int row = thread; row < rows; row += threads) {
    BlockRow const of(p, row);
    int const tiles = tiles_of(of), at = row * p.most_entries;
    p.row_offsets[row] = at;
    p.parts[row] = make_int4(of.query(), of.sequence, at, tiles);
    p.splits[row] = make_int4(-1, 0, 1, 0);
    PartWriter(of, p.entries + at, 0, tiles).write();
  }
}

// A warp writes the bits of a row's PARTIAL tiles; rows without a token, or past the last one, see nothing.
__device__ __forceinline__ void write_bits(BlockRow const& row, int index) {
  PlanParams const& p = row.p;
  int const words = p.bc / 32, looked_at = row.looked_at(), lane = threadIdx.x % 32;
  for (int slot = 0; slot < looked_at; ++slot) {
    int const tile = row.tile_of(slot);
    u32* const g_bits = p.bit_tiles + (static_cast<i64>(index) * p.most_partial + slot) * p.br * words;
    for (int i = lane; i < p.br * words; i += 32) {
      int const position = row.first + i / words;
      g_bits[i] = position > row.last ? 0u : row.seen_by(position, tile * p.bc + i % words * 32);
    }
    u32* const g_dead = p.dead + static_cast<i64>(row.sequence) * (p.k_padded / 32) + tile * words;
    for (int i = lane; i < words; i += 32) g_dead[i] = row.dead_at(tile * p.bc + 32 * i);
  }
}

__device__ __forceinline__ void write_row_ranges(RaggedPlanParams const& p) {
  for (int i = blockIdx.x * kPlanThreads + threadIdx.x; i < p.batch; i += gridDim.x * kPlanThreads) {
    int2 const rows = rows_of_sequence(p, i);
    p.row_ranges[i] = make_int2(rows.x, rows.x + rows.y);
  }
}

__device__ __forceinline__ void plan(PlanParams const& p, unsigned char* s_memory) {
  // Thread blocks of the kernel behind may come up: before they read a list they wait for the end of this one.
  if constexpr (__CUDA_ARCH__ >= 900) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  if constexpr (kRaggedRows) write_row_ranges(static_cast<RaggedPlanParams const&>(p));
  int const thread_blocks = p.in_order ? gridDim.x : gridDim.x / 2;
  int const thread_block = blockIdx.x % thread_blocks;
  if (p.in_order) {
    write_in_order(p, thread_block * kPlanThreads + threadIdx.x, thread_blocks * kPlanThreads);
  } else if (blockIdx.x < thread_blocks) {
    PlanSchedule<kPlanThreads>(p, s_memory).run(thread_block, thread_blocks);
    return;
  }
  constexpr int kWarps = kPlanThreads / 32;
  int const rows = p.batch * p.q_blocks;
  for (int row = thread_block * kWarps + threadIdx.x / 32; row < rows; row += thread_blocks * kWarps) {
    write_bits(BlockRow(p, row), row);
  }
}

}  // namespace omni

using Params = omni::PlanParamsOf<omni::kRaggedRows>::Type;
static_assert(sizeof(Params) == OMNI_PARAMS_BYTES, "params.py and cached/params.cuh disagree");

extern "C" __global__ void __launch_bounds__(omni::kPlanThreads, 1)
    attention_plan_cached(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char s_memory[];
  omni::plan(p, s_memory);
}
