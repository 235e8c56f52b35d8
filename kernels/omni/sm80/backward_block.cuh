// What both mma.sync backward loops share: what a thread block knows of its work, the copies into shared memory, a step
// of walked tokens up to the gradients of its scores, and the stores.
#pragma once

#include "omni/sm80/backward_gemm.cuh"

namespace omni {

// Walks tiles, and inside each the query heads that count for it: one for dQ, those of the group for dK and dV. Their
// sums stay in registers, and no two thread blocks add to the same gradient.
template <int kStep>
struct CursorOf {
  EntryWalk<kStep> walk;
  Tile tile;  // kind 0: no more tiles
  int head;   // which of the heads

  __device__ __forceinline__ CursorOf(BlockLists const& lists, WorkItem const& work)
      : walk(lists, work.first, work.tiles) {
    take(lists);
  }

  __device__ __forceinline__ bool has_tile() const { return tile.packed != 0; }

  // heads: how many count for a tile.
  __device__ __forceinline__ void advance(BlockLists const& lists, int heads) {
    if (++head >= heads) take(lists);
  }

 private:
  __device__ __forceinline__ void take(BlockLists const& lists) {
    head = 0;
    tile.packed = 0;
    if (walk.has_next()) tile = walk.take(lists);
  }
};

template <class Cfg>
struct BackwardBlock {
  using Step = StepTile<Cfg>;
  using Out = RegTile<Cfg::kTilesM, Cfg::kColumns>;
  using ValueOut = RegTile<Cfg::kTilesM, Cfg::kValueColumns>;
  using Cursor = CursorOf<Cfg::kWalked>;
  static constexpr int kStatisticBytes = 2 * 4 * Cfg::kBr;  // lse2 and delta of the queries of a tile

  static constexpr int kCursorBytes = 128;
  static constexpr int kWorkBytes = 16 + 2 * kCursorBytes;
  static constexpr int kWorkOffset = Cfg::kSmemBytes - kWorkBytes;
  static_assert(sizeof(Cursor) <= kCursorBytes, "backward_kernel.py");

  BackwardParams const& params;
  ForwardParams const& p;
  unsigned char* const s_base;
  Out first;        // dK, or dQ
  ValueOut second;  // dV

  __device__ __forceinline__ BackwardBlock(BackwardParams const& all, WorkItem const& work, unsigned char* s_memory)
      : params(all), p(all.p), s_base(s_memory) {
    if (thread_index() == 0) {
      *reinterpret_cast<int4*>(s_base + kWorkOffset) = make_int4(work.q0, work.mask, work.batch, work.head);
      cursor(0) = Cursor(p.lists, work);
    }
    __syncthreads();
    first.fill(0.f);
    if constexpr (Cfg::kOwnsKeys) second.fill(0.f);
  }

  // What is worked on lies in shared memory and is read anew wherever it is needed: registers are dearer.
  template <int kField>
  __device__ __forceinline__ int work() const {
    return reinterpret_cast<int const volatile*>(s_base + kWorkOffset)[kField];
  }

  __device__ __forceinline__ int owned0() const { return work<0>(); }  // first token
  __device__ __forceinline__ MaskView mask() const { return MaskView{p, work<1>()}; }
  __device__ __forceinline__ int batch() const { return work<2>(); }
  __device__ __forceinline__ int head() const { return work<3>(); }  // kv head where keys are owned, else query head

  // Where the walk stands, for tiles that are even or odd by their count: one is read while the other one is written.
  __device__ __forceinline__ Cursor& cursor(int parity) const {
    return *reinterpret_cast<Cursor*>(s_base + kWorkOffset + 16 + parity * kCursorBytes);
  }

  // From the cursor of `parity` to the other one, which is returned; others find it there behind the next barrier, and
  // have to be done with it before.
  __device__ __forceinline__ Cursor advance(int parity) const {
    Cursor next = cursor(parity);
    next.advance(p.lists, Cfg::kOwnsKeys ? p.group : 1);
    if (thread_index() == 0) cursor(parity ^ 1) = next;
    return next;
  }

  // The warp's first row among the tokens that the thread block owns.
  __device__ __forceinline__ static int row0() { return thread_index() / 32 * Cfg::kWarpRows; }

  // The lane's address in the 16 x 16 sub-tile at the origin of a tile of kCols columns, worked out where it is used:
  // for an A operand, or for a B operand that is transposed on its way.
  template <int kCols>
  __device__ __forceinline__ u32 lane_address() const {
    int const lane = thread_index() & 31;
    return smem_address(s_base) + SmemTile<kCols, Cfg::kSwizzle>::offset(lane % 16, lane / 16);
  }

  // The same for a B operand of add_dots.
  template <int kCols>
  __device__ __forceinline__ u32 dot_address() const {
    int const lane = thread_index() & 31;
    return smem_address(s_base) + SmemTile<kCols, Cfg::kSwizzle>::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }

