// All gradients in one pass over the tiles by mma.sync, head_dim and value_dim up to 128: dK and dV of the thread
// block's keys as in backward.cuh. dS^T of each tile goes through shared memory, and the warps make dQ = dS K of it
// together and add it to sums in float32 (attention_bwd_convert.cu turns them into the result). Sums of several thread
// blocks have no order. dQ is made behind a barrier that the loop has for its copies anyway: with two stages that of
// the next tile, so that dS^T has two buffers as well; with one stage that behind which Q and dO are overwritten.
#pragma once

#include "omni/dq_sums.cuh"
#include "omni/sm80/backward.cuh"

namespace omni {

// How the warps share the 64 x kHeadDim elements of dQ of a tile: kWarpsM of them over the rows, the others over the
// columns. The closer a warp's share is to a square, the less it reads from shared memory.
template <class Cfg>
struct DqShare {
  static constexpr bool kBf16 = Cfg::kBf16;
  static constexpr int kMmaAtomK = Cfg::kMmaAtomK;
  static constexpr int kPieces = Cfg::kHeadDim / 16;  // of 16 columns
  static constexpr int kWarpsM = kPieces % (Cfg::kWarps / 2) == 0 ? 2 : 4;
  static constexpr int kWarpsN = Cfg::kWarps / kWarpsM;
  static constexpr int kTilesM = kSumRows / 16 / kWarpsM;
  static constexpr int kWarpPieces = (kPieces + kWarpsN - 1) / kWarpsN;
  // Wide shares are made in two passes: registers are dearer than reading dS twice.
  static constexpr int kPasses = kTilesM * kWarpPieces > 4 && kWarpPieces % 2 == 0 ? 2 : 1;
  static constexpr int kPassPieces = kWarpPieces / kPasses;
  using Tile = RegTile<kTilesM, 16 * kPassPieces>;

  __device__ __forceinline__ static int row0(int warp) { return warp % kWarpsM * (16 * kTilesM); }
  __device__ __forceinline__ static int piece0(int warp) { return warp / kWarpsM * kWarpPieces; }

  // Is there such a piece? The last warps may have fewer.
  __device__ __forceinline__ static bool exists(int piece) { return kPieces % kWarpsN == 0 || piece < kPieces; }
};

template <class Cfg>
struct FusedBackward : Backward<Cfg> {
  using Base = Backward<Cfg>;
  using typename Base::Cursor;
  using typename Base::Shared;
  using typename Base::Step;
  using Share = DqShare<Cfg>;
  using Scores = SmemTile<Cfg::kBr, Cfg::kSwizzle>;  // dS^T: keys x queries
  static constexpr int kScoreBytes = Cfg::kBc * Scores::kPitchBytes;
  static constexpr int kBytes = Cfg::kStages * kScoreBytes;  // in front of what the base has
  static_assert(Cfg::kOwnsKeys && Cfg::kBr == kSumRows && Cfg::kColumnBlocks == 1, "backward_kernel.py");

  float* const g_sums;
  unsigned char* const s_scores;

  __device__ __forceinline__
  FusedBackward(BackwardParamsWithSums const& args, WorkItem const& work, unsigned char* s_memory)
      : Base(args.b, work, s_memory + kBytes), g_sums(args.dq_sums), s_scores(s_memory) {}

  // Writes dS^T of a step, which starts in `column`: 8 rows of 16 bytes a warp at once, all in different banks.
  __device__ __forceinline__ void hand_over(Step const& grads, int buffer, int column) const {
    int const lane = thread_index() % 32;
    u32 const at =
        buffer * kScoreBytes + this->row0() * Scores::kPitchBytes + Scores::offset(lane / 4, 0) + lane % 4 * 4;
#pragma unroll
    for (int m = 0; m < Cfg::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 2 * Step::kBlocks; ++i) {
        float const* const x = &grads.x[m][2 * i];
        u32 const of_block = Scores::at_column(at, column + i / 2 * 8) + (16 * m + i % 2 * 8) * Scores::kPitchBytes;
        *reinterpret_cast<u32*>(s_scores + of_block) = pack_pair<Cfg::kBf16>(x[0], x[1]);
      }
    }
  }

  __device__ __forceinline__ void compute(Tile const& tile, int stage) {
#pragma unroll
    for (int column = 0; column < Cfg::kWalked; column += Cfg::kStep) {
      bool visible = false;
      this->compute_step(tile, stage, column, [&](Step const& grads) {
        hand_over(grads, stage, column);
        visible = true;
      });
      if (visible) continue;
      Step zeros;
      zeros.fill(0.f);
      hand_over(zeros, stage, column);
    }
  }

