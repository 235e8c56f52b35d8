// A consumer warpgroup: 64 query rows, S, P and O in registers. S = Q K^T of the next tile runs beside O += P V of this
// one (FlashAttention-3's intra-warpgroup overlap), and while one warpgroup computes its softmax the other has the
// tensor cores (ping-pong).
#pragma once

#include "omni/epilogue.cuh"
#include "omni/mask.cuh"
#include "omni/sm90/merge.cuh"
#include "omni/sm90/pipe.cuh"
#include "omni/sm90/weights.cuh"

namespace omni {

// Named barriers from this one on, one a warpgroup: its turn at the tensor cores. 0 is __syncthreads.
constexpr int kTurnBarrier = 1;

template <class Cfg>
struct Consumer {
  using Smem = SmemSm90<Cfg>;
  using Scores = RegTile<1, Cfg::kBc>;
  using Out = RegTile<1, Cfg::kHeadDim>;

  AttnParamsSm90 const& args;
  AttnParams const& p;
  Smem& smem;
  int const group;  // of the consumers
  int const row0;   // the warp's first row in its head's tile
  u32 q_word;       // of the warpgroup's first row of the item at hand
  RingIndex<Cfg::kStages> ring;    // the tile whose scores come next; the values of the one before come with them
  RingIndex<Cfg::kStages> before;  // the tile before: the last one that was not skipped
  int dead_k0;      // first key of the tile before, where it holds dead ones that are to be zeroed, else -1
  Out out;
  Weights<Cfg> weights;  // of the tile before
  OnlineSoftmax<1> softmax;

  __device__ __forceinline__ Consumer(AttnParamsSm90 const& params, Smem& memory, int warpgroup)
      : args(params), p(params.p), smem(memory), group(warpgroup), row0((Cfg::kHeads == 1 ? 64 * warpgroup : 0) + threadIdx.x % 128 / 32 * 16) {}

  // The warpgroup's head.
  __device__ __forceinline__ int head(WorkSlot const& work) const { return work.head + (Cfg::kHeads == 1 ? 0 : group); }

  // The whole warp has read what the barrier gives back.
  __device__ __forceinline__ static void release(u64& barrier) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(smem_address(&barrier));
  }

  __device__ __forceinline__ void set_q(int slot) {
    q_word = descriptor_word(smem_address(smem.q[slot]) + group * 64 * Cfg::kRowBytes, 16);
  }

  __device__ __forceinline__ u32 k_word() const { return descriptor_word(smem_address(smem.k[ring.stage()]), 16); }

  __device__ __forceinline__ u32 v_word() const {
    return descriptor_word(smem_address(smem.v[before.stage()]), Cfg::kKvPanelBytes);
  }

  __device__ __forceinline__ void wait_for_values() {
    mbarrier_wait(smem_address(&smem.v_full[before.stage()]), before.parity());
  }

