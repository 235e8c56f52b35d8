// Additions to sums of dQ in one order, by a kernel that makes the result of them. The thread whose addition to a sum
// was the last one has the copy engine fetch the sum to where the addition lay. A warp that is left of the producer's
// warpgroup scales, rounds and stores it from there.
#pragma once

#include "omni/sm90/backward/key_smem.cuh"
#include "omni/sm90/backward/place_turns.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/store.cuh"

namespace omni {

// In a rank: no addition to the sum comes later.
constexpr int kLastAddition = 1 << 30;

// What a sum belongs to.
struct HeadOfSum {
  int batch, head, tile;

  __device__ __forceinline__ HeadOfSum(BackwardParamsSm90 const& args, int sum) {
    int const group = args.b.p.group, of_head = sum / args.head_sums, of_group = of_head / group;
    bool const batch_first = args.kv_sums > args.batch_sums;
    int const inner = batch_first ? args.b.p.batch : args.b.kv_heads, outer = of_group / inner;
    int const rest = of_group - outer * inner;
    batch = batch_first ? rest : outer;
    head = (batch_first ? outer : rest) * group + of_head - of_group * group;
    tile = sum - of_head * args.head_sums;
  }
};

// By a warp. read(i): the numbers 4 * i to 4 * i + 3 of the sum, in the order that omni/dq_sums.cuh names. A lane has
// two rows of each 16. kPieces: of 32 columns, that are read before any of them is stored.
template <class Cfg, int kPieces, class Read>
__device__ __forceinline__ void finish_sum(BackwardParamsSm90 const& args, Read const& read, int sum) {
  constexpr int kBlocks = Cfg::kHeadDim / 8, kRowBlocks = Cfg::kBr / 16;  // 16 rows x 8 columns each
  BackwardParams const& b = args.b;
  ForwardParams const& p = b.p;
  HeadOfSum const of(args, sum);
  int const column = 8 * (lane_id() % 4), q = of.tile * Cfg::kBr + lane_id() / 4;
  i64 const row_bytes = 2 * b.dq_strides.token;
  unsigned char* g_row = static_cast<unsigned char*>(b.dq) + q * row_bytes + 2 * column +
                         2 * (of.batch * b.dq_strides.batch + of.head * b.dq_strides.head);
  int rows = p.q_len - q;
#pragma unroll 1
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll 1
    for (int first = 0; first < kBlocks; first += 4 * kPieces) {
      float4 fours[4 * kPieces];
#pragma unroll
      for (int i = 0; i < 4 * kPieces; ++i) {
        fours[i] = read(32 * (kRowBlocks * min(first + i, kBlocks - 1) + m) + lane_id());
      }
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        int const j = first + 4 * piece;
        u32 upper[4], lower[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float4 const& four = fours[4 * piece + i];
          upper[i] = pack_pair<Cfg::kBf16>(four.x * p.scale, four.y * p.scale);
          lower[i] = pack_pair<Cfg::kBf16>(four.z * p.scale, four.w * p.scale);
        }
        quad_transpose(upper);
        quad_transpose(lower);
        bool const exists = 8 * j + column < p.head_dim;
        uint4* const g_piece = reinterpret_cast<uint4*>(g_row + 16 * j);
        if (exists && rows > 0) *g_piece = make_uint4(upper[0], upper[1], upper[2], upper[3]);
        if (exists && rows > 8) {
          *reinterpret_cast<uint4*>(g_row + 16 * j + 8 * row_bytes) =
              make_uint4(lower[0], lower[1], lower[2], lower[3]);
        }
      }
    }
    g_row += 16 * row_bytes;
    rows -= 16;
  }
}

// By a thread that adds: a sum that lies in a buffer has had all its additions. -1: no more come from the thread.
template <class Smem>
__device__ __forceinline__ void hand_over(Smem& smem, int sum, int buffer) {
  int const number = atomicAdd(&smem.finishing, 1), place = number % Smem::kFinished;
  mbarrier_wait(smem_address(&smem.finished_empty[place]), (number / Smem::kFinished & 1) ^ 1);
  smem.finished[place] = make_int2(sum, buffer);
  mbarrier_arrive(smem_address(&smem.finished_full[place]));
}

// A thread that adds one warpgroup's tiles of dQ to the sums in their order, the first one to a sum in place of what
// lies there. Little is kept: there are few registers.
template <class Cfg, class Turns>
struct StoringAdder {
  using Smem = KeySmem<Cfg>;
  static constexpr int kFloats = Cfg::kBr * Cfg::kHeadDim, kBytes = 4 * kFloats;

