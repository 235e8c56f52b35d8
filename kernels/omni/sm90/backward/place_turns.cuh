// As turns.cuh, of sums that share places and end: whoever adds last to a sum gives its place to the next one. A sum of
// one addition never comes to its place, so the sums of one place must have as many additions each.
#pragma once

#include "omni/sm90/backward/config.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

// A place is one sum's after another's: its turns count on from (sums that had it before, 0), which who ends a sum
// leaves there. As many bits as ranks have, and as many as the sums of a launch need; ordered_lists.py has the same.
constexpr int kGenerationShift = 22;

struct PlaceOfSum {
  u32 generation;  // sums that had it before
  int place;

  __device__ __forceinline__ PlaceOfSum(BackwardParamsSm90 const& args, int sum)
      : generation(static_cast<u32>(sum) / static_cast<u32>(args.places)),
        place(sum - static_cast<int>(generation) * args.places) {}

  // After so many additions.
  __device__ __forceinline__ int turn(int additions) const {
    return static_cast<int>((generation << kGenerationShift) + additions);
  }

  // Of the next sum, before any addition.
  __device__ __forceinline__ int next_turn() const { return static_cast<int>((generation + 1) << kGenerationShift); }
};

struct PlaceTurns {
  static constexpr int kNone = -1;

  BackwardParamsSm90 const& args;
  int newest = kNone;  // of the last addition, the sum whose turn is still to be passed

  __device__ __forceinline__ explicit PlaceTurns(BackwardParamsSm90 const& params) : args(params) {}

  __device__ __forceinline__ int place(int sum) const { return PlaceOfSum(args, sum).place; }

  // Returns when so many have added to a sum; what they wrote is there for the copy engine then. Returned is the sum of
  // the addition before.
  __device__ __forceinline__ int wait(int sum, int rank) {
    PlaceOfSum const at(args, sum);
    if (load_acquire(args.turns + at.place) != at.turn(rank)) {
      pass();
      while (load_acquire(args.turns + at.place) != at.turn(rank)) {
      }
    }
    fence_proxy_async_global();
    int const sum_before = newest;
    newest = sum;
    return sum_before;
  }

  // Behind the next addition's start: the one before it has landed, or nearly.
  __device__ __forceinline__ void pass_but_newest(int sum_before) const {
    if (sum_before == kNone) return;
    bulk_wait<1>();
    pass_on(sum_before);
  }

  __device__ __forceinline__ void pass() {
    if (newest == kNone) return;
    bulk_wait();
    pass_on(newest);
    newest = kNone;
  }

  // The newest addition was its sum's last one, and the sum was read: its place is the next one's.
  __device__ __forceinline__ void end(int sum) {
    PlaceOfSum const at(args, sum);
    newest = kNone;
    fence_proxy_async_global();
    store_release(args.turns + at.place, at.next_turn());
  }

 private:
  // The next may add: what the copy engine added for this thread is there.
  __device__ __forceinline__ void pass_on(int sum) const {
    fence_proxy_async_global();
    add_release(args.turns + PlaceOfSum(args, sum).place, 1);
  }
};

}  // namespace omni
