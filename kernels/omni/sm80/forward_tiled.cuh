// The forward loop for head_dim above 256 (D-tiling): Q and K pass through shared memory in chunks of 64 columns, each
// thread block accumulates kOutColumns <= 256 of O, and the blocks of one query tile (grid.y) repeat the scores.
#pragma once

#include "omni/sm80/gemm.cuh"
#include "omni/store.cuh"
#include "omni/work.cuh"

namespace omni {

template <class Cfg>
struct TiledForward {
  static constexpr int kChunk = 64;
  static constexpr int kChunks = (Cfg::kHeadDim + kChunk - 1) / kChunk;
  static constexpr int kAhead = Cfg::kStages - 1;
  using ChunkTile = SmemTile<kChunk, Cfg::kSwizzle>;
  using ValueTile = SmemTile<Cfg::kOutColumns, Cfg::kSwizzle>;
  using Scores = RegTile<1, Cfg::kBc>;
  using Out = RegTile<1, Cfg::kOutColumns>;
  static constexpr int kQBytes = Cfg::kBr * ChunkTile::kPitchBytes;
  static constexpr int kSlotBytes = kQBytes + Cfg::kBc * ChunkTile::kPitchBytes;
  static_assert(kChunks >= Cfg::kStages, "V of a tile arrives with one of the tile's own chunks");

  ForwardParams const& p;
  MaskView const mask;
  int const q0;  // token of the first query
  EntryWalk<Cfg::kBc> walk;
  unsigned char* const s_base;
  unsigned char const *g_q, *g_k, *g_v;
  int const row0 = threadIdx.x / 32 * Cfg::kWarpRows;
  int const column0 = blockIdx.y * Cfg::kOutColumns;
  int q_rows;          // query rows that exist
  Tile loading;        // the tile whose chunks are being requested; nothing once those of every tile were
  int next_chunk = 0;  // the next of them
  int kv_head_of_e4m3;
  Out out;
  OnlineSoftmax<1, Cfg::kBf16> softmax;

  __device__ __forceinline__ TiledForward(ForwardParams const& params, WorkItem const& work, unsigned char* s_memory)
      : p(params), mask{params, work.mask}, q0(work.q0), walk(params.lists, work.first, work.tiles), s_base(s_memory) {
    q_rows = p.q_len - q0;
    int const kv_head = work.head / p.group;
    g_q = p.query().row(query_batch<Cfg>(work.batch), work.head, q0);
    int const of_batch = Cfg::kPaged ? 0 : work.batch;
    g_k = p.key().rows(of_batch, kv_head);
    kv_head_of_e4m3 = kv_head;
    g_v = static_cast<unsigned char const*>(p.v) +
          2 * (of_batch * p.v_strides.batch + kv_head * p.v_strides.head + column0);
    loading = walk.has_next() ? walk.take(p.lists) : Tile{};
    out.fill(0.f);
    softmax.init();
  }

  // Starts the copy of kCols columns of keys in pages. g_head: where they begin in page 0.
  template <int kCols>
  __device__ __forceinline__ void load_paged(
      u32 s_tile, unsigned char const* g_head, Strides const& strides, Tile const& tile, int columns) {
    load_paged_tile<Cfg::kThreads, Cfg::kBc, kCols, Cfg::kSwizzle>(s_tile, g_head, strides, mask, tile, columns);
  }

  // The same of e4m3, from a column on; there after the block's next barrier.
  template <int kCols>
  __device__ __forceinline__ void load_e4m3(u32 offset, E4m3Rows rows, Tile const& tile, int column) {
    rows.g_head += column;
    load_e4m3_tile<Cfg::kThreads, Cfg::kBc, kCols, Cfg::kSwizzle, Cfg::kPaged, Cfg::kBf16>(
        s_base + offset, rows, mask, tile, p.head_dim - column);
  }

  __device__ __forceinline__ KvScales const& scales() const { return static_cast<Fp8Params const&>(p).scales; }