  // Where the sums of the tile at a cursor begin, in tiles.
  __device__ __forceinline__ int place(Cursor const& at) const {
    int const head = this->batch() * this->p.q_heads + this->walked_head(at);
    return head * (this->params.q_padded / kSumRows) + at.tile.first / kSumRows;
  }

  // The warp's share of dQ of a tile, whose dS^T all warps have written. Keys that are not there, or that a step hides,
  // have a dS of 0.
  __device__ __forceinline__ void make_query_gradient(int place, int buffer) const {
    int const warp = thread_index() / 32;
    float* const g_tile = g_sums + static_cast<i64>(place) * (kSumRows * Cfg::kHeadDim);
#pragma unroll 1
    for (int pass = 0; pass < Share::kPasses; ++pass) {
      add_query_gradient(g_tile, buffer, Share::row0(warp), Share::piece0(warp) + pass * Share::kPassPieces);
    }
  }

  // Rows from row0 on, columns from 16 * piece0 on.
  __device__ __forceinline__ void add_query_gradient(float* g_tile, int buffer, int row0, int piece0) const {
    int const lane = thread_index() % 32;
    u32 const s_dots = smem_address(s_scores) + buffer * kScoreBytes +
                       Scores::offset(lane / 16 * 8 + lane % 8, row0 / 8 + lane / 8 % 2);
    u32 s_keys[Share::kPassPieces];
#pragma unroll
    for (int n = 0; n < Share::kPassPieces; ++n) {
      s_keys[n] = Shared::at_column(this->template lane_address<Cfg::kHeadDim>(), 16 * (piece0 + n));
    }
    typename Share::Tile dq;
    dq.fill(0.f);
#pragma unroll
    for (int k = 0; k < Cfg::kBc; k += kStepK) {
      AFragments<Share::kTilesM> a;
#pragma unroll
      for (int m = 0; m < Share::kTilesM; ++m) {
        ldmatrix_x4_trans(a.r[m], Scores::at_column(s_dots, 16 * m) + k * Scores::kPitchBytes);
      }
#pragma unroll
      for (int n = 0; n < Share::kPassPieces; ++n) {
        if (!Share::exists(piece0 + n)) continue;
        u32 b[4];
        ldmatrix_x4_trans(b, s_keys[n] + k * Shared::kPitchBytes);
        add_product<Share>(dq, 16 * n, a, b);
      }
    }
#pragma unroll
    for (int j = 0; j < 2 * Share::kPassPieces; ++j) {
      if (!Share::exists(piece0 + j / 2)) continue;
#pragma unroll
      for (int m = 0; m < Share::kTilesM; ++m) {
        add_to_sums(g_tile + sums_block(row0 / 16 + m, 2 * piece0 + j), &dq.x[m][4 * j]);
      }
    }
  }

  __device__ __forceinline__ void run() {
    this->start();
    if constexpr (Cfg::kStages == 2) {
      walk_two_stages();
    } else {
      walk_one_stage();
    }
    this->store_gradients();
  }

 private:
  // The place of the tile that the cursor of `parity` was at, behind that cursor in shared memory, as registers are
  // dearer. Written by one thread after the top barrier of that tile, read by all after the next one.
  __device__ __forceinline__ int volatile& kept_place(int parity) const {
    static_assert(sizeof(Cursor) + sizeof(int) <= Base::kCursorBytes, "a word is left");
    return *(reinterpret_cast<int volatile*>(&this->cursor(parity)) + Base::kCursorBytes / sizeof(int) - 1);
  }

  __device__ __forceinline__ void walk_two_stages() {
    if (thread_index() == 0) kept_place(1) = -1;  // no tile before the first one
    for (int parity = 0;; parity ^= 1) {
      cp_async_wait<0>();
      // This tile has arrived, and dS^T of the one before; what the one before read, and dS^T of the one before that,
      // may be overwritten.
      __syncthreads();
      if (this->cursor(parity).has_tile()) this->request(this->advance(parity), parity ^ 1);
      int const before = kept_place(parity ^ 1);
      if (before >= 0) make_query_gradient(before, parity ^ 1);
      if (!this->cursor(parity).has_tile()) break;
      if (thread_index() == 0) kept_place(parity) = place(this->cursor(parity));
      compute(this->cursor(parity).tile, parity);
    }
  }

  __device__ __forceinline__ void walk_one_stage() {
    for (int parity = 0;; parity ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // this tile has arrived, dS^T of the one before is read
      if (!this->cursor(parity).has_tile()) break;
      compute(this->cursor(parity).tile, 0);
      Cursor const next = this->advance(parity);
      __syncthreads();  // Q and dO are read, dS^T is there
      this->request(next, 0);
      make_query_gradient(place(this->cursor(parity)), 0);
    }
  }
};

}  // namespace omni
