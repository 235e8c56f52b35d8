// Additions to sums of dQ by a kernel that makes the result of them in the background. Here they have one order, and
// who adds last to a sum says so and goes on; in tickets.cuh they have none. Each thread block has a share of the
// sums. A warp that is left of its producer's warpgroup takes those that have had their last addition, reads them in
// L2, scales, rounds and stores them. When a block has no work left, the warps that own keys help it. They wait for
// additions alone, and nobody waits for them. Each sum has a place of its own.
#pragma once

#include "omni/sm90/backward/finish.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

// In the turn of a sum that had its last addition: a warp makes dQ of it. The turn is below 0 then.
constexpr int kTaken = static_cast<int>(1u << 31);

// As PlaceTurns, where each sum has a place of its own. A sum comes with kLastAddition where the addition is its last
// one: its turn is that, and more, when this has landed.
// kFirst: the turn of the first addition.
template <int kFirst>
struct DoneTurns {
  static constexpr int kNone = -1;

  BackwardParamsSm90 const& args;
  int newest = kNone;  // of the last addition, the sum whose turn is still to be passed

  __device__ __forceinline__ explicit DoneTurns(BackwardParamsSm90 const& params) : args(params) {}

  __device__ __forceinline__ int place(int sum) const { return sum & ~kLastAddition; }

  __device__ __forceinline__ int wait(int sum, int rank) {
    int* const g_turn = args.turns + place(sum);
    if (load_acquire(g_turn) != kFirst + rank) {
      pass();
      while (load_acquire(g_turn) != kFirst + rank) {
      }
    }
    fence_proxy_async_global();
    int const sum_before = newest;
    newest = sum;
    return sum_before;
  }

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

 private:
  // What the copy engine wrote for this thread is there, for who adds next and for who makes dQ.
  __device__ __forceinline__ void pass_on(int sum) const {
    fence_proxy_async_global();
    add_release(args.turns + place(sum), 1 + (sum & kLastAddition));
  }
};

// A thread that adds one warpgroup's tiles of dQ, and keeps nobody.
template <class Cfg>
struct BackgroundAdder : StoringAdder<Cfg, DoneTurns<Cfg::kFirstTurn>> {
  using Base = StoringAdder<Cfg, DoneTurns<Cfg::kFirstTurn>>;

  __device__ __forceinline__ BackgroundAdder(BackwardParamsSm90 const& params, KeySmem<Cfg>& memory)
      : Base(params, memory) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int parity = 0;; parity ^= 1) {
      int2 const addition = this->next(parity);
      if (addition.x < 0) break;
      this->add(addition.x | (addition.y & kLastAddition), addition.y & ~kLastAddition);
      this->give_back();
    }
    this->turns.pass();
  }
};

// Sums by when they have had their additions, nearly, and by when they are wanted first: heads that are worked on side
// by side before others, and of these the last queries, which the walk of most parts begins with, before the first
// ones. The query heads of a group are side by side, too, or follow each other.
__device__ __forceinline__ int sum_in_order(BackwardParamsSm90 const& args, int index) {
  ForwardParams const& p = args.b.p;
  int const groups = args.places / (args.head_sums * p.group);  // in the order of work
  int const side_by_side = p.section * p.mask_batch, of_group = args.head_sums * p.group;
  int const in_front = index / (side_by_side * of_group) * side_by_side;
  int width = min(side_by_side, groups - in_front), first = in_front * p.group, step = 1;
  index -= in_front * of_group;
  if (args.head_ranks == 0) {
    width *= p.group;
  } else {
    int const of_heads = width * args.head_sums, member = index / of_heads;
    first += member;
    step = p.group;
    index -= member * of_heads;
  }
  int const late = index / width;
  return (first + (index - late * width) * step) * args.head_sums + args.head_sums - 1 - late;
}

// Does no query of the sum see a key? Then nothing is added to it, and dQ has its zeros already.
template <class Cfg>
__device__ __forceinline__ bool is_dead(BackwardParamsSm90 const& args, int sum) {
  BackwardParams const& b = args.b;
  if (b.dead_rows == nullptr) return false;
  HeadOfSum const of(args, sum);
  int const mask = b.p.mask_batch == 1 ? 0 : of.batch, rows = b.p.q_len - of.tile * Cfg::kBr;
  u32 const* const g_words = b.dead_rows + static_cast<i64>(mask) * (b.q_padded / 32) + of.tile * (Cfg::kBr / 32);
  u32 seeing = 0;
#pragma unroll
  for (int i = 0; i < Cfg::kBr / 32; ++i) {
    u32 const behind = rows >= 32 * (i + 1) ? 0u : 0xffffffffu << max(rows - 32 * i, 0);
    seeing |= ~(g_words[i] | behind);
  }
  return seeing == 0;
}

// The first of the lanes that say so, from lane `from` on and then from lane 0. One says so.
__device__ __forceinline__ int first_lane(u32 said, int from) {
  return (__ffs(__funnelshift_r(said, said, from)) - 1 + from) % 32;
}

// By a warp: makes dQ of sums of the thread block's share, every so many in their order, until all of them are taken.
// It looks at 32 at a time, a lane each. from: the lane that it prefers, so that warps do not want the same sum.
// kPieces: as of finish_sum.
template <class Cfg, int kPieces>
__device__ __forceinline__ void finish_in_background(BackwardParamsSm90 const& args, int from) {
  constexpr u32 kAll = 0xffffffffu;
  u32 taken = 0;  // of those that are looked at
#pragma unroll 1
  for (int first = blockIdx.x; first < args.places;) {
    int const index = first + lane_id() * static_cast<int>(gridDim.x);
    bool const is_left = index < args.places && !(taken >> lane_id() & 1);
    int const sum = is_left ? sum_in_order(args, index) : 0;
    int turn = is_left ? load_acquire(args.turns + sum) : 0;
    u32 const done = __ballot_sync(kAll, turn >= kLastAddition);
    int const lane = done == 0 ? 0 : first_lane(done, from);
    bool takes = done != 0 && lane == lane_id();
    if (takes) {
      turn = atomicOr(args.turns + sum, kTaken);
      takes = !(turn & kTaken);
      turn |= kTaken;
    }
    bool const is_none = is_left && turn == Cfg::kFirstTurn && is_dead<Cfg>(args, sum);
    u32 const gone = __ballot_sync(kAll, turn & kTaken || is_none);
    taken |= gone;
    if (__any_sync(kAll, takes)) {
      int const next = __shfl_sync(kAll, sum, lane);
      __syncwarp();  // what the lane has seen, all have
      fence_proxy_async_global();
      float const* const g_sum = args.dq_sums + static_cast<i64>(next) * (Cfg::kBr * Cfg::kHeadDim);
      float4 const* const g_fours = reinterpret_cast<float4 const*>(g_sum);
      finish_sum<Cfg, kPieces>(args, [g_fours](int i) { return load_past_l1(g_fours + i); }, next);
    } else if (gone == 0) {
      __nanosleep(1000);
    }
    for (; taken & 1; taken >>= 1) first += gridDim.x;
  }
}

}  // namespace omni
