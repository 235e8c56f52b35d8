// Compile-time shape of one forward kernel, and what follows from it.
#pragma once

#include "omni/params.cuh"

namespace omni {

// Kinds of block-mask entries (omnicupy/blockmask.py) and the flags beside them (omnicupy/order.py): the tile holds dead
// keys; none of the query rows 64 * g to 64 * g + 63 of the block sees a key of it (bit kSkipShift + g, g < 3; never of
// a tile with dead keys); the block row has FULL tiles of 64 keys before this one.
constexpr int kFull = 1;
constexpr int kCausal = 2;
constexpr int kPartial = 3;
constexpr int kKindMask = 3;
constexpr int kDeadFlag = 4;
constexpr int kSkipShift = 3;
constexpr int kStandsFlag = 64;

// Up to this head_dim the weights P go into O += P V as two 16-bit numbers, rounded value and rest: the error of so
// short a row is a matter of luck otherwise, and the second product costs little.
constexpr int kSplitWeightsDim = 32;

template <int HeadDim, int ValueDim, int Br, int Bc, int Stages, int Warps, bool ShareKv, bool Swizzle, bool Bf16>
struct AttnConfig {
  // The tensor-core instruction that everything is cut to: mma.sync.m16n8k16.
  static constexpr int kMmaAtomM = 16;
  static constexpr int kMmaAtomN = 8;
  static constexpr int kMmaAtomK = 16;

  static constexpr int kHeadDim = HeadDim;    // columns of Q and K, tensors' head_dim rounded up to 16
  static constexpr int kValueDim = ValueDim;  // columns of V and O that one thread block owns
  static constexpr int kBr = Br;
  static constexpr int kBc = Bc;
  static constexpr int kStages = Stages;
  static constexpr int kWarps = Warps;
  static constexpr int kThreads = 32 * Warps;
  static constexpr bool kShareKv = ShareKv;
  static constexpr bool kSwizzle = Swizzle;
  static constexpr bool kBf16 = Bf16;

  static constexpr int kWarpRows = Br / Warps;
  static constexpr int kTilesM = kWarpRows / kMmaAtomM;  // m16 tiles a warp owns
  static constexpr bool kTiledHeadDim = HeadDim > 256;
  static constexpr bool kSplitWeights = HeadDim <= kSplitWeightsDim;

  static_assert(HeadDim % kMmaAtomK == 0 && ValueDim % kMmaAtomK == 0, "head_dim is padded to 16");
  static_assert(Br == kWarps * kTilesM * kMmaAtomM && (kTilesM == 1 || kTilesM == 2), "16 or 32 rows a warp");
  static_assert(Bc % 32 == 0, "bit tiles hold 32 keys a word");
  static_assert(!ShareKv || Stages == 1, "one buffer for K and V is one stage");
  static_assert(!kTiledHeadDim || (!ShareKv && kTilesM == 1), "D-tiling: separate buffers, 16 rows a warp");
};

}  // namespace omni