  // Ping-pong: wait for the turn, hand it on.
  __device__ __forceinline__ void wait_turn() const {
    if constexpr (Cfg::kPingPong) bar_sync<256>(kTurnBarrier + group);
  }

  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Cfg::kPingPong) bar_arrive<256>(group == Cfg::kConsumers - 1 ? kTurnBarrier : kTurnBarrier + 1 + group);
  }

  // V rows of keys that no row sees may hold NaN, and 0 * NaN = NaN. All consumers share the work and meet before any
  // of them multiplies; none holds the turn here. The 128-byte swizzle moves 16-byte chunks inside their row only.
  __device__ __forceinline__ void zero_dead_values(WorkSlot const& work) {
    constexpr int kChunks = Cfg::kRowBytes / 16;
    constexpr int kRowStep = 128 * Cfg::kConsumers / kChunks;
    u32 const* const g_dead = MaskView{p, work.mask}.dead_words(dead_k0);
    wait_for_values();
    uint4* const s_v = reinterpret_cast<uint4*>(smem.v[before.stage()]);
    int const thread = thread_index() - 128;
#pragma unroll 4
    for (int row = thread / kChunks; row < Cfg::kBc; row += kRowStep) {
      if (!(g_dead[row / 32] >> (row % 32) & 1)) continue;
#pragma unroll
      for (int panel = 0; panel < Cfg::kPanels; ++panel) {
        s_v[(panel * Cfg::kBc + row) * kChunks + thread % kChunks] = make_uint4(0, 0, 0, 0);
      }
    }
    fence_proxy_async();
    mbarrier_meet(smem_address(&smem.dead_zeroed));
  }

  // What a tile hides from the warp's rows: looked at while its scores are on their way, where that takes no loop.
  enum Hidden : int { kNothing, kFound, kNotFound };

  __device__ __forceinline__ WarpTile warp_tile(MaskView const& mask, KeyTile const& tile, WorkSlot const& work) const {
    return WarpTile{mask, tile, work.q0 + row0, row0, smem.spans[ring.stage()][0]};
  }

  // packed: the tile's kind; of most tiles nothing else is read. `keep` is filled where kFound is returned. Sets dead_k0, by
  // which the next step zeroes.
  __device__ __forceinline__ Hidden look_at_mask(KeepBits<Scores>& keep, int packed, WorkSlot const& work) {
    dead_k0 = -1;
    if ((packed & kKindMask) == kFull) return kNothing;
    MaskView const mask{p, work.mask};
    KeyTile const tile = smem.tiles[ring.stage()];
    if (tile.has_dead()) dead_k0 = tile.k0;
    if (!find_at_once<Cfg::kBr>(keep, warp_tile(mask, tile, work))) return kNotFound;
    return keep.is_everything() ? kNothing : kFound;
  }

  // Masks one tile of scores. K, and what came with it, are released as soon as they are read.
  __device__ __forceinline__ void mask_scores(Scores& scores, KeepBits<Scores>& keep, Hidden hidden, WorkSlot const& work) {
    if (hidden == kNotFound) {
      MaskView const mask{p, work.mask};
      find_in_spans(keep, warp_tile(mask, smem.tiles[ring.stage()], work));
      if (keep.is_everything()) hidden = kNothing;
    }
    if (hidden != kNothing) keep.apply(scores);
    release(smem.k_empty[ring.stage()]);
  }

  // Weighs a whole tile with peaks of its own. O and the weights are at rest. kRescale: O holds something.
  template <bool kRescale = true>
  __device__ __forceinline__ void weigh_anew(Scores const& scores) {
    float offset[2], sums[1][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const correction = softmax.raise(softmax.highest(scores, 0, h), 0, h, p.scale_log2);
      if constexpr (kRescale) rescale_row(out, 0, h, correction);
      offset[h] = softmax.raised_offset(0, h, p.scale_log2);
    }
    weights.weigh(scores, sums, offset, p.scale_log2);
    softmax.add(sums);
  }

  // Weighs a tile against the peaks as they are, if they may stand and do. O and the weights are at rest.
  __device__ __forceinline__ void weigh(Scores const& scores, bool may_stand) {
    if (may_stand) {
      float const offset[2] = {softmax.offset(0, 0, p.scale_log2), softmax.offset(0, 1, p.scale_log2)};
      float sums[1][2];
      weights.weigh(scores, sums, offset, p.scale_log2);
      if (softmax.stand(sums)) {
        softmax.add(sums);
        return;
      }
    }
    weigh_anew(scores);
  }

  // The values of the tile before, started.
  __device__ __forceinline__ void start_tile_values() {
    u32 const v = v_word();
    wait_for_values();
    wgmma_fence();
    if constexpr (Cfg::kSplitWeights) start_values<Cfg>(out, weights.rests, v);
    start_values<Cfg>(out, weights.pairs, v);
    wgmma_commit();
  }

  // The values of the tile before are added: O and the weights are at rest, V's buffer is free.
  __device__ __forceinline__ void finish_values() {
    wgmma_wait<0>();
    pin_registers(out.x[0]);
    weights.pin();
    release(smem.v_empty[before.stage()]);
  }

  // The tile is behind: its weights wait for its values.
  __device__ __forceinline__ void step() {
    before = ring;
    ring.next();
  }

  // Gives the next tile back unread where none of the warpgroup's rows sees it. Not the tile whose values need the stage
  // that the tile before still holds: the producer would wait for this warpgroup, and it for the producer.
  __device__ __forceinline__ bool skip_tile(bool any_before) {
    if (any_before && ring.stage() == before.stage()) return false;
    mbarrier_wait(smem_address(&smem.k_full[ring.stage()]), ring.parity());
    if (!__shfl_sync(0xffffffffu, smem.tiles[ring.stage()].is_skipped(group), 0)) return false;
    release(smem.k_empty[ring.stage()]);
    mbarrier_wait(smem_address(&smem.v_full[ring.stage()]), ring.parity());
    release(smem.v_empty[ring.stage()]);
    ring.next();
    return true;
  }

  __device__ __forceinline__ void begin_rows() {
    out.fill(0.f);
    softmax.init();
  }

  // The first tile of an item that the warpgroup looks at.
  __device__ __forceinline__ void first_tile(WorkSlot const& work) {
    Scores scores;
    u32 const k = k_word();
    mbarrier_wait(smem_address(&smem.k_full[ring.stage()]), ring.parity());
    int const packed = smem.tiles[ring.stage()].packed;
    pin_registers(scores.x[0]);
    start_scores<Cfg>(scores, q_word, k);
    KeepBits<Scores> keep;
    Hidden const hidden = look_at_mask(keep, packed, work);
    wgmma_wait<0>();
    pin_registers(scores.x[0]);
    begin_rows();
    mask_scores(scores, keep, hidden, work);
    weigh_anew<false>(scores);
    step();
  }

  // Scores of this tile beside the values of the tile before. in_turn: all warpgroups attend to it, and take turns.
  __device__ __forceinline__ void next_tile(WorkSlot const& work, bool in_turn) {
    Scores scores;
    if (dead_k0 >= 0) zero_dead_values(work);
    u32 const k = k_word();
    mbarrier_wait(smem_address(&smem.k_full[ring.stage()]), ring.parity());
    int const packed = smem.tiles[ring.stage()].packed;
    if (in_turn) wait_turn();
    pin_registers(scores.x[0]);
    pin_registers(out.x[0]);
    weights.pin();
    start_scores<Cfg>(scores, q_word, k);
    start_tile_values();
    if (in_turn) pass_turn();
    KeepBits<Scores> keep;
    Hidden const hidden = look_at_mask(keep, packed, work);
    wgmma_wait<1>();
    pin_registers(scores.x[0]);
    mask_scores(scores, keep, hidden, work);
    finish_values();
    weigh(scores, packed & kStandsFlag);
    step();
  }

  __device__ __forceinline__ int warp_of_tile() const { return (Cfg::kHeads == 1 ? 0 : 4 * group) + row0 / 16; }

  // Are the rows whole? The parts of a split block row are merged by the warp that comes last.
  __device__ __forceinline__ bool is_complete(WorkSlot const& work) {
    if (args.n_split_rows == 0) return true;
    int4 const split = args.splits[work.part];
    if (split.x < 0) return true;
    return Merge<Cfg>{args, split, (work.batch * p.q_heads + work.head) / Cfg::kHeads, warp_of_tile()}.add(out, softmax, p.scale_log2);
  }

  // The values of an item's last tile.
  __device__ __forceinline__ void last_values(WorkSlot const& work) {
    if (dead_k0 >= 0) zero_dead_values(work);
    pin_registers(out.x[0]);
    weights.pin();
    start_tile_values();
    finish_values();
  }

  __device__ __forceinline__ void store_rows(WorkSlot const& work) {
    softmax.finish();
    if (!is_complete(work)) return;
    store_output<Cfg::kBf16>(p, OutputPlace{work.batch, head(work), work.q0 + row0, 0}, out, softmax);
  }
};

}  // namespace omni
