// The steps of a consumer warpgroup, which owns 64 query rows with S, P and O in registers: waiting for tiles and
// giving them back, products, mask, weights, rows stored. loop.cuh puts them in order.
#pragma once

#include "omni/mask/keep.cuh"
#include "omni/sm90/forward/merge.cuh"
#include "omni/sm90/forward/packed.cuh"
#include "omni/sm90/forward/pages.cuh"
#include "omni/sm90/forward/smem.cuh"
#include "omni/sm90/forward/tile_state.cuh"
#include "omni/sm90/uniform.cuh"
#include "omni/softcap.cuh"
#include "omni/store.cuh"

namespace omni {

// Named barriers from this one on, one a warpgroup: its turn at the tensor cores. 0 is __syncthreads.
constexpr int kTurnBarrier = 1;

// What is left to do about what a tile hides from the warp's rows, once its scores are there: nothing, as it hides
// nothing; to apply the bits, which are found; to find them first, in a loop that no product may be under way for.
enum class MaskWork : int { kNone, kReady, kLater };

template <class Cfg>
struct Consumer {
  using Smem = ForwardSmem<Cfg>;
  using Scores = RegTile<1, Cfg::kBc>;

  ForwardParamsSm90 const& args;
  ForwardParams const& p;
  Smem& smem;
  int const group;       // of the consumers
  int const row0;        // the warp's first row in its head's tile
  u32 q_descriptor_low;  // of the warpgroup's first row of the item at hand
  TileState<Cfg> state;

  __device__ __forceinline__ Consumer(ForwardParamsSm90 const& params, Smem& memory, int warpgroup)
      : args(params),
        p(params.p),
        smem(memory),
        group(warpgroup),
        row0((Cfg::kHeads == 1 ? 64 * warpgroup : 0) + threadIdx.x % 128 / 32 * 16) {}

  // The warpgroup's head.
  __device__ __forceinline__ int head(WorkSlot const& work) const { return work.head + (Cfg::kHeads == 1 ? 0 : group); }

  __device__ __forceinline__ void set_q(int slot) {
    q_descriptor_low = descriptor_low(smem_address(smem.q[slot]) + group * 64 * kPanelRowBytes, 16);
  }

  __device__ __forceinline__ u32 k_descriptor_low() const {
    return descriptor_low(smem_address(smem.k[state.ring.stage()]), 16);
  }

  __device__ __forceinline__ u32 v_descriptor_low() const {
    return descriptor_low(smem_address(smem.v[state.value_stage.stage()]), Cfg::kKvPanelBytes);
  }

  // Returns the tile's kind and flags.
  __device__ __forceinline__ int wait_for_keys() {
    mbarrier_wait(smem_address(&smem.k_full[state.ring.stage()]), state.ring.parity());
    show_to_wgmma();
    int const stage = state.ring.stage(), packed = smem.tiles[stage].packed;
    if (PageShare<Cfg>::any(smem.units_of_no_page(stage))) return packed | kNoPageFlag;
    return packed;
  }

  __device__ __forceinline__ void wait_for_values() {
    mbarrier_wait(smem_address(&smem.v_full[state.value_stage.stage()]), state.value_stage.parity());
    show_to_wgmma();
  }

  // What threads copied, and a barrier has shown to this one, becomes visible to the asynchronous proxy.
  __device__ __forceinline__ static void show_to_wgmma() {
    if constexpr (Cfg::kKeyByKey) fence_proxy_async();
  }

  // Ping-pong: the first turn is group 0's, and the last group hands it on.
  __device__ __forceinline__ void pass_first_turn() const {
    if (Cfg::kPingPong && group == Cfg::kConsumers - 1) bar_arrive<256>(kTurnBarrier);
  }