  BackwardParamsSm90 const& args;
  Smem& smem;
  Turns turns;

  __device__ __forceinline__ StoringAdder(BackwardParamsSm90 const& params, Smem& memory)
      : args(params), smem(memory), turns(params) {}

  // Read anew rather than kept.
  __device__ __forceinline__ static int buffer() { return thread_index() / 32 - 1; }

  __device__ __forceinline__ u32 tile() const { return smem_address(smem.sums[buffer()]); }

  __device__ __forceinline__ void grant() const {
    u32 const granted = smem_address(&smem.granted[buffer()]);
    store_shared_volatile(granted, load_shared_volatile(granted) + 1);
  }

  __device__ __forceinline__ void add(int sum, int rank) {
    int const sum_before = turns.wait(sum, rank);
    grant();
    float* const g_sum = args.dq_sums + static_cast<i64>(turns.place(sum)) * kFloats;
    if (rank == 0) {
      bulk_store(g_sum, tile(), kBytes);
    } else {
      bulk_add(g_sum, tile(), kBytes);
    }
    bulk_commit();
    turns.pass_but_newest(sum_before);
  }

  // The next tile's addition, when it lies in the buffer.
  __device__ __forceinline__ int2 next(int parity) {
    u32 const full = smem_address(&smem.sums_full[buffer()]);
    if (!mbarrier_has_ended(full, parity)) turns.pass();
    mbarrier_wait(full, parity);
    return smem.staged[parity][buffer()];
  }

  // The addition has read the buffer.
  __device__ __forceinline__ void give_back() const {
    bulk_wait_read();
    mbarrier_arrive(smem_address(&smem.sums_empty[buffer()]));
  }
};

// Such a thread, where it hands over the sums that it adds to last.
template <class Cfg>
struct OrderedAdder : StoringAdder<Cfg, PlaceTurns> {
  using Base = StoringAdder<Cfg, PlaceTurns>;
  using Base::args, Base::buffer, Base::kBytes, Base::kFloats, Base::smem, Base::tile, Base::turns;

  int sums_fetched = 0;  // parity

  __device__ __forceinline__ OrderedAdder(BackwardParamsSm90 const& params, KeySmem<Cfg>& memory)
      : Base(params, memory) {}

  // After the last addition: the sum takes the addition's place here, and the next sum its place there.
  __device__ __forceinline__ void fetch(int sum) {
    u32 const loaded = smem_address(&smem.sum_loaded[buffer()]);
    bulk_wait();
    fence_proxy_async_global();
    mbarrier_expect_tx(loaded, kBytes);
    bulk_load(tile(), args.dq_sums + static_cast<i64>(PlaceOfSum(args, sum).place) * kFloats, kBytes, loaded);
    mbarrier_wait(loaded, sums_fetched);
    sums_fetched ^= 1;
    turns.end(sum);
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int parity = 0;; parity ^= 1) {
      int2 const addition = this->next(parity);
      if (addition.x < 0) break;
      if (addition.y == kLastAddition) {
        this->grant();
        turns.pass();
      } else {
        this->add(addition.x, addition.y & ~kLastAddition);
        if (addition.y & kLastAddition) fetch(addition.x);
      }
      if (addition.y & kLastAddition) {
        hand_over(smem, addition.x, buffer());
      } else {
        this->give_back();
      }
    }
    turns.pass();
    hand_over(smem, -1, 0);
  }
};

// The warp that stores what has had all its additions, until no more comes.
template <class Cfg>
__device__ __forceinline__ void finish_sums(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem) {
  using Smem = KeySmem<Cfg>;
  int adding = Smem::kBuffers;
#pragma unroll 1
  for (RingIndex<Smem::kFinished> ring; adding > 0; ring.next()) {
    mbarrier_wait(smem_address(&smem.finished_full[ring.stage()]), ring.parity());
    int const sum = uniform(smem.finished[ring.stage()].x), buffer = uniform(smem.finished[ring.stage()].y);
    release(smem.finished_empty[ring.stage()]);
    if (sum < 0) {
      --adding;
    } else {
      float4 const* const s_sum = smem.sums[buffer];
      finish_sum<Cfg, 1>(args, [s_sum](int i) { return s_sum[i]; }, sum);
      release(smem.sums_empty[buffer]);
    }
  }
}

}  // namespace omni