  // First column of dQ or dK that the thread block makes; there may be none from it on.
  __device__ __forceinline__ static int column0() {
    return Cfg::kColumns == Cfg::kHeadDim && Cfg::kColumnBlocks == 1 ? 0 : blockIdx.y * Cfg::kColumns;
  }

  // The same of dV. Where widths differ the last block begins: the one with the lesser part of dK has the greater one
  // of dV.
  __device__ __forceinline__ static int value_column0() {
    return Cfg::kColumnBlocks == 1 ? 0 : (Cfg::kColumnBlocks - 1 - blockIdx.y) * Cfg::kValueColumns;
  }

  // Either of them.
  template <bool kOfValues>
  __device__ __forceinline__ static int first_column() {
    if constexpr (kOfValues && Cfg::kValueDim != Cfg::kHeadDim) {
      return value_column0();
    } else {
      return column0();
    }
  }

  // Starts the copies of two tiles, one behind the other in shared memory, of kRows tokens from `token` on, of which
  // `rows` exist, and kCols columns from `column` on. Other rows and columns become zeros.
  template <int kRows, int kCols>
  __device__ __forceinline__ void load(
      u32 s_target, Tensor const& one, Tensor const& other, int2 head_and_token, int rows, int column) const {
    if constexpr (Cfg::kValueDim == Cfg::kHeadDim) {
      load_alike<kRows, kCols>(s_target, one, other, head_and_token, rows, column);
    } else {
      // All columns of either.
      int const of_batch = batch();
      load_tile<Cfg::kThreads, kRows, Cfg::kHeadDim, Cfg::kSwizzle>(
          s_target, one.row(of_batch, head_and_token.x, head_and_token.y), 2 * one.strides.token, rows, p.head_dim);
      load_tile<Cfg::kThreads, kRows, Cfg::kValueDim, Cfg::kSwizzle>(
          s_target + kRows * SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>::kPitchBytes,
          other.row(of_batch, head_and_token.x, head_and_token.y), 2 * other.strides.token, rows, p.value_dim);
    }
  }

  // The same of two tensors of one width. What a thread brings is worked out here and not kept in registers.
  template <int kRows, int kCols>
  __device__ __forceinline__ void load_alike(
      u32 s_target, Tensor const& one, Tensor const& other, int2 head_and_token, int rows, int column) const {
    using Shared = SmemTile<kCols, Cfg::kSwizzle>;
    constexpr int kPieces = kRows * Shared::kChunks;
    constexpr int kRowStep = Cfg::kThreads / Shared::kChunks;
    int const thread = thread_index(), of_batch = batch();
    auto const copy = [&](u32 offset, unsigned char const* g_one, unsigned char const* g_other, bool exists) {
      cp_async_16(s_target + offset, g_one, exists ? 16 : 0);
      cp_async_16(s_target + kRows * Shared::kPitchBytes + offset, g_other, exists ? 16 : 0);
    };
    if constexpr (Cfg::kThreads % Shared::kChunks == 0 && kRows % kRowStep == 0) {
      // Every thread keeps its chunk and walks down the rows.
      int const row = thread / Shared::kChunks, chunk = thread % Shared::kChunks;
      unsigned char const* g_one =
          one.row(of_batch, head_and_token.x, head_and_token.y + row) + 2 * column + 16 * chunk;
      unsigned char const* g_other =
          other.row(of_batch, head_and_token.x, head_and_token.y + row) + 2 * column + 16 * chunk;
      rows = 8 * chunk < p.head_dim - column ? rows - row : 0;
#pragma unroll
      for (int i = 0; i < kRows / kRowStep; ++i) {
        copy(Shared::offset(row + i * kRowStep, chunk), g_one, g_other, i * kRowStep < rows);
        g_one += 2 * kRowStep * one.strides.token;
        g_other += 2 * kRowStep * other.strides.token;
      }
    } else {
#pragma unroll 1
      for (int piece = thread; piece < kPieces; piece += Cfg::kThreads) {
        int const row = piece / Shared::kChunks, chunk = piece % Shared::kChunks;
        int const token = head_and_token.y + row;
        copy(
            Shared::offset(row, chunk), one.row(of_batch, head_and_token.x, token) + 2 * column + 16 * chunk,
            other.row(of_batch, head_and_token.x, token) + 2 * column + 16 * chunk,
            row < rows && 8 * chunk < p.head_dim - column);
      }
    }
  }

