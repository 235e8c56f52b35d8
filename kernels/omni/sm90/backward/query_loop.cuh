// A warpgroup that makes dQ of 64 queries: rows of register tiles are queries, as in the forward pass, and so are
// lists, spans and skips; dS never leaves the registers.
#pragma once

#include "omni/lse2.cuh"
#include "omni/mask/keep.cuh"
#include "omni/sm90/backward/query_smem.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/sm90/wgmma.cuh"
#include "omni/softcap.cuh"
#include "omni/store.cuh"

namespace omni {

template <class Cfg>
struct QueryLoop {
  using Smem = QuerySmem<Cfg>;
  using Slot = typename Smem::Slot;
  using Scores = RegTile<1, Cfg::kBc>;
  using Pairs = u32[Cfg::kBc / 4];

  BackwardParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> ring;      // the slot of the next tile's K
  RingIndex<Smem::kKeyTiles> tiles;  // of spans
  RegTile<1, Cfg::kHeadDim> dq;
  float lse2[2], delta[2];  // of the thread's rows

  __device__ __forceinline__ QueryLoop(BackwardParamsSm90 const& params, Smem& memory) : args(params), smem(memory) {}

  // Of the consumers; worked out anew rather than kept.
  __device__ __forceinline__ static int group() { return uniform(thread_index() / 128 - 1); }

  // The warp's first row in the block.
  __device__ __forceinline__ static int row0() { return (thread_index() - 128) / 32 * 16; }

  __device__ __forceinline__ void wait_for(RingIndex<Cfg::kStages> at) const {
    mbarrier_wait(smem_address(&smem.kv_full[at.stage()]), at.parity());
  }

  // The rows' statistics. Those past q_len are there, too.
  __device__ __forceinline__ void init(WorkSlot const& work) {
    dq.fill(0.f);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      i64 const at = args.b.statistics(work.batch, work.head) + work.q0 + row0() + Scores::row(0, h);
      lse2[h] = product_lse2<Cfg>(args.b.lse2[at]);
      delta[h] = args.b.delta[at];
    }
  }

  // Gives a tile back unread where none of the warpgroup's rows sees it.
  __device__ __forceinline__ bool skip_tile() {
    if (!uniform(smem.tiles[tiles.stage()].is_skipped(group()))) return false;
    release(smem.kv_empty[ring.stage()]);
    ring.next();
    wait_for(ring);
    release(smem.kv_empty[ring.stage()]);
    ring.next();
    tiles.next();
    return true;
  }

  // Sets hidden scores to -inf. What a tile hides is found while its scores are on their way, where that takes no loop.
  template <class WaitForScores>
  __device__ __forceinline__ void hide(
      Scores& scores, WorkSlot const& work, WaitForScores const& wait_for_scores) const {
    Tile const tile = smem.tiles[tiles.stage()];
    MaskView const mask{args.b.p, work.mask};
    WarpTile const warp{mask, tile, work.q0 + row0(), row0(), smem.spans[tiles.stage()][0]};
    KeepBits<Scores> keep;
    bool const masked = uniform(tile.kind()) != kFull;
    bool const found = masked && find_at_once<Cfg::kBr>(keep, warp);
    wait_for_scores();
    pin_registers(scores.x[0]);
    if constexpr (Cfg::kSoftcap) cap_scores(scores, args.b.p.tanh_scale);
    if (!masked) return;
    if (!found) find_in_spans(keep, warp);
    keep.apply(scores);
  }

  // Scores to weights, in place: hidden pairs have scores of -inf, rows without a key and rows past q_len lse2 of +inf.
  // Where scores are capped, weights are multiplied by the slope of their tanh.
  __device__ __forceinline__ void weigh(Scores& scores) const {
    float const scale_log2 = args.b.p.scale_log2;
#pragma unroll
    for (int i = 0; i < Cfg::kBc / 2; ++i) {
      float const score = scores.x[0][i];
      scores.x[0][i] = exp2_approx(fmaf(score, scale_log2, -lse2[i / 2 % 2]));
      if constexpr (Cfg::kSoftcap) scores.x[0][i] *= tanh_slope(score);
    }
  }

