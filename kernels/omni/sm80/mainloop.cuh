// The forward loop for head_dim up to 256: Q stays in shared memory, K and V tiles pass through a ring of kStages
// buffers each (or one buffer for both, kShareKv), O and S live in registers.
#pragma once

#include "omni/epilogue.cuh"
#include "omni/sm80/gemm.cuh"

namespace omni {

template <class Cfg>
struct Mainloop {
  using Tile = SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>;
  using Scores = RegTile<Cfg::kTilesM, Cfg::kBc>;
  using Out = RegTile<Cfg::kTilesM, Cfg::kHeadDim>;
  static constexpr int kKvBytes = Cfg::kBc * Tile::kPitchBytes;
  static constexpr int kQBytes = Cfg::kBr * Tile::kPitchBytes;
  static constexpr int kSpanOffset = kQBytes + (Cfg::kShareKv ? 1 : 2 * Cfg::kStages) * kKvBytes;

  AttnParams const& p;
  MaskView const mask;
  int const q0;  // token of the first query
  Visit visit;
  unsigned char* const s_base;
  unsigned char const* g_k;
  unsigned char const* g_v;
  u32 s_q, s_lane_kv;
  Out out;
  OnlineSoftmax<Cfg::kTilesM> softmax;

  __device__ __forceinline__ Mainloop(AttnParams const& params, WorkItem const& work, unsigned char* s_memory)
      : p(params), mask{params, work.mask}, q0(work.q0), visit(params, work.first, work.end), s_base(s_memory) {
    int const kv_head = work.head / p.group;
    g_k = static_cast<unsigned char const*>(p.k) + 2 * (work.batch * p.k_strides[0] + kv_head * p.k_strides[1]);
    g_v = static_cast<unsigned char const*>(p.v) + 2 * (work.batch * p.v_strides[0] + kv_head * p.v_strides[1]);
    s_q = smem_address(s_base) + row0() * Tile::kPitchBytes + Tile::lane_offset();
    s_lane_kv = smem_address(s_base) + kQBytes + Tile::lane_offset();
    out.fill(0.f);
    softmax.init();
  }

  // The warp's first row in the tile.
  __device__ __forceinline__ static int row0() { return thread_index() / 32 * Cfg::kWarpRows; }

  __device__ __forceinline__ static constexpr int k_slot(int stage) { return stage; }
  __device__ __forceinline__ static constexpr int v_slot(int stage) { return Cfg::kShareKv ? stage : Cfg::kStages + stage; }

  __device__ __forceinline__ void load_q(WorkItem const& work) {
    unsigned char const* g_q =
        static_cast<unsigned char const*>(p.q) +
        2 * (work.batch * p.q_strides[0] + work.head * p.q_strides[1] + q0 * p.q_strides[2]);
    load_tile<Cfg::kThreads, Cfg::kBr, Cfg::kHeadDim, Cfg::kSwizzle>(
        smem_address(s_base), g_q, 2 * p.q_strides[2], p.q_len - q0, p.head_dim);
  }

  __device__ __forceinline__ void load_kv(unsigned char const* g_head, i64 stride, KeyTile const& tile, int slot) {
    load_tile<Cfg::kThreads, Cfg::kBc, Cfg::kHeadDim, Cfg::kSwizzle>(
        smem_address(s_base) + kQBytes + slot * kKvBytes, g_head + 2 * static_cast<i64>(tile.k0) * stride, 2 * stride, tile.length(), p.head_dim);
    cp_async_commit();
  }

  __device__ __forceinline__ int2* s_spans(int slot) const {
    return reinterpret_cast<int2*>(s_base + kSpanOffset) + slot * kSmemSpans * Cfg::kBc;
  }

  static_assert(Cfg::kBc / 2 <= Cfg::kThreads, "a thread brings the spans of two keys");

  // The spans of a PARTIAL tile, 16 bytes (two keys) a thread.
  __device__ __forceinline__ void load_spans(KeyTile const& tile, int slot) {
    constexpr int kPairs = Cfg::kBc / 2;
    int const thread = threadIdx.x;
    if (thread >= kPairs) return;
    int2 const* g_source = mask.spans() + tile.k0 + 2 * thread;
    u32 s_target = smem_address(s_spans(slot) + 2 * thread);
    cp_async_16(s_target, g_source, 16);
    if (p.n_spans == 2) cp_async_16(s_target + Cfg::kBc * sizeof(int2), g_source + p.k_padded, 16);
  }

  __device__ __forceinline__ void load_k(KeyTile const& tile, int stage, int span_slot) {
    if (spans_travel(p, tile)) load_spans(tile, span_slot);
    load_kv(g_k, p.k_strides[2], tile, k_slot(stage));
  }

