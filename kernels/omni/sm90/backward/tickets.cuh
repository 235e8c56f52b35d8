// Additions to sums of dQ in any order, by a kernel that makes the result of them in the background. No sum is
// zeroed: who comes first to a sum stores, and the others wait until that has landed. Who stores waits for nothing,
// so each wait ends. Then they add as they come, and each counts what has landed. The first one knows how many
// additions the sum is to have: its turn is kLastAddition when all have landed, whoever was last.
#pragma once

#include "omni/sm90/backward/background.cuh"

namespace omni {

// In a turn: who comes first has come; and not below the second, what it stored is there. kLastAddition is behind both.
constexpr int kBegun = 1 << 29, kStored = kBegun + (1 << 28);

// Returns what was there before; what others had written when they added to it is seen behind.
__device__ __forceinline__ int or_acquire(int* g_target, int bits) {
  int before;
  asm volatile("atom.acquire.gpu.global.or.b32 %0, [%1], %2;" : "=r"(before) : "l"(g_target), "r"(bits) : "memory");
  return before;
}

// Adds one warpgroup's tiles of dQ to the sums. An addition comes with the number of all to its sum.
template <class Cfg>
__device__ __forceinline__ void add_by_tickets(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem, int buffer) {
  constexpr int kFloats = Cfg::kBr * Cfg::kHeadDim, kBytes = 4 * kFloats;
#pragma unroll 1
  for (int parity = 0;; parity ^= 1) {
    mbarrier_wait(smem_address(&smem.sums_full[buffer]), parity);
    int2 const addition = smem.staged[parity][buffer];
    if (addition.x < 0) return;
    int* const g_turn = args.turns + addition.x;
    float* const g_sum = args.dq_sums + static_cast<i64>(addition.x) * kFloats;
    u32 const tile = smem_address(smem.sums[buffer]);
    int turn = or_acquire(g_turn, kBegun), landed = 1;
    if (turn & kBegun) {
      while (turn < kStored) turn = load_acquire(g_turn);
      fence_proxy_async_global();
      bulk_add(g_sum, tile, kBytes);
    } else {
      landed = kLastAddition - (Cfg::kFirstTurn + kBegun) - (addition.y - 1);
      bulk_store(g_sum, tile, kBytes);
    }
    bulk_commit();
    bulk_wait_read();
    mbarrier_arrive(smem_address(&smem.sums_empty[buffer]));
    bulk_wait();
    fence_proxy_async_global();
    add_release(g_turn, landed);
  }
}

}  // namespace omni