  __device__ __forceinline__ void pack_score_gradients(
      Pairs& pairs, Scores const& weights, Scores const& gradients) const {
#pragma unroll
    for (int i = 0; i < Cfg::kBc / 4; ++i) {
      float const d = delta[i % 2];
      pairs[i] = pack_pair<Cfg::kBf16>(
          weights.x[0][2 * i] * (gradients.x[0][2 * i] - d), weights.x[0][2 * i + 1] * (gradients.x[0][2 * i + 1] - d));
    }
  }

  // S = Q K^T, dP = dO V^T, dQ += dS K. K is given back last.
  __device__ __forceinline__ void tile(WorkSlot const& work) {
    Scores scores, gradients;
    Pairs pairs;
    RingIndex<Cfg::kStages> const keys = ring;
    wait_for(keys);
    if (skip_tile()) return;
    ring.next();
    int const rows = group() * 64 * kPanelRowBytes;
    pin_registers(scores.x[0]);
    wgmma_fence();
    start_ss_kk<Cfg::kHeadDim, Cfg::kQPanelBytes, Cfg::kKvPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(
        scores, descriptor_low(smem_address(smem.q) + rows, 16),
        descriptor_low(smem_address(smem.kv[keys.stage()]), 16));
    wgmma_commit();
    wait_for(ring);
    pin_registers(gradients.x[0]);
    wgmma_fence();
    start_ss_kk<Cfg::kValueDim, Cfg::kQPanelBytes, Cfg::kKvPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(
        gradients, descriptor_low(smem_address(smem.dout) + rows, 16),
        descriptor_low(smem_address(smem.kv[ring.stage()]), 16));
    wgmma_commit();
    hide(scores, work, [] { wgmma_wait<1>(); });
    weigh(scores);
    wgmma_wait<0>();
    pin_registers(gradients.x[0]);
    release(smem.kv_empty[ring.stage()]);
    pack_score_gradients(pairs, scores, gradients);
    pin_registers(dq.x[0]);
    pin_registers(pairs);
    wgmma_fence();
    start_rs_n<Cfg::kBc, Cfg::kBf16, Cfg::kSumsAtomN>(
        dq, pairs, descriptor_low(smem_address(smem.kv[keys.stage()]), Cfg::kKvPanelBytes));
    wgmma_commit();
    wgmma_wait<0>();
    pin_registers(dq.x[0]);
    pin_registers(pairs);
    release(smem.kv_empty[keys.stage()]);
    ring.next();
    tiles.next();
  }

  __device__ __forceinline__ void store(WorkSlot const& work) const {
    ForwardParams const& p = args.b.p;
    Strides const& strides = args.b.dq_strides;
    unsigned char* const g_head =
        static_cast<unsigned char*>(args.b.dq) + 2 * (work.batch * strides.batch + work.head * strides.head);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const q = work.q0 + row0() + Scores::row(0, h);
      int const columns = q < p.q_len ? p.head_dim : 0;
      store_row<Cfg::kBf16>(dq, 0, h, p.scale, g_head + 2 * q * strides.token, columns);
    }
  }

  __device__ __forceinline__ void run() {
    for (Slot slot{};; slot.next()) {
      mbarrier_wait(smem_address(&smem.work_full[slot.stage()]), slot.parity());
      WorkSlot const& work = smem.work[slot.stage()];
      if (uniform(work.head) < 0) return;
      init(work);
      mbarrier_wait(smem_address(&smem.q_full), Smem::q_parity(slot));
#pragma unroll 1
      for (int left = uniform(work.tiles); left > 0; --left) tile(work);
      release(smem.q_empty);
      store(work);
      release(smem.work_empty[slot.stage()]);
    }
  }
};

}  // namespace omni