  // K and V of the keys, or Q and dO of the queries, that the thread block owns.
  template <int kCols>
  __device__ __forceinline__ void load_owned(int offset, int column) const {
    int const rows = (Cfg::kOwnsKeys ? p.k_len : p.q_len) - owned0();
    u32 const s_target = smem_address(s_base) + offset;
    if constexpr (Cfg::kOwnsKeys) {
      load<Cfg::kOwned, kCols>(s_target, p.key(), p.value(), make_int2(head(), owned0()), rows, column);
    } else {
      load<Cfg::kOwned, kCols>(
          s_target, p.query(), params.gradient_of_out(), make_int2(head(), owned0()), rows, column);
    }
  }

  // The same of the tile at a cursor: Q and dO, or K and V.
  template <int kCols>
  __device__ __forceinline__ void load_walked(Cursor const& at, int offset, int column) const {
    int2 const from = make_int2(walked_head(at), at.tile.first);
    int const rows = at.tile.length();
    u32 const s_target = smem_address(s_base) + offset;
    if constexpr (Cfg::kOwnsKeys) {
      load<Cfg::kWalked, kCols>(s_target, p.query(), params.gradient_of_out(), from, rows, column);
    } else {
      load<Cfg::kWalked, kCols>(s_target, p.key(), p.value(), from, rows, column);
    }
  }

  __device__ __forceinline__ int walked_head(Cursor const& at) const {
    int const of_head = head();
    return Cfg::kOwnsKeys ? of_head * p.group + at.head : of_head / p.group;
  }

  static_assert(Cfg::kBr / 2 <= Cfg::kThreads, "a thread brings 16 bytes of lse2 or of delta");

  // Starts the copies of lse2 and delta of the kBr queries of a head from `token` on, one behind the other.
  __device__ __forceinline__ void load_statistics(int offset, int query_head, int token) const {
    constexpr int kPieces = Cfg::kBr / 4;
    int const thread = thread_index();
    if (thread >= 2 * kPieces) return;
    float const* const g_source = thread < kPieces ? params.lse2 : params.delta;
    i64 const at = params.statistics(batch(), query_head) + token + 4 * (thread % kPieces);
    cp_async_16(smem_address(s_base) + offset + 16 * thread, g_source + at, 16);
  }

  // Finds what a step hides from the warp, which starts in `column` of the tile. False when the warp has nothing to do.
  __device__ __forceinline__ bool find_hidden(Hidden<Cfg>& hidden, Tile const& tile, int column) const {
    if (tile.kind() == kFull) return true;
    MaskView const view = mask();
    hidden.find(WarpStep{view, tile, owned0() + row0(), row0(), tile.first + column, column});
    return hidden.is_anything();
  }

  // Scores to weights, gradients of weights to gradients of scores. offset: of lse2 and delta; the step starts in
  // `column` of the tile.
  __device__ __forceinline__ void differentiate_step(
      Step& weights, Step& grads, Hidden<Cfg> const& hidden, Tile const& tile, int offset, int column) const {
    float const* const s_lse2 = reinterpret_cast<float const*>(s_base + offset) + (Cfg::kOwnsKeys ? column : row0());
    Statistic<Cfg> const delta{s_lse2 + Cfg::kBr};
    if constexpr (Cfg::kSoftcap) {
      cap_scores(weights, p.tanh_scale);
      differentiate_tanh(grads, weights, delta);
    }
    weigh(weights, Statistic<Cfg>{s_lse2}, p);
    if (tile.kind() != kFull) hidden.apply(weights);
    if constexpr (Cfg::kSoftcap) {
      multiply(grads, weights);
    } else {
      differentiate(grads, weights, delta);
    }
  }

  // The thread block's columns of dV, or of another gradient.
  template <bool kOfValues, class Sums>
  __device__ __forceinline__ void store(
      void* gradient, Strides const& strides, Sums const& out, int len, float factor) {
    if (gradient == nullptr) return;
    constexpr bool kOther = kOfValues && Cfg::kValueDim != Cfg::kHeadDim;
    unsigned char* const g_head = static_cast<unsigned char*>(gradient) +
                                  2 * (batch() * strides.batch + head() * strides.head + first_column<kOfValues>());
#pragma unroll
    for (int m = 0; m < Sums::kTilesM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int const token = owned0() + row0() + Sums::row(m, h);
        int const columns =
            token < len ? min((kOther ? p.value_dim : p.head_dim) - first_column<kOfValues>(), Sums::kCols) : 0;
        store_row<Cfg::kBf16>(out, m, h, factor, g_head + 2 * token * strides.token, columns);
      }
    }
  }

  __device__ __forceinline__ void store_gradients() {
    if constexpr (Cfg::kOwnsKeys) {
      store<false>(params.dk, params.dk_strides, first, p.k_len, p.scale);
      store<true>(params.dv, params.dv_strides, second, p.k_len, 1.f);
    } else {
      store<false>(params.dq, params.dq_strides, first, p.q_len, p.scale);
    }
  }
};

}  // namespace omni
