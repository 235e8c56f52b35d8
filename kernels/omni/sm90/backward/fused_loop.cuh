// All three gradients in one pass over the tiles: dK and dV as in key_loop.cuh, and dQ, whose product dS K the
// warpgroups make in turn, a tile each, kLag tiles late, so that none waits for another at a barrier of all. dQ is
// added to sums in float32, in the order of accumulators (attention_bwd_convert.cu turns them into the result): from
// registers, or where shared memory has room from there, by a thread of the producer's warpgroup. Sums of several
// thread blocks have no order, or where the kernel is compiled for it (kOrdered) that of ranks, which the host worked
// out: who adds waits until as many have added before. All thread blocks must run at the same time then.
#pragma once

#include "omni/reduce.cuh"
#include "omni/sm90/backward/key_loop.cuh"
#include "omni/sm90/backward/turns.cuh"

namespace omni {

// Adds one warpgroup's tiles of dQ to the sums.
template <class Cfg>
__device__ __forceinline__ void add_tiles(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem, int buffer) {
  Turns turns(args.turns);
  int granted = 0;
  for (int parity = 0;; parity ^= 1) {
    if constexpr (Cfg::kOrdered) {
      if (!mbarrier_has_ended(smem_address(&smem.sums_full[buffer]), parity)) turns.pass();
    }
    mbarrier_wait(smem_address(&smem.sums_full[buffer]), parity);
    int2 const addition = smem.staged[parity][buffer];
    if (addition.x < 0) break;
    if constexpr (Cfg::kOrdered) {
      turns.wait(addition.x, addition.y);
      store_shared_volatile(smem_address(&smem.granted[buffer]), ++granted);
    }
    i64 const at = static_cast<i64>(addition.x) * (Cfg::kBr * Cfg::kHeadDim);
    bulk_add(args.dq_sums + at, smem_address(smem.sums[buffer]), Cfg::kBr * Cfg::kHeadDim * 4);
    bulk_commit();
    if constexpr (Cfg::kOrdered) turns.pass_but_newest();
    bulk_wait_read();
    mbarrier_arrive(smem_address(&smem.sums_empty[buffer]));
  }
  if constexpr (Cfg::kOrdered) turns.pass();
  bulk_wait();
}

// dS^T of the warpgroup's 64 keys to its panel of the loop's place in the ring, transposed. The place is empty.
template <class Cfg, class Loop>
__device__ __forceinline__ void put_score_gradients(Loop const& loop, typename KeyConsumer<Cfg>::Pairs const& pairs) {
  int const warp = thread_index() / 32 % 4, l = thread_index() % 32;
  u32 const base = smem_address(loop.smem.ds[loop.ring.stage()]) + loop.keys.group() * Cfg::kQPanelBytes +
                   ((l & 7) + 8 * (l >> 4)) * kPanelRowBytes + (((2 * warp + (l >> 3 & 1)) ^ (l & 7)) << 4);
#pragma unroll
  for (int j = 0; j < Cfg::kBr / 16; ++j) stmatrix_x4_trans(base + j * 16 * kPanelRowBytes, pairs + 4 * j);
}

// What was put there may be read by the product of dQ. The fence waits until it has arrived; dK's product, which has
// dS^T in registers, is under way meanwhile.
template <class Loop>
__device__ __forceinline__ void hand_over_score_gradients(Loop& loop) {
  fence_proxy_async();
  release(loop.smem.ds_full[loop.ring.stage()]);
  loop.ring.next();
}

template <class Cfg>
struct FusedLoop {
  using Smem = KeySmem<Cfg>;
  using Scores = typename KeyConsumer<Cfg>::Scores;
  using Pairs = typename KeyConsumer<Cfg>::Pairs;
  static constexpr int kLag = Smem::kLag;
  // dQ in two products of half of its columns: the first is taken while the second is under way. With S^T of the next
  // tile started ahead of them there are registers for one at a time.
  static constexpr int kHalves = Cfg::kHeadDim == 2 * kPanelColumns && Smem::kStaged ? 2 : 1;
  static constexpr int kHalvesAtOnce = Smem::kAhead ? 1 : kHalves;
  static_assert(Cfg::kBr == 64, "a warpgroup's rows");
  static_assert(kLag <= 1, "an item's last tile is the only one whose dQ is still to be made at its end");
  static_assert(Smem::kStaged || !Cfg::kOrdered, "consumers that waited for their turn would keep others waiting");

