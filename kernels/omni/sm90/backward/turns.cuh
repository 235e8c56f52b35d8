// The order of additions to sums that several thread blocks add to: whose turn it is, of each sum. A thread that adds
// by the copy engine passes its turn when the addition has landed. The next addition may be under way by then, but the
// thread never waits for anything before it has passed its turn. Behind the last addition to a sum nobody waits: it is
// finished.
#pragma once

#include "omni/sm90/backward/config.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

// A place is one sum's after another's: its turns count on from (generation, 0), which who finishes a sum leaves there.
constexpr int kGenerationShift = 16;

// Finish: called with a sum that is finished, by the thread that was the last to add to it.
template <class Finish>
struct Turns {
  static constexpr int kNone = -1;

  BackwardParamsSm90 const& args;
  Finish finish;
  int passed = kNone;  // of the newest addition, the sum whose turn is still to be passed

  __device__ __forceinline__ Turns(BackwardParamsSm90 const& params, Finish const& when_finished)
      : args(params), finish(when_finished) {}

  // Returns when so many have added to a sum; what they wrote is there for the copy engine then.
  __device__ __forceinline__ void wait(int sum, int rank, bool last) {
    int* const g_turn = args.turns + (sum & args.sums_mask);
    int const turn = (sum >> args.sums_shift << kGenerationShift) + rank;
    if (load_acquire(g_turn) != turn) {
      pass();
      while (load_acquire(g_turn) != turn) {
      }
    }
    fence_proxy_async_global();
    before = passed;
    was_last = is_last;
    passed = sum;
    is_last = last;
  }

  // Behind the next addition's start: the one before it has landed, or nearly.
  __device__ __forceinline__ void pass_but_newest() {
    if (before == kNone) return;
    bulk_wait<1>();
    pass_on(before, was_last);
  }

  __device__ __forceinline__ void pass() {
    if (passed == kNone) return;
    bulk_wait();
    pass_on(passed, is_last);
  }

 private:
  int before = kNone;  // of the one before it
  bool is_last = false, was_last = false;

  // The next may add: what the copy engine added for this thread is there.
  __device__ __forceinline__ void pass_on(int& sum, bool last) {
    fence_proxy_async_global();
    add_release(args.turns + (sum & args.sums_mask), 1);
    if (last) finish(sum);
    sum = kNone;
  }
};

}  // namespace omni