  // Requests the next chunk of Q and K, of whichever tile it belongs to. No commit.
  __device__ __forceinline__ void load_chunk(int slot) {
    if (loading.packed == 0) return;
    u32 const s_slot = smem_address(s_base) + slot * kSlotBytes;
    int const column = next_chunk * kChunk;
    load_tile<Cfg::kThreads, Cfg::kBr, kChunk, Cfg::kSwizzle>(
        s_slot, g_q + 2 * column, 2 * p.q_strides.token, q_rows, p.head_dim - column);
    if constexpr (Cfg::kFp8) {
      load_e4m3<kChunk>(slot * kSlotBytes + kQBytes, e4m3_keys(p, scales(), kv_head_of_e4m3), loading, column);
    } else if constexpr (Cfg::kPaged) {
      load_paged<kChunk>(s_slot + kQBytes, g_k + 2 * column, p.k_strides, loading, p.head_dim - column);
    } else {
      load_tile<Cfg::kThreads, Cfg::kBc, kChunk, Cfg::kSwizzle>(
          s_slot + kQBytes, g_k + 2 * (static_cast<i64>(loading.first) * p.k_strides.token + column),
          2 * p.k_strides.token, loading.length(), p.head_dim - column);
    }
    if (++next_chunk == kChunks) {
      next_chunk = 0;
      loading = walk.has_next() ? walk.take(p.lists) : Tile{};
    }
  }

  __device__ __forceinline__ void load_v(Tile const& tile) {
    u32 const s_tile = smem_address(s_base) + Cfg::kStages * kSlotBytes;
    if constexpr (Cfg::kFp8) {
      load_e4m3<Cfg::kOutColumns>(Cfg::kStages * kSlotBytes, e4m3_values(p, scales(), kv_head_of_e4m3), tile, column0);
    } else if constexpr (Cfg::kPaged) {
      load_paged<Cfg::kOutColumns>(s_tile, g_v, p.v_strides, tile, p.head_dim - column0);
    } else {
      load_tile<Cfg::kThreads, Cfg::kBc, Cfg::kOutColumns, Cfg::kSwizzle>(
          s_tile, g_v + 2 * static_cast<i64>(tile.first) * p.v_strides.token, 2 * p.v_strides.token, tile.length(),
          p.head_dim - column0);
    }
  }

  // Waits for this step's chunk and requests the one that is kAhead steps later; V of the tile goes with the first
  // step's request and so has arrived by the tile's last step.
  __device__ __forceinline__ void advance(Tile const& tile, int chunk, int& slot) {
    if constexpr (kAhead == 0) {
      __syncthreads();  // the chunk before is read
      load_chunk(0);
      if (chunk == 0) load_v(tile);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
    } else {
      cp_async_wait<kAhead - 1>();
      __syncthreads();  // the chunk has arrived; the chunk before is read, and the V before too
      load_chunk(slot == 0 ? kAhead : slot - 1);
      if (chunk == 0) load_v(tile);
      cp_async_commit();
    }
  }

  __device__ __forceinline__ void step(Tile const& tile, int& slot) {
    u32 const s_lane = smem_address(s_base) + ChunkTile::lane_offset();
    Scores scores;
    scores.fill(0.f);
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      advance(tile, chunk, slot);
      u32 const s_slot = s_lane + slot * kSlotBytes;
      Scores part;  // the tensor cores truncate: long chains of their additions would drift
      part.fill(0.f);
      add_scores<Cfg, kChunk>(part, s_slot + row0 * ChunkTile::kPitchBytes, s_slot + kQBytes);
      scores.add(part);
      slot = slot == kAhead ? 0 : slot + 1;
    }
    mask_and_rescale<Cfg>(scores, out, softmax, WarpTile{mask, tile, q0 + row0, row0, nullptr});
    u32 const v_offset = Cfg::kStages * kSlotBytes;
    if (tile.has_dead()) {
      zero_dead_rows<Cfg::kThreads, Cfg::kOutColumns, Cfg::kSwizzle>(s_base + v_offset, mask, tile);
      __syncthreads();
    }
    add_values<Cfg>(out, scores, softmax, p.scale_log2, smem_address(s_base) + v_offset + ValueTile::lane_offset());
  }

  __device__ __forceinline__ void run(WorkItem const& work) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      load_chunk(i);
      cp_async_commit();
    }
    int slot = 0;
    while (loading.packed != 0) {
      Tile const tile = loading;  // kAhead of its chunks were requested: not all, so it is the one to compute
      step(tile, slot);
    }
    cp_async_wait<0>();
    WorkItem const done = work_item(p, block_index());
    softmax.finish();
    int const stop = row_stop<Cfg, RaggedParams>(p, p.q_len, done.mask);
    store_output<Cfg>(p, OutputPlace{query_batch<Cfg>(done.batch), done.head, q0 + row0, column0, stop}, out, softmax);
  }
};

}  // namespace omni
