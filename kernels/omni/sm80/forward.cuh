// The mma.sync forward kernel's compile-time shape, and its loop for head_dim up to 256: Q stays in shared memory, K
// and V tiles pass through a ring of kStages buffers each (or one buffer for both, kShareKv), O and S live in
// registers.
#pragma once

#include "omni/ragged.cuh"
#include "omni/sm80/gemm.cuh"
#include "omni/store.cuh"
#include "omni/work.cuh"

namespace omni {

template <
    int HeadDim, int ValueDim, int OutColumns, int Br, int Bc, int Stages, int Warps, bool ShareKv, bool Swizzle,
    bool Bf16, bool Softcap, int Page, bool Ragged, bool Fp8, int MmaAtomK>
struct Sm80Config : MmaAtom<MmaAtomK> {
  using MmaAtom<MmaAtomK>::kMmaAtomM;
  static constexpr int kHeadDim = HeadDim;        // columns of Q and K, tensors' head_dim rounded up to 16
  static constexpr int kValueDim = ValueDim;      // columns of V and O
  static constexpr int kOutColumns = OutColumns;  // those that one thread block owns
  static constexpr int kBr = Br;
  static constexpr int kBc = Bc;
  static constexpr int kStages = Stages;
  static constexpr int kWarps = Warps;
  static constexpr int kThreads = 32 * Warps;
  static constexpr bool kShareKv = ShareKv;
  static constexpr bool kSwizzle = Swizzle;
  static constexpr bool kBf16 = Bf16;
  static constexpr bool kSoftcap = Softcap;
  static constexpr bool kPaged = Page != 0;  // K and V are pools of pages
  static constexpr bool kRagged = Ragged;    // sequences have numbers of rows of their own
  static constexpr bool kFp8 = Fp8;          // K and V are e4m3

  static constexpr int kWarpRows = Br / Warps;
  static constexpr int kTilesM = kWarpRows / kMmaAtomM;  // m16 tiles a warp owns
  static constexpr bool kTiledHeadDim = HeadDim > 256;
  static constexpr bool kSplitWeights = ValueDim <= kSplitWeightsDim;

  static_assert(HeadDim % kStepK == 0 && ValueDim % kStepK == 0, "widths are padded to 16");
  static_assert(HeadDim == ValueDim || (HeadDim <= 256 && ValueDim <= 256), "D-tiling: values as wide as keys");
  static_assert(kTiledHeadDim || OutColumns == ValueDim, "all columns in one piece");
  static_assert(Br == kWarps * kTilesM * kMmaAtomM && (kTilesM == 1 || kTilesM == 2), "16 or 32 rows a warp");
  static_assert(Bc % 32 == 0, "bit tiles hold 32 keys a word");
  static_assert(!ShareKv || Stages == 1, "one buffer for K and V is one stage");
  static_assert(!kTiledHeadDim || (!ShareKv && kTilesM == 1), "D-tiling: separate buffers, 16 rows a warp");
};

template <class Cfg>
struct Forward {
  using Shared = SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>;
  using ValueShared = SmemTile<Cfg::kValueDim, Cfg::kSwizzle>;
  using Scores = RegTile<Cfg::kTilesM, Cfg::kBc>;
  using Out = RegTile<Cfg::kTilesM, Cfg::kValueDim>;
  static constexpr int kKBytes = Cfg::kBc * Shared::kPitchBytes;
  static constexpr int kVBytes = Cfg::kBc * ValueShared::kPitchBytes;
  static constexpr int kSharedBytes = kKBytes > kVBytes ? kKBytes : kVBytes;  // of a buffer for both
  static constexpr int kQBytes = Cfg::kBr * Shared::kPitchBytes;
  static constexpr int kSpanOffset = kQBytes + (Cfg::kShareKv ? kSharedBytes : Cfg::kStages * (kKBytes + kVBytes));

  ForwardParams const& p;
  MaskView const mask;
  int const q0;  // token of the first query
  EntryWalk<Cfg::kBc> walk;
  unsigned char* const s_base;
  unsigned char const* g_k;
  unsigned char const* g_v;
  u32 s_q, s_lane_k;  // the lane's addresses in its warp's Q and in the first buffer of K
  Out out;
  OnlineSoftmax<Cfg::kTilesM, Cfg::kBf16> softmax;