  __device__ __forceinline__ void wait_turn() const {
    if constexpr (Cfg::kPingPong) bar_sync<256>(kTurnBarrier + group);
  }

  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Cfg::kPingPong) {
      bar_arrive<256>(group == Cfg::kConsumers - 1 ? kTurnBarrier : kTurnBarrier + 1 + group);
    }
  }

  // Gives the next tile back unread where none of the warpgroup's rows sees it. Not the tile whose values need the
  // stage that the tile before still holds: the producer would wait for this warpgroup, and it for the producer.
  __device__ __forceinline__ bool skip_tile(bool any_before) {
    RingIndex<Cfg::kStages>& ring = state.ring;
    if (any_before && ring.stage() == state.value_stage.stage()) return false;
    mbarrier_wait(smem_address(&smem.k_full[ring.stage()]), ring.parity());
    if (!uniform(smem.tiles[ring.stage()].is_skipped(group))) return false;
    release(smem.k_empty[ring.stage()]);
    mbarrier_wait(smem_address(&smem.v_full[ring.stage()]), ring.parity());
    release(smem.v_empty[ring.stage()]);
    ring.next();
    return true;
  }

  // V rows of keys that no row sees may hold NaN, and 0 * NaN = NaN. All consumers share the work and meet before any
  // of them multiplies; none holds the turn here. Swizzles move 16-byte chunks inside their row only.
  __device__ __forceinline__ void zero_dead_values(WorkSlot const& work) {
    constexpr int kChunks = kPanelRowBytes / 16;
    constexpr int kRowStep = 128 * Cfg::kConsumers / kChunks;
    u32 const* const g_dead = MaskView{p, work.mask}.dead_words(state.dead_tile_k0);
    wait_for_values();
    uint4* const s_v = reinterpret_cast<uint4*>(smem.v[state.value_stage.stage()]);
    int const thread = thread_index() - 128;
#pragma unroll 4
    for (int row = thread / kChunks; row < Cfg::kBc; row += kRowStep) {
      if (!(g_dead[row / 32] >> (row % 32) & 1)) continue;
#pragma unroll
      for (int panel = 0; panel < Cfg::kValuePanels; ++panel) {
        s_v[(panel * Cfg::kBc + row) * kChunks + thread % kChunks] = make_uint4(0, 0, 0, 0);
      }
    }
    if constexpr (Cfg::kValueTail != 0) zero_dead_tails(s_v + Cfg::kValuePanels * Cfg::kBc * kChunks, g_dead);
    fence_proxy_async();
    mbarrier_meet(smem_address(&smem.dead_zeroed));
  }

  // S = Q K^T, started. k: descriptor_low of the K tile, worked out ahead of the wait for it.
  __device__ __forceinline__ void start_scores(Scores& scores, u32 k) {
    wgmma_fence();
    start_ss_kk<Cfg::kHeadDim - Cfg::kTail, Cfg::kQPanelBytes, Cfg::kKvPanelBytes, Cfg::kBf16, Cfg::kScoresAtomN>(
        scores, q_descriptor_low, k);
    if constexpr (Cfg::kTail != 0) {
      // Behind the whole panels of all warpgroups' rows; the warpgroups before this one have shorter rows there.
      int const q_bytes = Cfg::kPanels * Cfg::kQPanelBytes - group * 64 * (kPanelRowBytes - 2 * Cfg::kTail);
      start_tail_ss_kk<Cfg::kTail, Cfg::kBf16, Cfg::kScoresAtomN>(
          scores, q_descriptor_low + (q_bytes >> 4), k + (Cfg::kPanels * Cfg::kKvPanelBytes >> 4));
    }
    wgmma_commit();
  }

  // O += P V of the tile before, started.
  __device__ __forceinline__ void start_values() {
    u32 const v = v_descriptor_low();
    wait_for_values();
    wgmma_fence();
    if constexpr (Cfg::kSplitWeights) {
      start_rs_n<Cfg::kBc, Cfg::kBf16, Cfg::kSumsAtomN>(state.out, state.weights.rests, v);
    }
    if constexpr (Cfg::kValueTail != 0) {
      start_rs_n_and_tail<Cfg::kBc, Cfg::kValueDim - Cfg::kValueTail, Cfg::kBf16, Cfg::kSumsAtomN>(
          state.out, state.weights.pairs, v, v + (Cfg::kValuePanels * Cfg::kKvPanelBytes >> 4));
    } else {
      start_rs_n<Cfg::kBc, Cfg::kBf16, Cfg::kSumsAtomN>(state.out, state.weights.pairs, v);
    }
    wgmma_commit();
  }

  // The values of the tile before are added: O and the weights are at rest, V's buffer is free.
  __device__ __forceinline__ void finish_values() {
    wgmma_wait<0>();
    state.pin();
    release(smem.v_empty[state.value_stage.stage()]);
  }

  __device__ __forceinline__ WarpTile warp_tile(MaskView const& mask, Tile const& tile, WorkSlot const& work) const {
    int2 const* const s_spans = smem.spans[state.ring.stage()][0];
    if constexpr (Cfg::kPack) {
      int const heads = p.pack_heads;
      return WarpTile{mask, tile, work.q0 * heads + row0, row0, s_spans, heads, p.pack_tokens};
    }
    return WarpTile{mask, tile, work.q0 + row0, row0, s_spans};
  }

  // Finds what a tile hides while its scores are on their way, where that takes no loop. packed: the tile's kind; of
  // most tiles nothing else is read. `keep` is filled where kReady is returned. Sets dead_tile_k0, by which the next
  // step zeroes.
  __device__ __forceinline__ MaskWork look_at_mask(KeepBits<Scores>& keep, int packed, WorkSlot const& work) {
    state.dead_tile_k0 = -1;
    if ((packed & kKindMask) == kFull) return MaskWork::kNone;
    MaskView const mask{p, work.mask};
    Tile const tile = smem.tiles[state.ring.stage()];
    if (tile.has_dead()) state.dead_tile_k0 = tile.first;
    if (!find_at_once<Cfg::kPack ? 0 : Cfg::kBr>(keep, warp_tile(mask, tile, work))) return MaskWork::kLater;
    return keep.is_everything() ? MaskWork::kNone : MaskWork::kReady;
  }

  // Caps one tile of scores, which then have softcap for their scale.
  __device__ __forceinline__ void cap(Scores& scores) const {
    if constexpr (Cfg::kSoftcap) cap_scores(scores, p.tanh_scale);
  }

  // Hides the keys of one tile that have no page. packed: the tile's kind and flags.
  __device__ __forceinline__ void hide_keys_of_no_page(Scores& scores, int packed) const {
    if constexpr (Cfg::kPaged) {
      if (packed & kNoPageFlag) {
        constexpr int kWords = Cfg::kPage == 1 ? Cfg::kBc / 32 : 1;  // a bit for each kPage keys
        u32 hidden[kWords];
        if constexpr (Cfg::kLoaders != 0) {
          PageShare<Cfg>::gather(hidden, smem.units_of_no_page(state.ring.stage()));
        } else {
#pragma unroll
          for (int w = 0; w < kWords; ++w) hidden[w] = static_cast<u32>(smem.spans[state.ring.stage()][0][w].x);
        }
        hide_columns<Cfg::kPage>(scores, hidden);
      }
    }
  }

  // Masks one tile of scores. K, and what came with it, are released as soon as they are read.
  __device__ __forceinline__ void mask_scores(
      Scores& scores, KeepBits<Scores>& keep, MaskWork mask_work, WorkSlot const& work) {
    if (mask_work == MaskWork::kLater) {
      MaskView const mask{p, work.mask};
      find_in_spans(keep, warp_tile(mask, smem.tiles[state.ring.stage()], work));
      if (keep.is_everything()) mask_work = MaskWork::kNone;
    }
    if (mask_work != MaskWork::kNone) keep.apply(scores);
    release(smem.k_empty[state.ring.stage()]);
  }

  // The first tile of an item: O holds nothing.
  __device__ __forceinline__ void weigh_first(Scores& scores) {
    bool const kept[2] = {false, false};
    weigh_anew<false>(state.weights, state.softmax, state.out, scores, kept, p.scale_log2);
  }

  __device__ __forceinline__ void weigh(Scores& scores, bool allow_lazy) {
    omni::weigh(state.weights, state.softmax, state.out, scores, allow_lazy, p.scale_log2);
  }

  __device__ __forceinline__ void begin_rows() {
    state.out.fill(0.f);
    state.softmax.init();
  }

  __device__ __forceinline__ void store_rows(WorkSlot const& work) {
    state.softmax.finish();
    if constexpr (Cfg::kPack) {
      store_packed_rows(work);
      return;
    }
    if (!is_complete(work)) return;
    OutputPlace const place{query_batch<Cfg>(work.batch), head(work), work.q0 + row0, 0, stop_of(work)};
    store_output<Cfg>(p, place, state.out, state.softmax);
  }

 private:
  // The same rows of the narrow panel.
  __device__ __forceinline__ static void zero_dead_tails(uint4* s_tail, u32 const* g_dead) {
    constexpr int kChunks = 2 * Cfg::kValueTail / 16;
#pragma unroll 4
    for (int i = thread_index() - 128; i < Cfg::kBc * kChunks; i += 128 * Cfg::kConsumers) {
      int const row = i / kChunks;
      if (g_dead[row / 32] >> (row % 32) & 1) s_tail[i] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ int stop_of(WorkSlot const& work) const {
    return row_stop<Cfg, RaggedParamsSm90>(args, p.q_len, work.mask);
  }

  __device__ __forceinline__ int warp_of_tile() const { return (Cfg::kHeads == 1 ? 0 : 4 * group) + row0 / 16; }

  // The warpgroup stores the rows, or leaves them as a part; it merges the parts of the tile where it comes last.
  __device__ __forceinline__ void store_packed_rows(WorkSlot const& work) {
    PackedRows<Cfg> const rows(p, work, stop_of(work));
    int4 const split = args.n_split_rows == 0 ? make_int4(-1, 0, 0, 0) : args.splits[work.part];
    if (uniform(split.x) < 0) {
      rows.store(state.out, state.softmax, row0);
      return;
    }
    PackedMerge<Cfg> const merge{args, rows, split};
    merge.leave(state.out, state.softmax, row0);
    if (merge.is_last()) merge.run();
  }

  // Are the rows whole? The parts of a split block row are merged by the warp that comes last.
  __device__ __forceinline__ bool is_complete(WorkSlot const& work) {
    if (args.n_split_rows == 0) return true;
    int4 const split = args.splits[work.part];
    if (split.x < 0) return true;
    Merge<Cfg> const merge{args, split, (work.batch * p.q_heads + work.head) / Cfg::kHeads, warp_of_tile()};
    return merge.add(state.out, state.softmax, p.scale_log2);
  }
};

}  // namespace omni
