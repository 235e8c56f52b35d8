// The loops of the warpgroups that make dK and dV: which steps come in which order, who waits for whom. The steps are
// in key_consumer.cuh. Nothing is added to memory that another thread block writes, so sums have one order.
#pragma once

#include "omni/sm90/backward/key_consumer.cuh"

namespace omni {

// Item after item. Loop has init(), keys_came(work): K and V are there, tile(work, done): so many came before it,
// finish(work): what K is still needed for after the last tile, store(work).
template <class Cfg, class Loop>
__device__ __forceinline__ void run_items(Loop& loop, KeySmem<Cfg>& smem) {
  using Slot = typename KeySmem<Cfg>::Slot;
  for (Slot slot{};; slot.next()) {
    mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
    WorkSlot const& work = smem.work[slot.stage()];
    if (uniform(work.head) < 0) return;
    loop.init();
    mbarrier_wait(smem_address(&smem.kv_full), KeySmem<Cfg>::kv_parity(slot));
    loop.keys_came(work);
#pragma unroll 1
    for (int done = 0; done < uniform(work.tiles); ++done) loop.tile(work, done);
    loop.finish(work);
    release(smem.kv_empty);
    loop.store(work);
    release(smem.work_empty[slot.stage()]);
  }
}

// A warpgroup with dK and dV of 64 keys of its own.
template <class Cfg>
struct KeyLoop {
  KeyConsumer<Cfg> consumer;
  RegTile<1, Cfg::kHeadDim> dk;
  RegTile<1, Cfg::kValueDim> dv;

  using Scores = typename KeyConsumer<Cfg>::Scores;
  using Pairs = typename KeyConsumer<Cfg>::Pairs;

  __device__ __forceinline__ KeyLoop(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem) : consumer{args, smem} {}

  // Of the consumers; worked out anew rather than kept.
  __device__ __forceinline__ static int group() { return uniform(thread_index() / 128 - 1); }

  __device__ __forceinline__ void init() {
    dk.fill(0.f);
    dv.fill(0.f);
  }
  __device__ __forceinline__ void keys_came(WorkSlot const&) const {}
  __device__ __forceinline__ void finish(WorkSlot const&) const {}

  __device__ __forceinline__ void tile(WorkSlot const& work, int) {
    step(work, [](Pairs const&) {});
  }

  // With K and V from shared memory.
  template <class HandOver>
  __device__ __forceinline__ void step(WorkSlot const& work, HandOver const& hand_over) {
    Scores scores;
    begin(scores);
    step(
        scores, work, [&](Scores& gradients) { consumer.start_weight_gradients(gradients, group()); }, hand_over,
        [] {});
  }

  // Starts S^T of the next tile, once its Q is there. Where there is none, of whatever lies there, and S^T is
  // not read: where the compiler does not know what is under way, it lets all products run one by one.
  __device__ __forceinline__ void begin(Scores& scores, bool is_there = true) {
    if (is_there) consumer.wait_for_q();
    pin_registers(scores.x[0]);
    consumer.start_scores(scores, group());
  }

  // scores: S^T, which is under way, and no other product.  start_gradients(dP^T): once dO is there.  hand_over(dS^T):
  // after dV's product is started, before dK's.  follow(): after both.  kAhead: S^T was started so far ahead that it is
  // waited for before dP^T is started.
  template <bool kAhead = false, class StartGradients, class HandOver, class Follow>
  __device__ __forceinline__ void step(
      Scores& scores, WorkSlot const& work, StartGradients const& start_gradients, HandOver const& hand_over,
      Follow const& follow) {
    KeySmem<Cfg>& smem = consumer.smem;
    Scores gradients;
    Pairs weights, score_gradients;
    if constexpr (kAhead) {
      wgmma_wait<0>();
      pin_registers(scores.x[0]);
    }
    consumer.wait_for_dout();
    pin_registers(gradients.x[0]);
    start_gradients(gradients);
    typename KeyConsumer<Cfg>::Keep keep;
    bool const masked = consumer.look_at_mask(keep, work, group());
    bool const far = consumer.is_far();
    if constexpr (!kAhead) {
      wgmma_wait<1>();
      pin_registers(scores.x[0]);
    }
    if constexpr (Cfg::kSoftcap) {
      consumer.weigh_and_pack(scores, weights, keep, masked);
    } else {
      consumer.weigh(scores, keep, masked, far);
    }
    wgmma_wait<0>();
    pin_registers(gradients.x[0]);
    if constexpr (!Cfg::kSoftcap) consumer.pack_weights(weights, scores);
    consumer.pack_score_gradients(score_gradients, gradients, [&](int j) {
      float const* const w = &scores.x[0][4 * j];
      return make_float4(w[0], w[1], w[2], w[3]);
    });
    pin_registers(dv.x[0]);
    pin_registers(weights);
    consumer.start_sum(dv, weights, smem.dout[consumer.ring.stage()]);
    hand_over(score_gradients);
    pin_registers(dk.x[0]);
    pin_registers(score_gradients);
    consumer.start_sum(dk, score_gradients, smem.q[consumer.ring.stage()]);
    follow();
    wgmma_wait<1>();
    pin_registers(dv.x[0]);
    pin_registers(weights);
    release(smem.dout_empty[consumer.ring.stage()]);
    wgmma_wait<0>();
    pin_registers(dk.x[0]);
    pin_registers(score_gradients);
    release(smem.q_empty[consumer.ring.stage()]);
    consumer.ring.next();
  }

