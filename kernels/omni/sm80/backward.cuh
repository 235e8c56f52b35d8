// The mma.sync backward loop for head_dim and value_dim up to 256. What a thread block owns stays in shared memory, K
// and V of its keys or Q and dO of its queries; tiles of the other two pass through kStages buffers.
#pragma once

#include "omni/sm80/backward_block.cuh"

namespace omni {

template <class Cfg>
struct Backward : BackwardBlock<Cfg> {
  using Block = BackwardBlock<Cfg>;
  using typename Block::Cursor;
  using Shared = SmemTile<Cfg::kHeadDim, Cfg::kSwizzle>;        // Q or K
  using ValueShared = SmemTile<Cfg::kValueDim, Cfg::kSwizzle>;  // behind it: V or dO
  using Step = StepTile<Cfg>;
  static constexpr int kOwnedBytes = Cfg::kOwned * Shared::kPitchBytes;
  static constexpr int kWalkedBytes = Cfg::kWalked * Shared::kPitchBytes;
  static constexpr int kBothWalked = kWalkedBytes + Cfg::kWalked * ValueShared::kPitchBytes;
  static constexpr int kBothOwned = kOwnedBytes + Cfg::kOwned * ValueShared::kPitchBytes;
  static constexpr int kSlotBytes = kBothWalked + (Cfg::kOwnsKeys ? Block::kStatisticBytes : 0);
  static constexpr int kOwnedTotal = kBothOwned + (Cfg::kOwnsKeys ? 0 : Block::kStatisticBytes);
  static_assert(Cfg::kSmemBytes == kOwnedTotal + Cfg::kStages * kSlotBytes + Block::kWorkBytes, "backward_kernel.py");

  using Block::Block;

  // Where the buffers of a stage begin.
  __device__ __forceinline__ static constexpr int slot(int stage) { return kOwnedTotal + stage * kSlotBytes; }

  // Where lse2 and delta lie of the queries of the tile in a stage, or of the thread block's own.
  __device__ __forceinline__ static constexpr int statistics(int stage) {
    return Cfg::kOwnsKeys ? slot(stage) + kBothWalked : kBothOwned;
  }

  // Starts the copies of the tile at a cursor.
  __device__ __forceinline__ void request(Cursor const& at, int stage) {
    if (!at.has_tile()) return;
    this->template load_walked<Cfg::kHeadDim>(at, slot(stage), 0);
    if constexpr (Cfg::kOwnsKeys) this->load_statistics(statistics(stage), this->walked_head(at), at.tile.first);
    cp_async_commit();
  }

  // One step: kStep tokens of the tile from `column` on against the warp's own. take(grads): gets the gradients of its
  // scores, unless the warp has nothing to do.
  template <class Take>
  __device__ __forceinline__ void compute_step(Tile const& tile, int stage, int column, Take const& take) {
    Hidden<Cfg> hidden;
    if (!this->find_hidden(hidden, tile, column)) return;
    int const from = slot(stage) + column * Shared::kPitchBytes;
    u32 const s_owned = this->template lane_address<Cfg::kHeadDim>() + this->row0() * Shared::kPitchBytes;
    u32 const s_dots = this->template dot_address<Cfg::kHeadDim>() + from;
    Step weights, grads;
    weights.fill(0.f);
    add_dots<Cfg, Cfg::kHeadDim>(weights, s_owned, s_dots);
    grads.fill(0.f);
    if constexpr (Cfg::kValueDim == Cfg::kHeadDim) {
      add_dots<Cfg, Cfg::kHeadDim>(grads, s_owned + kOwnedBytes, s_dots + kWalkedBytes);
    } else {
      u32 const s_row0 = this->template lane_address<Cfg::kValueDim>() + this->row0() * ValueShared::kPitchBytes;
      u32 const s_values = this->template dot_address<Cfg::kValueDim>() + column * ValueShared::kPitchBytes;
      add_dots<Cfg, Cfg::kValueDim>(grads, s_row0 + kOwnedBytes, s_values + slot(stage) + kWalkedBytes);
    }
    this->differentiate_step(weights, grads, hidden, tile, statistics(stage), column);
    take(grads);
    int const column0 = this->column0(), columns = Cfg::kHeadDim - column0;
    u32 const s_rows = this->template lane_address<Cfg::kHeadDim>() + from + 2 * column0;
    if constexpr (Cfg::kOwnsKeys && Cfg::kValueDim == Cfg::kHeadDim) {
      add_products<Cfg, Cfg::kHeadDim>(this->second, weights, s_rows + kWalkedBytes, columns);
    } else if constexpr (Cfg::kOwnsKeys) {
      int const first_column = this->value_column0();
      u32 const s_values = this->template lane_address<Cfg::kValueDim>() + column * ValueShared::kPitchBytes;
      add_products<Cfg, Cfg::kValueDim>(
          this->second, weights, s_values + slot(stage) + kWalkedBytes + 2 * first_column,
          Cfg::kValueDim - first_column);
    }
    add_products<Cfg, Cfg::kHeadDim>(this->first, grads, s_rows, columns);
  }

  __device__ __forceinline__ void compute(Tile const& tile, int stage) {
#pragma unroll
    for (int column = 0; column < Cfg::kWalked; column += Cfg::kStep) {
      compute_step(tile, stage, column, [](Step const&) {});
    }
  }

  // Starts the copies of what is owned, and of the first tile.
  __device__ __forceinline__ void start() {
    this->template load_owned<Cfg::kHeadDim>(0, 0);
    if constexpr (!Cfg::kOwnsKeys) this->load_statistics(statistics(0), this->head(), this->owned0());
    request(this->cursor(0), 0);
  }

  __device__ __forceinline__ void run() {
    start();
    for (int parity = 0;; parity ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // this tile has arrived; the other buffer is read, and the other cursor too
      if (!this->cursor(parity).has_tile()) break;
      if constexpr (Cfg::kStages == 2) {
        request(this->advance(parity), parity ^ 1);
        compute(this->cursor(parity).tile, parity);
      } else {
        compute(this->cursor(parity).tile, 0);
        Cursor const next = this->advance(parity);
        __syncthreads();  // the buffer is read
        request(next, 0);
      }
    }
    this->store_gradients();
  }
};

}  // namespace omni
