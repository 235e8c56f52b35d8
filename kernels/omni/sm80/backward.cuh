// The mma.sync backward loop for head_dim up to 256. What a thread block owns stays in shared memory, K and V of its
// keys or Q and dO of its queries; tiles of the other two pass through kStages buffers.
#pragma once

#include "omni/sm80/backward_block.cuh"

namespace omni {

template <class Cfg>
struct Backward : BackwardBlock<Cfg> {
  using Block = BackwardBlock<Cfg>;
  using Shared = SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>;
  using Step = StepTile<Cfg>;
  static constexpr int kOwnedBytes = Cfg::kOwned * Shared::kPitchBytes;
  static constexpr int kWalkedBytes = Cfg::kWalked * Shared::kPitchBytes;
  static constexpr int kSlotBytes = 2 * kWalkedBytes + (Cfg::kOwnsKeys ? Block::kStatisticBytes : 0);
  static constexpr int kOwnedTotal = 2 * kOwnedBytes + (Cfg::kOwnsKeys ? 0 : Block::kStatisticBytes);
  static_assert(Cfg::kSmemBytes == kOwnedTotal + Cfg::kStages * kSlotBytes + Block::kWorkBytes, "backward_spec.py");

  using Block::Block;

  // Where the buffers of a stage begin.
  __device__ __forceinline__ static constexpr int slot(int stage) { return kOwnedTotal + stage * kSlotBytes; }

  // Where lse2 and delta lie of the queries of the tile in a stage, or of the thread block's own.
  __device__ __forceinline__ static constexpr int statistics(int stage) {
    return Cfg::kOwnsKeys ? slot(stage) + 2 * kWalkedBytes : 2 * kOwnedBytes;
  }

  // Starts the copies of the tile at the cursor.
  __device__ __forceinline__ void request(int stage) {
    this->template load_walked<Cfg::kHeadDim>(slot(stage), 0);
    if constexpr (Cfg::kOwnsKeys) {
      this->load_statistics(statistics(stage), this->walked_head(), this->walk.tile.first);
    }
    cp_async_commit();
  }

  // One step: kStep tokens of the tile from `column` on against the warp's own.
  __device__ __forceinline__ void compute_step(Tile const& tile, int stage, int column) {
    Hidden<Cfg> hidden;
    if (!this->find_hidden(hidden, tile, column)) return;
    u32 const s_lane = this->template lane_address<Cfg::kHeadDim>();
    u32 const s_owned = s_lane + this->row0() * Shared::kPitchBytes;
    u32 const s_walked = s_lane + slot(stage) + column * Shared::kPitchBytes;
    Step weights, grads;
    weights.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(weights, s_owned, s_walked);
    grads.fill(0.f);
    add_scores<Cfg, Cfg::kHeadDim>(grads, s_owned + kOwnedBytes, s_walked + kWalkedBytes);
    this->differentiate_step(weights, grads, hidden, tile, statistics(stage), column);
    int const from = this->column0();
    if constexpr (Cfg::kOwnsKeys) {
      add_products<Cfg, Cfg::kHeadDim>(this->second, weights, s_walked + kWalkedBytes + 2 * from, Cfg::kHeadDim - from);
    }
    add_products<Cfg, Cfg::kHeadDim>(this->first, grads, s_walked + 2 * from, Cfg::kHeadDim - from);
  }

  __device__ __forceinline__ void compute(Tile const& tile, int stage) {
#pragma unroll 1
    for (int column = 0; column < Cfg::kWalked; column += Cfg::kStep) compute_step(tile, stage, column);
  }

  __device__ __forceinline__ void run() {
    auto& walk = this->walk;
    this->template load_owned<Cfg::kHeadDim>(0, 0);
    if constexpr (!Cfg::kOwnsKeys) this->load_statistics(statistics(0), this->head(), this->owned0());
    if (walk.has_tile()) request(0);
    int stage = 0;
    while (walk.has_tile()) {
      Tile const tile = walk.tile;
      cp_async_wait<0>();
      __syncthreads();  // this tile has arrived; the other buffer is read
      if constexpr (Cfg::kStages == 2) {
        this->advance();
        if (walk.has_tile()) request(stage ^ 1);
        compute(tile, stage);
        stage ^= 1;
      } else {
        compute(tile, 0);
        this->advance();
        __syncthreads();  // the buffer is read
        if (walk.has_tile()) request(0);
      }
    }
    cp_async_wait<0>();
    this->store_gradients();
  }
};

}  // namespace omni
