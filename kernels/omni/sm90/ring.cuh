// Rings of buffers between threads that fill and threads that read. Each buffer has two barriers: `full`, on which
// readers wait, and `empty`, on which the filler waits. A thread that waits for the n-th time on a barrier waits for
// parity n % 2 (who fills a buffer finds it empty at first, and waits for the other one).
#pragma once

#include "omni/sm90/ptx.cuh"
#include "omni/tile.cuh"

namespace omni {

// Position in a ring: the stage, and the parity of how often it came round; in one register, they are dear.
template <int kStages>
struct RingIndex {
  static_assert(kStages <= 8, "the stage has three bits");
  int packed = 0;  // stage | parity << 3

  __device__ __forceinline__ int stage() const { return packed & 7; }
  __device__ __forceinline__ int parity() const { return packed >> 3; }
  __device__ __forceinline__ void next() { packed = stage() == kStages - 1 ? (packed & 8) ^ 8 : packed + 1; }

  // The position before this one.
  __device__ __forceinline__ RingIndex before() const {
    return RingIndex{stage() == 0 ? (packed ^ 8) + kStages - 1 : packed - 1};
  }
};

// The whole warp has read what the barrier guards. Barriers of readers count warps.
__device__ __forceinline__ void release(u64& barrier) {
  __syncwarp();
  if (lane_id() == 0) mbarrier_arrive(smem_address(&barrier));
}

}  // namespace omni
