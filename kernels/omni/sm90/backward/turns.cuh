// The order of additions to sums that several thread blocks add to: whose turn it is, of each sum. A thread that adds
// by the copy engine passes its turn when the addition has landed. The next addition may be under way by then, but the
// thread never waits for anything before it has passed its turn.
#pragma once

#include "omni/sm90/ptx.cuh"

namespace omni {

struct Turns {
  int* turns;               // of each sum, how many were added
  int* g_passed = nullptr;  // of the newest addition, where its turn is still to be passed

  __device__ __forceinline__ explicit Turns(int* of_sums) : turns(of_sums) {}

  // Returns when so many have added to a sum; what they wrote is there for the copy engine then.
  __device__ __forceinline__ void wait(i64 sum, int rank) {
    int* const g_turn = turns + sum;
    if (load_acquire(g_turn) != rank) {
      pass();
      while (load_acquire(g_turn) != rank) {
      }
    }
    fence_proxy_async_global();
    g_before = g_passed;
    g_passed = g_turn;
  }

  // Behind the next addition's start: the one before it has landed, or nearly.
  __device__ __forceinline__ void pass_but_newest() {
    if (g_before == nullptr) return;
    bulk_wait<1>();
    pass_on(g_before);
  }

  __device__ __forceinline__ void pass() {
    if (g_passed == nullptr) return;
    bulk_wait();
    pass_on(g_passed);
  }

 private:
  int* g_before = nullptr;  // of the one before it

  // The next may add: what the copy engine added for this thread is there.
  __device__ __forceinline__ static void pass_on(int*& g_turn) {
    fence_proxy_async_global();
    add_release(g_turn, 1);
    g_turn = nullptr;
  }
};

}  // namespace omni
