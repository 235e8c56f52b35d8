// The compile-time shape of the kernel for few query rows: at most 8 or 16 rows of heads and tokens, which all warps of
// a thread block share, over keys and values of 16 bits or of e4m3. The additions are the same for both, in the same
// order.
#pragma once

#include "omni/sm90/forward/pages.cuh"

namespace omni {

template <
    int HeadDim, int Bc, int Buffers, int Warps, int Blocks, bool Bf16, bool Softcap, bool Paged, bool Ragged,
    bool E4m3, bool Cached, int Rows>
struct FewRowsConfig {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kValueDim = HeadDim;
  static constexpr int kBc = Bc;            // keys of a step of a warp, and of a tile of the block lists
  static constexpr int kBuffers = Buffers;  // of a warp's ring, each for keys or values of a tile
  static constexpr int kTiles = Buffers;    // whose keys are there or on their way, and as many before them
  static constexpr int kWarps = Warps;
  static constexpr int kThreads = 32 * Warps;
  static constexpr int kBlocks = Blocks;  // thread blocks a multiprocessor
  static constexpr bool kBf16 = Bf16;
  static constexpr bool kSoftcap = Softcap;
  static constexpr bool kPaged = Paged;
  static constexpr bool kRagged = Ragged;
  static constexpr bool kE4m3 = E4m3;
  // As the parts that all Hopper kernels share name them.
  static constexpr bool kPack = true;
  static constexpr bool kCached = Cached;  // does a planner write the block lists on the device?
  static constexpr bool kScheduler = false;
  static constexpr bool kSplitWeights = false;
  static constexpr int kHeads = 1;

  // What it is launched with: of keys of 16 bits in one piece what all Hopper kernels are.
  static constexpr bool kMore = E4m3 || Paged || Ragged;
  using Params = typename ForwardParamsSm90Of<Paged, Ragged, kMore>::Type;

  // Of split rows that are whole when a thread block leaves an item, one is left for its end, where all warps merge it.
  static constexpr bool kMergesLate = !kMore;

  // Are all products of a tile one straight path? Else halves of it are turns of a loop: in pages registers are few.
  static constexpr bool kStraight = E4m3 && Rows == 8 && !Paged;

  static constexpr int kRows = Rows;             // of a tile of queries: rows of a product of mma.sync, or its columns
  static constexpr int kSteps = HeadDim / 16;    // of Q K^T
  static constexpr int kElement = E4m3 ? 1 : 2;  // bytes
  static constexpr int kTileBytes = Bc * HeadDim * kElement;

  static_assert(Cached || !kMore, "lists of the host go with keys of 16 bits in one piece");
  static_assert(
      HeadDim == 64 || HeadDim == 128, "a quad reads 64 columns of a key, eight lanes all columns of a value");
  static_assert(Rows == 8 || Rows == 16, "columns or rows of m16n8k16");
  static_assert(Buffers >= 2, "one for keys, one for values");
  static_assert(Bc == 32, "a lane looks up one key, and bit tiles have one word a row");
};

}  // namespace omni
