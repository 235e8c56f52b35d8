// The mma.sync backward loop for head_dim up to 256. What a thread block owns stays in shared memory, K and V of its
// keys or Q and dO of its queries; tiles of the other two pass through kStages buffers. For dK and dV the query heads of
// the group come one after the other inside a tile: the sums stay in registers, and no two thread blocks add to the
// same gradient.
#pragma once

#include "omni/sm80/backward_gemm.cuh"

namespace omni {

// Walks tiles, and inside each the heads that count for it.
template <int kThreads>
struct HeadWalk {
  EntryWalk walk;
  Tile tile;
  int heads, head;  // how many, and which
  bool more;        // tile and head are there

  __device__ __forceinline__ HeadWalk(BlockLists const& lists, WorkItem const& work, int count)
      : walk(lists, work.first, work.end), heads(count), head(0) {
    more = walk.has_next();
    if (more) tile = walk.take(lists);
  }

  __device__ __forceinline__ void advance(BlockLists const& lists) {
    if (++head < heads) return;
    head = 0;
    more = walk.has_next();
    if (more) tile = walk.take(lists);
  }
};

template <class Cfg>
struct Backward {
  using Shared = SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>;
  using Step = StepTile<Cfg>;
  using Out = RegTile<Cfg::kTilesM, Cfg::kColumns>;
  static constexpr int kOwnedBytes = Cfg::kOwned * Shared::kPitchBytes;
  static constexpr int kWalkedBytes = Cfg::kWalked * Shared::kPitchBytes;
  static constexpr int kSlotBytes = 2 * kWalkedBytes + (Cfg::kOwnsKeys ? 2 * 4 * Cfg::kWalked : 0);
  static constexpr int kSmemBytes = 2 * kOwnedBytes + Cfg::kStages * kSlotBytes;

  BackwardParams const& params;
  ForwardParams const& p;
  MaskView const mask;
  int const owned0;  // first token
  int const batch;
  int const head;  // kv head where keys are owned, else query head
  HeadWalk<Cfg::kThreads> walk;
  unsigned char* const s_base;
  RowStatistic<Cfg> lse2, delta;  // where queries are owned
  Out first, second;              // dK and dV, or dQ

  __device__ __forceinline__ Backward(BackwardParams const& all, WorkItem const& work, unsigned char* s_memory)
      : params(all),
        p(all.p),
        mask{all.p, work.mask},
        owned0(work.q0),
        batch(work.batch),
        head(work.head),
        walk(all.p.lists, work, Cfg::kOwnsKeys ? all.p.group : 1),
        s_base(s_memory) {
    first.fill(0.f);
    if constexpr (Cfg::kOwnsKeys) second.fill(0.f);
  }

  // The warp's first row among the tokens that the thread block owns.
  __device__ __forceinline__ static int row0() { return thread_index() / 32 * Cfg::kWarpRows; }

  template <int kRows>
  __device__ __forceinline__ void load(int offset, Tensor const& from, int of_head, int token, int rows) {
    load_tile<Cfg::kThreads, kRows, Cfg::kHeadDim, Cfg::kSwizzle>(
        smem_address(s_base) + offset, from.row(batch, of_head, token), 2 * from.strides.token, rows, p.head_dim);
  }

  __device__ __forceinline__ void load_owned() {
    if constexpr (Cfg::kOwnsKeys) {
      load<Cfg::kOwned>(0, p.key(), head, owned0, p.k_len - owned0);
      load<Cfg::kOwned>(kOwnedBytes, p.value(), head, owned0, p.k_len - owned0);
    } else {
      load<Cfg::kOwned>(0, p.query(), head, owned0, p.q_len - owned0);
      load<Cfg::kOwned>(kOwnedBytes, params.gradient_of_out(), head, owned0, p.q_len - owned0);
      i64 const at = params.statistics(batch, head) + owned0 + row0();
      lse2.load(params.lse2 + at);
      delta.load(params.delta + at);
    }
  }

  static_assert(Cfg::kWalked / 2 <= Cfg::kThreads, "a thread brings 16 bytes of lse2 or of delta");

  // lse2 and delta of the tile's queries, 16 bytes a thread.
  __device__ __forceinline__ void load_statistics(u32 s_target, int query_head) {
    constexpr int kPieces = Cfg::kWalked / 4;
    int const thread = threadIdx.x;
    if (thread >= 2 * kPieces) return;
    float const* const g_source = thread < kPieces ? params.lse2 : params.delta;
    i64 const at = params.statistics(batch, query_head) + walk.tile.first + 4 * (thread % kPieces);
    cp_async_16(s_target + 16 * thread, g_source + at, 16);
  }