  __device__ __forceinline__ void load_v(KeyTile const& tile, int stage) {
    load_kv(g_v, p.v_strides[2], tile, v_slot(stage));
  }

  __device__ __forceinline__ void compute_scores(Scores& scores, int stage) {
    scores.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(scores, s_q, s_lane_kv + k_slot(stage) * kKvBytes);
  }

  __device__ __forceinline__ void settle(Scores& scores, KeyTile const& tile, int span_slot) {
    settle_scores<Cfg>(scores, out, softmax, WarpTile{mask, tile, q0 + row0(), row0(), s_spans(span_slot)});
  }

  // Weighs the scores and adds the values. V has arrived and every thread knows it.
  __device__ __forceinline__ void compute_values(Scores const& scores, KeyTile const& tile, int stage) {
    if (tile.has_dead()) {
      zero_dead_rows<Cfg::kThreads, Cfg::kHeadDim, Cfg::kSwizzle>(s_base + kQBytes + v_slot(stage) * kKvBytes, mask, tile);
      __syncthreads();
    }
    add_values<Cfg>(out, scores, softmax, p.scale_log2, s_lane_kv + v_slot(stage) * kKvBytes);
  }

  // One buffer holds K, then V: V flies while the scores are masked and the peaks move, the next K during nothing.
  __device__ __forceinline__ void run_shared() {
    while (visit.has_next()) {
      KeyTile const tile = visit.take(p);
      load_k(tile, 0, 0);
      cp_async_wait<0>();
      __syncthreads();
      Scores scores;
      compute_scores(scores, 0);
      __syncthreads();  // K is read
      load_v(tile, 0);
      settle(scores, tile, 0);
      cp_async_wait<0>();
      __syncthreads();
      compute_values(scores, tile, 0);
      __syncthreads();  // V is read
    }
  }

  // One buffer each: V flies during S = Q K^T, the next K during the softmax and O += P V. The next K's spans come
  // while this tile's are read: two slots.
  __device__ __forceinline__ void run_single() {
    int slot = 0;
    if (visit.has_next()) load_k(visit.peek(), 0, slot);
    while (visit.has_next()) {
      KeyTile const tile = visit.take(p);
      cp_async_wait<0>();
      __syncthreads();  // K has arrived; V of the tile before is read
      load_v(tile, 0);
      Scores scores;
      compute_scores(scores, 0);
      cp_async_wait<0>();
      __syncthreads();  // V has arrived; K is read
      if (visit.has_next()) load_k(visit.peek(), 0, slot ^ 1);
      settle(scores, tile, slot);
      compute_values(scores, tile, 0);
      slot ^= 1;
    }
  }

  // Requests the tile at the cursor. Past the last tile: empty groups, which keep the count of groups in step.
  __device__ __forceinline__ void load_next(int stage) {
    if (visit.has_next()) {
      load_k(visit.peek(), stage, stage);
      load_v(visit.peek(), stage);
    } else {
      cp_async_commit();
      cp_async_commit();
    }
  }

  // A ring of kStages buffers each: K and V of the next kStages - 1 tiles fly during the whole step. The cursor stands
  // at the last tile that was requested; with three stages `between` is the tile before it.
  __device__ __forceinline__ void run_ring() {
    constexpr int kAhead = Cfg::kStages - 1;
    KeyTile between{};
    load_next(0);
    if constexpr (kAhead == 2) {
      if (visit.has_next()) between = visit.take(p);
      load_next(1);
    }
    int stage = 0;
    while (kAhead == 2 ? between.packed != 0 : visit.has_next()) {
      cp_async_wait<2 * kAhead - 2>();
      __syncthreads();  // this tile has arrived; the buffers of the tile before are read
      KeyTile tile = between;
      if constexpr (kAhead == 2) {
        between = KeyTile{};
        if (visit.has_next()) between = visit.take(p);
      } else {
        tile = visit.take(p);
      }
      load_next(stage == 0 ? kAhead : stage - 1);
      Scores scores;
      compute_scores(scores, stage);
      settle(scores, tile, stage);
      compute_values(scores, tile, stage);
      stage = stage == kAhead ? 0 : stage + 1;
    }
  }

  __device__ __forceinline__ void run(WorkItem const& work) {
    load_q(work);
    if constexpr (Cfg::kShareKv) {
      run_shared();
    } else if constexpr (Cfg::kStages == 1) {
      run_single();
    } else {
      run_ring();
    }
    WorkItem const done = work_item(p, block_index());
    softmax.finish();
    store_output<Cfg::kBf16>(p, OutputPlace{done.batch, done.head, q0 + row0(), 0}, out, softmax);
  }
};

}  // namespace omni