  __device__ __forceinline__ void store(WorkSlot const& work) {
    consumer.store(dk, 0, consumer.args.b.p.scale, work, group());
    consumer.store(dv, 1, 1.f, work, group());
  }

  __device__ __forceinline__ void run() { run_items<Cfg>(*this, consumer.smem); }
};

// A role a warpgroup, for wide heads: this one makes P^T and dV, and hands P^T on in float32, a warp to the same warp
// of the other; where scores are capped, P^T times the slope of their tanh.
template <class Cfg>
struct ValueRole {
  KeyConsumer<Cfg> consumer;
  RegTile<1, Cfg::kValueDim> dv;
  int tiles = 0;  // so far

  using Scores = typename KeyConsumer<Cfg>::Scores;
  using Pairs = typename KeyConsumer<Cfg>::Pairs;

  __device__ __forceinline__ ValueRole(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem) : consumer{args, smem} {}

  __device__ __forceinline__ void init() { dv.fill(0.f); }
  __device__ __forceinline__ void keys_came(WorkSlot const&) const {}
  __device__ __forceinline__ void finish(WorkSlot const&) const {}

  __device__ __forceinline__ void tile(WorkSlot const& work, int) {
    KeySmem<Cfg>& smem = consumer.smem;
    Scores scores;
    Pairs weights;
    consumer.wait_for_q();
    pin_registers(scores.x[0]);
    consumer.start_scores(scores, 0);
    typename KeyConsumer<Cfg>::Keep keep;
    bool const masked = consumer.look_at_mask(keep, work, 0);
    bool const far = consumer.is_far();
    wgmma_wait<0>();
    pin_registers(scores.x[0]);
    if constexpr (Cfg::kSoftcap) {
      consumer.weigh_and_pack(scores, weights, keep, masked);
    } else {
      consumer.weigh(scores, keep, masked, far);
    }
    release(smem.q_empty[consumer.ring.stage()]);
    mbarrier_wait(smem_address(&smem.weights_empty), (tiles & 1) ^ 1);
    float4* const s_weights = smem.weights + thread_index() % 128;
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float const* const w = &scores.x[0][4 * j];
      s_weights[128 * j] = make_float4(w[0], w[1], w[2], w[3]);
    }
    if constexpr (!Cfg::kSoftcap) consumer.pack_weights(weights, scores);
    release(smem.weights_full);
    consumer.wait_for_dout();
    pin_registers(dv.x[0]);
    pin_registers(weights);
    consumer.start_sum(dv, weights, smem.dout[consumer.ring.stage()]);
    wgmma_wait<0>();
    pin_registers(dv.x[0]);
    pin_registers(weights);
    release(smem.dout_empty[consumer.ring.stage()]);
    consumer.ring.next();
    ++tiles;
  }

  __device__ __forceinline__ void store(WorkSlot const& work) { consumer.store(dv, 1, 1.f, work, 0); }

  __device__ __forceinline__ void run() { run_items<Cfg>(*this, consumer.smem); }
};

// The other one makes dS^T and dK.
template <class Cfg>
struct KeyRole {
  KeyConsumer<Cfg> consumer;
  RegTile<1, Cfg::kHeadDim> dk;
  int tiles = 0;  // so far

  using Scores = typename KeyConsumer<Cfg>::Scores;
  using Pairs = typename KeyConsumer<Cfg>::Pairs;

  __device__ __forceinline__ KeyRole(BackwardParamsSm90 const& args, KeySmem<Cfg>& smem) : consumer{args, smem} {}

  __device__ __forceinline__ void init() { dk.fill(0.f); }
  __device__ __forceinline__ void keys_came(WorkSlot const&) const {}
  __device__ __forceinline__ void finish(WorkSlot const&) const {}

  __device__ __forceinline__ void tile(WorkSlot const&, int) {
    KeySmem<Cfg>& smem = consumer.smem;
    Scores gradients;
    Pairs score_gradients;
    consumer.wait_for_q();  // delta comes with it
    consumer.wait_for_dout();
    pin_registers(gradients.x[0]);
    consumer.start_weight_gradients(gradients, 0);
    wgmma_wait<0>();
    pin_registers(gradients.x[0]);
    mbarrier_wait(smem_address(&smem.weights_full), tiles & 1);
    float4 const* const s_weights = smem.weights + thread_index() % 128;
    consumer.pack_score_gradients(score_gradients, gradients, [&](int j) { return s_weights[128 * j]; });
    release(smem.weights_empty);
    release(smem.dout_empty[consumer.ring.stage()]);
    pin_registers(dk.x[0]);
    pin_registers(score_gradients);
    consumer.start_sum(dk, score_gradients, smem.q[consumer.ring.stage()]);
    wgmma_wait<0>();
    pin_registers(dk.x[0]);
    pin_registers(score_gradients);
    release(smem.q_empty[consumer.ring.stage()]);
    consumer.ring.next();
    ++tiles;
  }

  __device__ __forceinline__ void store(WorkSlot const& work) {
    consumer.store(dk, 0, consumer.args.b.p.scale, work, 0);
  }

  __device__ __forceinline__ void run() { run_items<Cfg>(*this, consumer.smem); }
};

}  // namespace omni