  __device__ __forceinline__ Forward(ForwardParams const& params, WorkItem const& work, unsigned char* s_memory)
      : p(params), mask{params, work.mask}, q0(work.q0), walk(params.lists, work.first, work.tiles), s_base(s_memory) {
    int const kv_head = work.head / p.group;
    int const of_batch = Cfg::kPaged ? 0 : work.batch;
    if constexpr (!Cfg::kFp8) {
      g_k = p.key().rows(of_batch, kv_head);
      g_v = p.value().rows(of_batch, kv_head);
    }
    s_q = smem_address(s_base) + row0() * Shared::kPitchBytes + Shared::lane_offset();
    s_lane_k = smem_address(s_base) + kQBytes + Shared::lane_offset();
    out.fill(0.f);
    softmax.init();
  }

  // The warp's first row in the tile.
  __device__ __forceinline__ static int row0() { return thread_index() / 32 * Cfg::kWarpRows; }

  // Where a stage's values lie behind Q: behind all keys, or in the one buffer.
  __device__ __forceinline__ static constexpr int v_offset(int stage) {
    return Cfg::kShareKv ? 0 : Cfg::kStages * (kKBytes - kVBytes) + (Cfg::kStages + stage) * kVBytes;
  }

  // As s_lane_k, of V where it begins there.
  __device__ __forceinline__ u32 s_lane_v() const {
    return Cfg::kValueDim == Cfg::kHeadDim ? s_lane_k : s_lane_k - Shared::lane_offset() + ValueShared::lane_offset();
  }

  __device__ __forceinline__ void load_q(WorkItem const& work) {
    unsigned char const* g_q = p.query().row(query_batch<Cfg>(work.batch), work.head, q0);
    load_tile<Cfg::kThreads, Cfg::kBr, Cfg::kHeadDim, Cfg::kSwizzle>(
        smem_address(s_base), g_q, 2 * p.q_strides.token, p.q_len - q0, p.head_dim);
  }

