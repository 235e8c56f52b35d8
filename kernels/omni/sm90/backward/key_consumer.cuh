// The steps of the warpgroups that make dK and dV of a block of keys, in the form S^T: rows of register tiles are keys,
// columns queries, so that P^T and dS^T are operands from registers (FlashAttention-3's backward pass).
#pragma once

#include "omni/lse2.cuh"
#include "omni/mask/keep_transposed.cuh"
#include "omni/sm90/backward/key_merge.cuh"
#include "omni/sm90/backward/key_smem.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/sm90/wgmma.cuh"
#include "omni/softcap.cuh"
#include "omni/store.cuh"

namespace omni {

template <class Cfg>
struct KeyConsumer {
  using Smem = KeySmem<Cfg>;
  using Scores = RegTile<1, Cfg::kBr>;  // of 64 keys and the tile's queries
  using Pairs = u32[Cfg::kBr / 4];
  using Keep = KeepQueries<Cfg::kBr, Cfg::kBc, Smem::kSpans>;

  BackwardParamsSm90 const& args;
  Smem& smem;
  RingIndex<Cfg::kStages> ring;

  // Where the warp's first key stands in the block: of its warpgroup's 64 keys. group: of the consumers, 0 where all
  // have the same keys.
  __device__ __forceinline__ static int row0(int group) { return 64 * group + thread_index() % 128 / 32 * 16; }

  __device__ __forceinline__ u32 q_low() const { return descriptor_low(smem_address(smem.q[ring.stage()]), 16); }
  __device__ __forceinline__ u32 dout_low() const { return descriptor_low(smem_address(smem.dout[ring.stage()]), 16); }

  __device__ __forceinline__ void wait_for_q() const {
    mbarrier_wait(smem_address(&smem.q_full[ring.stage()]), ring.parity());
  }
  __device__ __forceinline__ void wait_for_dout() const {
    mbarrier_wait(smem_address(&smem.dout_full[ring.stage()]), ring.parity());
  }

  // S^T = K Q^T, started; Q is there.
  __device__ __forceinline__ void start_scores(Scores& scores, int group) const {
    u32 const k = descriptor_low(smem_address(smem.k) + group * 64 * kPanelRowBytes, 16);
    wgmma_fence();
    start_ss_kk<Cfg::kHeadDim, Cfg::kKvPanelBytes, Cfg::kQPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(
        scores, k, q_low());
    wgmma_commit();
  }

  // dP^T = V dO^T, started; dO is there.
  __device__ __forceinline__ void start_weight_gradients(Scores& gradients, int group) const {
    u32 const v = descriptor_low(smem_address(smem.v) + group * 64 * kPanelRowBytes, 16);
    wgmma_fence();
    start_ss_kk<Cfg::kValueDim, Cfg::kKvPanelBytes, Cfg::kQPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(
        gradients, v, dout_low());
    wgmma_commit();
  }

  // dV += P^T dO, or dK += dS^T Q, started: both have queries as their inner dimension, and their operand's rows are
  // those queries.
  template <class Out>
  __device__ __forceinline__ void start_sum(Out& out, Pairs const& pairs, unsigned char const* s_rows) const {
    u32 const rows = descriptor_low(smem_address(s_rows), Cfg::kQPanelBytes);
    wgmma_fence();
    start_rs_n<Cfg::kBr, Cfg::kBf16, Cfg::kSumsAtomN>(out, pairs, rows);
    wgmma_commit();
  }

  // What a tile hides, found while its scores are on their way. False: nothing, `keep` is not filled.
  __device__ __forceinline__ bool look_at_mask(Keep& keep, WorkSlot const& work, int group) const {
    Tile const tile = smem.tiles[ring.stage()];
    if (uniform(tile.packed & kKindMask) == kFull) return false;
    int const row = row0(group);
    keep.find(MaskView{args.b.p, work.mask}, tile, work.q0 + row, row, smem.spans[0]);
    return true;
  }

  // Scores to weights, in place. Rows without a key and rows past q_len have lse2 = +inf: their weights are 0. A hidden
  // pair's exponential may be infinite; it is dropped by select. kFar: rows may be far (lse2.cuh).
  template <bool kMasked, bool kFar = false>
  __device__ __forceinline__ void weigh(Scores& scores, Keep const& keep) const {
    float const* const s_lse2 = smem.lse2[ring.stage()] + 2 * (thread_index() % 4);
    float const scale_log2 = args.b.p.scale_log2;
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float2 const lse2 = load_shared_pair(s_lse2 + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* const x = &scores.x[0][4 * j + 2 * h];
        if constexpr (kFar) {
          x[0] = weight_of(x[0], args.b.p, lse2.x);
          x[1] = weight_of(x[1], args.b.p, lse2.y);
        } else {
          x[0] = exp2_approx(fmaf(x[0], scale_log2, -lse2.x));
          x[1] = exp2_approx(fmaf(x[1], scale_log2, -lse2.y));
        }
        if constexpr (kMasked) {
          x[0] = keep.words[h][j / 4] >> (8 * (j % 4)) & 1 ? x[0] : 0.f;
          x[1] = keep.words[h][j / 4] >> (8 * (j % 4) + 1) & 1 ? x[1] : 0.f;
        }
      }
    }
  }