  Smem& smem;
  KeyLoop<Cfg> keys;
  RingIndex<Smem::kRing> ring;  // of dS: where the next tile's goes
  Scores ahead;                 // kAhead: S^T of the next tile
  int places[kLag + 1];         // of the last tiles: which tile of dQ each is, where no other thread adds it

  __device__ __forceinline__ FusedLoop(BackwardParamsSm90 const& args, Smem& memory)
      : smem(memory), keys(args, memory) {}

  __device__ __forceinline__ void init() { keys.init(); }
  __device__ __forceinline__ void keys_came(WorkSlot const& work) {
    if constexpr (Smem::kAhead) keys.begin(ahead, uniform(work.tiles) > 0);
  }

  __device__ __forceinline__ void tile(WorkSlot const& work, int done) {
    if constexpr (!Smem::kStaged) {
#pragma unroll
      for (int i = kLag; i > 0; --i) places[i] = places[i - 1];
    }
    if constexpr (Smem::kAhead) {
      step(ahead, work);
      keys.begin(ahead, done + 1 < uniform(work.tiles));
    } else {
      Scores scores;
      keys.begin(scores);
      step(scores, work);
    }
    if (done >= kLag) make_query_gradient(kLag + 1);
  }

  // The last tiles' dQ.
  __device__ __forceinline__ void finish(WorkSlot const& work) {
    if (kLag > 0 && uniform(work.tiles) > 0) make_query_gradient(kLag);
    if constexpr (Smem::kAhead) {
      wgmma_wait<0>();
      pin_registers(ahead.x[0]);
    }
  }

  __device__ __forceinline__ void store(WorkSlot const& work) { keys.store(work); }

  __device__ __forceinline__ void run() {
    run_items<Cfg>(*this, smem);
    if constexpr (Smem::kStaged) end();
  }

 private:
  __device__ __forceinline__ void step(Scores& scores, WorkSlot const& work) {
    auto& consumer = keys.consumer;
    keys.template step<Smem::kAhead>(
        scores, work, [&](Scores& gradients) { consumer.start_weight_gradients(gradients, keys.group()); },
        [&](Pairs const& score_gradients) {
          note_place();
          mbarrier_wait(smem_address(&smem.ds_empty[ring.stage()]), ring.parity() ^ 1);
          put_score_gradients<Cfg>(*this, score_gradients);
        },
        [&] { hand_over_score_gradients(*this); });
  }

  // The tile `late` tiles ago: whose it is, and the parity of how often that warpgroup's turn came. The ring of dS is
  // as long as there are warpgroups, so that its index says both.
  static_assert(Cfg::kConsumers == 1 || Cfg::kConsumers == Smem::kRing, "a place in the ring of dS for each");
  __device__ __forceinline__ int turn(int late) const { return Cfg::kConsumers == 1 ? 0 : before(late).stage(); }
  __device__ __forceinline__ int round(int late) const { return before(late).parity(); }

  // Which tile of dQ this one adds to. Its slot in shared memory was read before the addition ahead of it was given its
  // buffer: that was three turns ago at this warpgroup's last one.
  __device__ __forceinline__ void note_place() {
    int2 const& addition = smem.additions[keys.consumer.ring.stage()];
    if constexpr (Smem::kStaged) {
      bool const has_turn = turn(0) == keys.group();  // a shuffle: by all lanes
      if (has_turn && thread_index() % 128 == 0) smem.staged[round(0)][turn(0)] = addition;
    } else {
      places[0] = uniform(addition.x);
    }
  }