  // Keys or values of a tile, kColumns of them in the kernel and `columns` in the tensor.
  template <int kColumns>
  __device__ __forceinline__ void load_kv(
      unsigned char const* g_head, Strides const& strides, Tile const& tile, int offset, int columns) {
    u32 const s_tile = smem_address(s_base) + kQBytes + offset;
    if constexpr (Cfg::kPaged) {
      load_paged_tile<Cfg::kThreads, Cfg::kBc, kColumns, Cfg::kSwizzle>(s_tile, g_head, strides, mask, tile, columns);
    } else {
      load_tile<Cfg::kThreads, Cfg::kBc, kColumns, Cfg::kSwizzle>(
          s_tile, g_head + 2 * static_cast<i64>(tile.first) * strides.token, 2 * strides.token, tile.length(), columns);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ int2* s_spans(int slot) const {
    return reinterpret_cast<int2*>(s_base + kSpanOffset) + slot * kSmemSpans * Cfg::kBc;
  }

  static_assert(Cfg::kBc / 2 <= Cfg::kThreads, "a thread brings the spans of two keys");

  // The spans of a PARTIAL tile, 16 bytes (two keys) a thread.
  __device__ __forceinline__ void load_spans(Tile const& tile, int slot) {
    constexpr int kPairs = Cfg::kBc / 2;
    int const thread = threadIdx.x;
    if (thread >= kPairs) return;
    int2 const* g_source = mask.spans() + tile.first + 2 * thread;
    u32 s_target = smem_address(s_spans(slot) + 2 * thread);
    cp_async_16(s_target, g_source, 16);
    if (p.n_spans == 2) cp_async_16(s_target + Cfg::kBc * sizeof(int2), g_source + p.k_padded, 16);
  }

  // The same of e4m3. The group is empty, and keeps the count of groups in step.
  template <int kColumns>
  __device__ __forceinline__ void load_e4m3(E4m3Rows const& rows, Tile const& tile, int offset, int columns) {
    load_e4m3_tile<Cfg::kThreads, Cfg::kBc, kColumns, Cfg::kSwizzle, Cfg::kPaged, Cfg::kBf16>(
        s_base + kQBytes + offset, rows, mask, tile, columns);
    cp_async_commit();
  }

  // Worked out anew for each tile: registers are dearer.
  __device__ __forceinline__ int kv_head() const { return work_item(p, block_index()).head / p.group; }

  __device__ __forceinline__ void load_k(Tile const& tile, int stage, int span_slot) {
    if (spans_travel(p, tile)) load_spans(tile, span_slot);
    if constexpr (Cfg::kFp8) {
      E4m3Rows const rows = e4m3_keys(p, static_cast<Fp8Params const&>(p).scales, kv_head());
      return load_e4m3<Cfg::kHeadDim>(rows, tile, stage * kKBytes, p.head_dim);
    }
    load_kv<Cfg::kHeadDim>(g_k, p.k_strides, tile, stage * kKBytes, p.head_dim);
  }

  __device__ __forceinline__ void load_v(Tile const& tile, int stage) {
    if constexpr (Cfg::kFp8) {
      E4m3Rows const rows = e4m3_values(p, static_cast<Fp8Params const&>(p).scales, kv_head());
      return load_e4m3<Cfg::kValueDim>(rows, tile, v_offset(stage), value_columns<Cfg>(p));
    }
    load_kv<Cfg::kValueDim>(g_v, p.v_strides, tile, v_offset(stage), value_columns<Cfg>(p));
  }

  __device__ __forceinline__ void compute_scores(Scores& scores, int stage) {
    scores.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(scores, s_q, s_lane_k + stage * kKBytes);
  }

  __device__ __forceinline__ void prepare_scores(Scores& scores, Tile const& tile, int span_slot) {
    mask_and_rescale<Cfg>(scores, out, softmax, WarpTile{mask, tile, q0 + row0(), row0(), s_spans(span_slot)});
  }

  // Weighs the scores and adds the values. V has arrived and every thread knows it.
  __device__ __forceinline__ void compute_values(Scores& scores, Tile const& tile, int stage) {
    if (tile.has_dead()) {
      zero_dead_rows<Cfg::kThreads, Cfg::kValueDim, Cfg::kSwizzle>(s_base + kQBytes + v_offset(stage), mask, tile);
      __syncthreads();
    }
    add_values<Cfg>(out, scores, softmax, p.scale_log2, s_lane_v() + v_offset(stage));
  }

  // One buffer holds K, then V: V flies while the scores are masked, the next K during nothing.
  __device__ __forceinline__ void run_shared() {
    while (walk.has_next()) {
      Tile const tile = walk.take(p.lists);
      load_k(tile, 0, 0);
      cp_async_wait<0>();
      __syncthreads();
      Scores scores;
      compute_scores(scores, 0);
      __syncthreads();  // K is read
      load_v(tile, 0);
      prepare_scores(scores, tile, 0);
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
    if (walk.has_next()) load_k(walk.peek(), 0, slot);
    while (walk.has_next()) {
      Tile const tile = walk.take(p.lists);
      cp_async_wait<0>();
      __syncthreads();  // K has arrived; V of the tile before is read
      load_v(tile, 0);
      Scores scores;
      compute_scores(scores, 0);
      cp_async_wait<0>();
      __syncthreads();  // V has arrived; K is read
      if (walk.has_next()) load_k(walk.peek(), 0, slot ^ 1);
      prepare_scores(scores, tile, slot);
      compute_values(scores, tile, 0);
      slot ^= 1;
    }
  }

  // Requests the tile at the cursor. Past the last tile: empty groups, which keep the count of groups in step.
  __device__ __forceinline__ void load_next(int stage) {
    if (walk.has_next()) {
      load_k(walk.peek(), stage, stage);
      load_v(walk.peek(), stage);
    } else {
      cp_async_commit();
      cp_async_commit();
    }
  }

  // A ring of kStages buffers each: K and V of the next kStages - 1 tiles fly during the whole step. The cursor stands
  // at the last tile that was requested; with three stages `between` is the tile before it.
  __device__ __forceinline__ void run_ring() {
    constexpr int kAhead = Cfg::kStages - 1;
    Tile between{};
    load_next(0);
    if constexpr (kAhead == 2) {
      if (walk.has_next()) between = walk.take(p.lists);
      load_next(1);
    }
    int stage = 0;
    while (kAhead == 2 ? between.packed != 0 : walk.has_next()) {
      cp_async_wait<2 * kAhead - 2>();
      __syncthreads();  // this tile has arrived; the buffers of the tile before are read
      Tile tile = between;
      if constexpr (kAhead == 2) {
        between = Tile{};
        if (walk.has_next()) between = walk.take(p.lists);
      } else {
        tile = walk.take(p.lists);
      }
      load_next(stage == 0 ? kAhead : stage - 1);
      Scores scores;
      compute_scores(scores, stage);
      prepare_scores(scores, tile, stage);
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
    int const stop = row_stop<Cfg, RaggedParams>(p, p.q_len, done.mask);
    store_output<Cfg>(p, OutputPlace{query_batch<Cfg>(done.batch), done.head, q0 + row0(), 0, stop}, out, softmax);
  }
};

}  // namespace omni