  // Starts the copies of the tile at the cursor.
  __device__ __forceinline__ void request(int stage) {
    int const offset = 2 * kOwnedBytes + stage * kSlotBytes;
    int const token = walk.tile.first, rows = walk.tile.length();
    if constexpr (Cfg::kOwnsKeys) {
      int const query_head = head * p.group + walk.head;
      load<Cfg::kWalked>(offset, p.query(), query_head, token, rows);
      load<Cfg::kWalked>(offset + kWalkedBytes, params.gradient_of_out(), query_head, token, rows);
      load_statistics(smem_address(s_base) + offset + 2 * kWalkedBytes, query_head);
    } else {
      load<Cfg::kWalked>(offset, p.key(), head / p.group, token, rows);
      load<Cfg::kWalked>(offset + kWalkedBytes, p.value(), head / p.group, token, rows);
    }
    cp_async_commit();
  }

  // One step: kStep tokens of the tile from `column0` on against the warp's own.
  __device__ __forceinline__ void compute_step(Tile const& tile, int stage, int column0) {
    Hidden<Cfg> hidden;
    bool const masked = tile.kind() != kFull;
    if (masked) {
      hidden.find(WarpStep{mask, tile, owned0 + row0(), row0(), tile.first + column0, column0});
      if (!hidden.is_anything()) return;
    }
    int const slot = 2 * kOwnedBytes + stage * kSlotBytes;
    u32 const s_lane = smem_address(s_base) + Shared::lane_offset();
    u32 const s_owned = s_lane + row0() * Shared::kPitchBytes;
    u32 const s_walked = s_lane + slot + column0 * Shared::kPitchBytes;
    Step weights, grads;
    weights.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(weights, s_owned, s_walked);
    grads.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(grads, s_owned + kOwnedBytes, s_walked + kWalkedBytes);
    if constexpr (Cfg::kOwnsKeys) {
      float const* const s_lse2 = reinterpret_cast<float const*>(s_base + slot + 2 * kWalkedBytes) + column0;
      weigh(weights, ColumnStatistic<Cfg>{s_lse2}, p.scale_log2);
      if (masked) hidden.apply(weights);
      differentiate(grads, weights, ColumnStatistic<Cfg>{s_lse2 + Cfg::kWalked});
    } else {
      weigh(weights, lse2, p.scale_log2);
      if (masked) hidden.apply(weights);
      differentiate(grads, weights, delta);
    }
    int const from = column_of_output();
    if constexpr (Cfg::kOwnsKeys) {
      add_products<Cfg, Cfg::kHeadDim>(second, weights, s_walked + kWalkedBytes + 2 * from, Cfg::kHeadDim - from);
    }
    add_products<Cfg, Cfg::kHeadDim>(first, grads, s_walked + 2 * from, Cfg::kHeadDim - from);
  }

  // First column of the gradients that the thread block makes.
  __device__ __forceinline__ static int column_of_output() {
    return Cfg::kColumns == Cfg::kHeadDim ? 0 : blockIdx.y * Cfg::kColumns;
  }

  __device__ __forceinline__ void compute(Tile const& tile, int stage) {
#pragma unroll 1
    for (int column = 0; column < Cfg::kWalked; column += Cfg::kStep) compute_step(tile, stage, column);
  }

  __device__ __forceinline__ void store(void* gradient, Strides const& strides, Out const& out, int len, float factor) {
    if (gradient == nullptr) return;
    int const from = column_of_output();
    unsigned char* const g_head =
        static_cast<unsigned char*>(gradient) + 2 * (batch * strides.batch + head * strides.head + from);
    store_gradient<Cfg>(
        out, g_head, strides.token, make_int2(owned0 + row0(), len), min(p.head_dim - from, Cfg::kColumns), factor);
  }

  __device__ __forceinline__ void run() {
    load_owned();
    if (walk.more) request(0);
    int stage = 0;
    while (walk.more) {
      Tile const tile = walk.tile;
      cp_async_wait<0>();
      __syncthreads();  // this tile has arrived; the other buffer is read
      if constexpr (Cfg::kStages == 2) {
        walk.advance(p.lists);
        if (walk.more) request(stage ^ 1);
        compute(tile, stage);
        stage ^= 1;
      } else {
        compute(tile, 0);
        walk.advance(p.lists);
        __syncthreads();  // the buffer is read
        if (walk.more) request(0);
      }
    }
    cp_async_wait<0>();
    if constexpr (Cfg::kOwnsKeys) {
      store(params.dk, params.dk_strides, first, p.k_len, p.scale);
      store(params.dv, params.dv_strides, second, p.k_len, 1.f);
    } else {
      store(params.dq, params.dq_strides, first, p.q_len, p.scale);
    }
  }
};

}  // namespace omni