  __device__ __forceinline__ RingIndex<Smem::kRing> before(int late) const {
    RingIndex<Smem::kRing> found = ring;
#pragma unroll
    for (int i = 0; i < kLag + 1; ++i) {
      if (i < late) found = found.before();
    }
    return found;
  }

  __device__ __forceinline__ void make_query_gradient(int late) {
    if (turn(late) != keys.group()) return;
    RingIndex<Smem::kRing> const from = before(late);
    int const buffer = Smem::kStaged ? keys.group() : 0;
    mbarrier_wait(smem_address(&smem.ds_full[from.stage()]), from.parity());
    u32 const k = descriptor_low(smem_address(smem.k), Cfg::kKvPanelBytes);
    u32 const ds = descriptor_low(smem_address(smem.ds[from.stage()]), 16);
    RegTile<1, Cfg::kHeadDim / kHalves> dq[kHalvesAtOnce];
#pragma unroll
    for (int half = 0; half < kHalvesAtOnce; ++half) start_half(dq[half], half, ds, k);
    if constexpr (Smem::kStaged) mbarrier_wait(smem_address(&smem.sums_empty[buffer]), round(late) ^ 1);
    if constexpr (kHalves == 2) {
      wgmma_wait<kHalvesAtOnce - 1>();
      take(dq[0], 0, buffer, late);
      if constexpr (kHalvesAtOnce == 1) start_half(dq[0], 1, ds, k);
    }
    wgmma_wait<0>();
    pin_registers(dq[kHalvesAtOnce - 1].x[0]);
    release(smem.ds_empty[from.stage()]);
    take(dq[kHalvesAtOnce - 1], kHalves - 1, buffer, late);
    if constexpr (Smem::kStaged) {
      fence_proxy_async();
      release(smem.sums_full[buffer]);
    }
  }

  // A half of dQ's columns. ds, k: descriptors of dS and of K.
  template <class Half>
  __device__ __forceinline__ static void start_half(Half& dq, int half, u32 ds, u32 k) {
    pin_registers(dq.x[0]);
    wgmma_fence();
    start_ss_kn<Cfg::kBc, Cfg::kQPanelBytes, Cfg::kBf16, Cfg::kSumsAtomN>(dq, ds, k + (half * Cfg::kKvPanelBytes >> 4));
    wgmma_commit();
  }

  // A half's accumulators, to shared memory or added to the sums, 512 bytes a warp side by side.
  template <class Half>
  __device__ __forceinline__ void take(Half& dq, int half, int buffer, int late) {
    pin_registers(dq.x[0]);
    i64 const at = Smem::kStaged ? 0 : static_cast<i64>(places[late - 1]) * (Cfg::kBr * Cfg::kHeadDim);
#pragma unroll
    for (int i = 0; i < Half::kBlocks; ++i) {
      int const place = 4 * ((half * Half::kBlocks + i) * 128 + thread_index() % 128);
      if constexpr (Smem::kStaged) {
        store_shared4(smem_address(smem.sums[buffer]) + 4 * place, &dq.x[0][4 * i]);
      } else {
        red_add4(keys.consumer.args.dq_sums + at + place, &dq.x[0][4 * i]);
      }
    }
  }

  // Tells the thread that adds this warpgroup's tiles that no more come.
  __device__ __forceinline__ void end() {
    int const buffer = keys.group();
    int const parity = turn(0) > buffer ? round(0) ^ 1 : round(0);
    mbarrier_wait(smem_address(&smem.sums_empty[buffer]), parity ^ 1);
    if (thread_index() % 128 == 0) smem.staged[parity][buffer] = make_int2(-1, 0);
    release(smem.sums_full[buffer]);
  }
};

}  // namespace omni
