// The mma.sync backward loop for head_dim above 256: all four tensors pass through shared memory in slices of 64
// columns, and a thread block makes one slice of its gradients; the blocks of one slice each (grid.y) repeat the
// scores.
#pragma once

#include "omni/sm80/backward_block.cuh"

namespace omni {

template <class Cfg>
struct TiledBackward : BackwardBlock<Cfg> {
  using Block = BackwardBlock<Cfg>;
  using typename Block::Cursor;
  static constexpr int kSlice = Cfg::kColumns;
  static constexpr int kSlices = (Cfg::kHeadDim + kSlice - 1) / kSlice;
  using Shared = SmemTile<kSlice, Cfg::kSwizzle>;
  using Step = StepTile<Cfg>;
  static constexpr int kOwnedBytes = Cfg::kOwned * Shared::kPitchBytes;
  static constexpr int kWalkedBytes = Cfg::kWalked * Shared::kPitchBytes;
  static constexpr int kStatisticOffset = 2 * kOwnedBytes + 2 * kWalkedBytes;
  static_assert(Cfg::kSmemBytes == kStatisticOffset + Block::kStatisticBytes + Block::kWorkBytes, "backward_kernel.py");
  static_assert(Cfg::kStep == Cfg::kWalked, "a tile is one step: its scores are added up over the slices");

  using Block::Block;

  // Brings a slice of the four tensors, lse2 and delta.
  __device__ __forceinline__ void load_slice(Cursor const& at, int slice) {
    __syncthreads();  // the slice before is read
    this->template load_owned<kSlice>(0, slice * kSlice);
    this->template load_walked<kSlice>(at, 2 * kOwnedBytes, slice * kSlice);
    int const query_head = Cfg::kOwnsKeys ? this->walked_head(at) : this->head();
    this->load_statistics(kStatisticOffset, query_head, Cfg::kOwnsKeys ? at.tile.first : this->owned0());
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
  }

  // What the slice adds to scores. The tensor cores truncate: long chains of their additions would drift.
  __device__ __forceinline__ static void add_slice(Step& scores, u32 s_owned, u32 s_walked) {
    Step part;
    part.fill(0.f);
    add_dots<Cfg, kSlice>(part, s_owned, s_walked);
    scores.add(part);
  }

  __device__ __forceinline__ void compute(Cursor const& at) {
    Tile const& tile = at.tile;
    Hidden<Cfg> hidden;
    bool const visible = this->find_hidden(hidden, tile, 0);
    u32 const s_lane = this->template lane_address<kSlice>();
    u32 const s_owned = s_lane + this->row0() * Shared::kPitchBytes;
    u32 const s_walked = s_lane + 2 * kOwnedBytes;
    u32 const s_dots = this->template dot_address<kSlice>() + 2 * kOwnedBytes;
    Step weights, grads;
    weights.fill(0.f);
    grads.fill(0.f);
    int slice = blockIdx.y;
    for (int i = 0; i < kSlices; ++i) {
      slice = slice + 1 == kSlices ? 0 : slice + 1;  // the block's own one comes last, and is there for the products
      load_slice(at, slice);
      if (!visible) continue;
      add_slice(weights, s_owned, s_dots);
      add_slice(grads, s_owned + kOwnedBytes, s_dots + kWalkedBytes);
    }
    if (!visible) return;
    this->differentiate_step(weights, grads, hidden, tile, kStatisticOffset, 0);
    if constexpr (Cfg::kOwnsKeys) add_products<Cfg, kSlice>(this->second, weights, s_walked + kWalkedBytes, kSlice);
    add_products<Cfg, kSlice>(this->first, grads, s_walked, kSlice);
  }

  __device__ __forceinline__ void run() {
    for (int parity = 0; this->cursor(parity).has_tile(); parity ^= 1) {
      compute(this->cursor(parity));
      this->advance(parity);
      __syncthreads();  // the cursor is there
    }
    this->store_gradients();
  }
};

}  // namespace omni
