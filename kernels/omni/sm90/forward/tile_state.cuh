// What a consumer warpgroup carries from tile to tile.
#pragma once

#include "omni/sm90/forward/weights.cuh"
#include "omni/sm90/ring.cuh"

namespace omni {

template <class Cfg>
struct TileState {
  RingIndex<Cfg::kStages> ring;         // the tile whose scores come next; the values of the one before come with them
  RingIndex<Cfg::kStages> value_stage;  // the tile before: the last one that was not skipped
  int dead_tile_k0;  // first key of the tile before, where it holds dead ones that are to be zeroed, else -1
  RegTile<1, Cfg::kValueDim> out;
  Weights<Cfg> weights;  // of the tile before
  OnlineSoftmax<1, Cfg::kBf16> softmax;

  // O and the weights, which products under way read and write.
  __device__ __forceinline__ void pin() {
    pin_registers(out.x[0]);
    weights.pin();
  }

  // The tile is behind: its weights wait for its values.
  __device__ __forceinline__ void step() {
    value_stage = ring;
    ring.next();
  }
};

}  // namespace omni