  // Is a query of the tile far? Asked while scores are on their way; lse2 came with Q.
  __device__ __forceinline__ bool is_far() const {
    if constexpr (Cfg::kBf16 || Cfg::kSoftcap) return false;
    return any_far<Cfg::kBr>(smem.lse2[ring.stage()]);
  }

  __device__ __forceinline__ void weigh(Scores& scores, Keep const& keep, bool masked, bool far) const {
    if (far && masked) {
      weigh<true, true>(scores, keep);
    } else if (far) {
      weigh<false, true>(scores, keep);
    } else if (masked) {
      weigh<true>(scores, keep);
    } else {
      weigh<false>(scores, keep);
    }
  }

  // The same where scores are capped: P^T to pairs at once, and in place what dP^T - delta is multiplied by, P^T times
  // the slope of the tanh.
  template <bool kMasked>
  __device__ __forceinline__ void weigh_capped(Scores& scores, Pairs& pairs, Keep const& keep) const {
    float const* const s_lse2 = smem.lse2[ring.stage()] + 2 * (thread_index() % 4);
    float const scale_log2 = args.b.p.scale_log2;
    cap_scores(scores, args.b.p.tanh_scale);
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float2 const lse2 = load_shared_pair(s_lse2 + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* const x = &scores.x[0][4 * j + 2 * h];
        float low = exp2_approx(fmaf(x[0], scale_log2, -lse2.x));
        float high = exp2_approx(fmaf(x[1], scale_log2, -lse2.y));
        if constexpr (kMasked) {
          low = keep.words[h][j / 4] >> (8 * (j % 4)) & 1 ? low : 0.f;
          high = keep.words[h][j / 4] >> (8 * (j % 4) + 1) & 1 ? high : 0.f;
        }
        pairs[2 * j + h] = pack_pair<Cfg::kBf16>(low, high);
        x[0] = low * tanh_slope(x[0]);
        x[1] = high * tanh_slope(x[1]);
      }
    }
  }

  // Scores to weights, which go to pairs, too; once the scores are there.
  __device__ __forceinline__ void weigh_and_pack(Scores& scores, Pairs& pairs, Keep const& keep, bool masked) const {
    if (masked) {
      weigh_capped<true>(scores, pairs, keep);
    } else {
      weigh_capped<false>(scores, pairs, keep);
    }
  }

  // P^T to pairs in the order of operands, and dS^T = P^T (dP^T - delta) likewise.
  __device__ __forceinline__ static void pack_weights(Pairs& pairs, Scores const& weights) {
#pragma unroll
    for (int i = 0; i < Cfg::kBr / 4; ++i) {
      pairs[i] = pack_pair<Cfg::kBf16>(weights.x[0][2 * i], weights.x[0][2 * i + 1]);
    }
  }

  // weight(i): the weights 2 * i and 2 * i + 1.
  template <class WeightsOf>
  __device__ __forceinline__ void pack_score_gradients(
      Pairs& pairs, Scores const& gradients, WeightsOf const& weights) const {
    float const* const s_delta = smem.delta[ring.stage()] + 2 * (thread_index() % 4);
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
      float2 const delta = load_shared_pair(s_delta + 8 * j);
      float4 const w = weights(j);
      float const* const d = &gradients.x[0][4 * j];
      pairs[2 * j] = pack_pair<Cfg::kBf16>(w.x * (d[0] - delta.x), w.y * (d[1] - delta.y));
      pairs[2 * j + 1] = pack_pair<Cfg::kBf16>(w.z * (d[2] - delta.x), w.w * (d[3] - delta.y));
    }
  }

  // Rows of dK (gradient 0) or dV (1), once they are whole. A gradient that is not wanted has no address.
  template <class Out>
  __device__ __forceinline__ void store(Out& out, int gradient, float factor, WorkSlot const& work, int group) const {
    void* const to = gradient == 0 ? args.b.dk : args.b.dv;
    if (to == nullptr) return;
    Strides const& strides = gradient == 0 ? args.b.dk_strides : args.b.dv_strides;
    ForwardParams const& p = args.b.p;
    if (args.n_split_rows != 0) {
      int4 const split = args.splits[work.part];
      KeyMerge<Cfg> const merge{args, split, work.batch * args.b.kv_heads + work.head};
      if (split.x >= 0 && !merge.add(out, gradient, row0(group) / 16)) return;
    }
    unsigned char* const g_head =
        static_cast<unsigned char*>(to) + 2 * (work.batch * strides.batch + work.head * strides.head);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const key = work.q0 + row0(group) + Out::row(0, h);
      int const width = gradient == 0 ? p.head_dim : value_columns<Cfg>(p);
      int const columns = key < p.k_len ? width : 0;
      store_row<Cfg::kBf16>(out, 0, h, factor, g_head + 2 * key * strides.token, columns);
    }
  }
};

}  // namespace omni
