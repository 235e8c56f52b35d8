// A warp of the kernel for few query rows: S = Q K^T, softmax and O += P V of every kWarps-th tile of an item, with a
// row_max, a sum and an O of its own. How rows, keys and columns lie in its registers follows from how many rows there
// may be (sixteen_rows.cuh, eight_rows.cuh). A warp waits for its own copies alone.
#pragma once

#include "omni/sm90/few_rows/eight_rows.cuh"
#include "omni/sm90/few_rows/item_sums.cuh"
#include "omni/sm90/few_rows/loader.cuh"
#include "omni/sm90/few_rows/sixteen_rows.cuh"
#include "omni/softcap.cuh"

namespace omni {

template <class Cfg, int kRows = Cfg::kRows>
struct RowsOf {
  using Type = SixteenRows<Cfg>;
};

template <class Cfg>
struct RowsOf<Cfg, 8> {
  using Type = EightRows<Cfg>;
};

template <class Cfg>
struct FewRowsWarp {
  using Smem = FewRowsSmem<Cfg>;
  using Rows = typename RowsOf<Cfg>::Type;
  using Scores = typename Rows::Scores;
  using Out = typename Rows::Out;
  using Weighed = typename Rows::Weighed;
  using Loader = FewRowsLoader<Cfg>;
  using Copies = RowCopies<Cfg>;
  static constexpr int kKeyBlocks = Cfg::kBc / 8;   // of a tile
  static constexpr int kLazyTiles = 64 / Cfg::kBc;  // FULL ones behind which rescaling may be lazy

  ForwardParams const& p;
  Smem& smem;
  int const warp, parity;  // of the item
  int fits = 0;            // bits 0 and 1: the scales of keys and of values; 2 and 3: each token has one
  Out out;
  typename Rows::Softmax softmax;

  __device__ __forceinline__ FewRowsWarp(ForwardParams const& params, Smem& memory, int of_warp, int item)
      : p(params), smem(memory), warp(of_warp), parity(item % 2) {
    out.fill(0.f);
    softmax.init();
  }

  template <bool kFits>
  __device__ __forceinline__ static Diagonal<Cfg::kBf16> diagonal_of(HeadScale const& scale) {
    if constexpr (!kFits) return Diagonal<Cfg::kBf16>{};
    return Diagonal<Cfg::kBf16>{scale.diagonals[lane_id()], scale.power()};
  }

  template <bool kFits>
  __device__ __forceinline__ void multiply_keys(Scores& scores, WarpBuffer<Cfg> const& from) const {
    Diagonal<Cfg::kBf16> const of_head = diagonal_of<kFits>(smem.scales[parity][0]);
    float scales[kKeyBlocks];
#pragma unroll
    for (int i = 0; i < kKeyBlocks; ++i) {
      scales[i] = (fits & 4) != 0 ? from.scales[8 * i + lane_id() / 4] : smem.scales[parity][0].scale;
    }
#pragma unroll(Cfg::kStraight ? Copies::kHalves : 1)
    for (int half = 0; half < Copies::kHalves; ++half) {
      uint4 share[kKeyBlocks][Cfg::kElement];
#pragma unroll
      for (int i = 0; i < kKeyBlocks; ++i) {
#pragma unroll
        for (int n = 0; n < Cfg::kElement; ++n) {
          u32 const at = Copies::key_at(lane_id(), i, half, n);
          share[i][n] = *reinterpret_cast<uint4 const*>(from.elements + at);
        }
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Rows::add_scores(scores, smem.q[parity][4 * half + step][lane_id()], [&](int i) {
          return key_fragment<Cfg, kFits>(share[i], step, of_head, scales[i]);
        });
      }
    }
  }

  __device__ __forceinline__ void compute_scores(Scores& scores, WarpBuffer<Cfg> const& from) const {
    scores.fill(0.f);
    if (Cfg::kE4m3 && (fits & 1) != 0) {
      multiply_keys<Cfg::kE4m3>(scores, from);
      float const more = smem.scales[parity][0].power();
#pragma unroll
      for (int i = 0; i < Scores::kCols / 2; ++i) scores.x[0][i] *= Cfg::kBf16 ? more : 1.f;
    } else {
      multiply_keys<false>(scores, from);
    }
  }

  __device__ __forceinline__ void add_values(Weighed const& weights, WarpBuffer<Cfg> const& from) {
    if (Cfg::kE4m3 && (fits & 2) != 0) {
      multiply_values<Cfg::kE4m3>(weights, from);
    } else {
      multiply_values<false>(weights, from);
    }
  }

  template <bool kFits>
  __device__ __forceinline__ void multiply_values(Weighed const& weights, WarpBuffer<Cfg> const& from) {
    constexpr int kBytes = Cfg::kHeadDim / 8 * Cfg::kElement, kParts = kBytes > 16 ? 2 : 1;  // of a lane
    constexpr int kWords = kBytes / 4, kColumns = 4 / Cfg::kElement;                         // of a lane; of a word
    int const column = kBytes * (lane_id() / 4);
    float2 const* const s_scales = reinterpret_cast<float2 const*>(from.scales) + lane_id() % 4;
    Diagonal<Cfg::kBf16> const of_head = diagonal_of<kFits>(smem.scales[parity][1]);
    float const of_all = smem.scales[parity][1].scale;
    static_assert(Cfg::kBc == 32, "two steps of 16 keys");
    // One by one where O takes many registers.
#pragma unroll(Cfg::kStraight || Cfg::kHeadDim == 64 ? 2 : 1)
    for (int t = 0; t < 2; ++t) {
      typename Rows::Operand const operand = weights.of_step(t);
      u32 words[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int n = 0; n < kParts; ++n) {
          unsigned char const* const s_part = from.elements + Copies::value_at(lane_id(), t, i, column + 16 * n);
          if constexpr (kBytes >= 16) {
            uint4 const four = *reinterpret_cast<uint4 const*>(s_part);
            words[i][4 * n] = four.x;
            words[i][4 * n + 1] = four.y;
            words[i][4 * n + 2] = four.z;
            words[i][4 * n + 3] = four.w;
          } else {
            uint2 const two = *reinterpret_cast<uint2 const*>(s_part);
            words[i][0] = two.x;
            words[i][1] = two.y;
          }
        }
      }
      float2 near = make_float2(of_all, of_all), far = near;
      if ((fits & 8) != 0) {
        near = s_scales[8 * t];
        far = s_scales[8 * t + 4];
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        u32 low[kColumns], high[kColumns];
        value_halves<Cfg, kFits>(low, words[0][w], words[1][w], of_head, near);
        value_halves<Cfg, kFits>(high, words[2][w], words[3][w], of_head, far);
        Rows::add_values(out, operand, kColumns * w, low, high);
      }
    }
  }

  __device__ __forceinline__ void mask(Scores& scores, Tile const& tile, u32 no_page, WorkSlot const& work) const {
    if constexpr (Cfg::kPaged) {
      if (no_page != 0) Rows::hide_keys(scores, no_page);
    }
    if (tile.kind() == kFull) return;
    MaskView const view{p, work.mask};
    Tile const whole{tile.packed, p.lists.entries[tile.payload].y, tile.first};
    Rows::mask(scores, WarpTile{view, whole, work.q0 * p.pack_heads, 0, nullptr, p.pack_heads, p.pack_tokens});
  }

  // Starts to fill the ring. Not unrolled: a cold start waits for instructions, too.
  __device__ __forceinline__ static void fill(Loader& loader) {
#pragma unroll 1
    for (int i = 0; i < Cfg::kBuffers / 2; ++i) {
      loader.load_keys();
      loader.load_values();
    }
    if constexpr (Cfg::kBuffers % 2 != 0) loader.load_keys();
  }

  // All of the warp's tiles of an item. A buffer is filled anew as soon as it is read.
  __device__ __forceinline__ void run(Loader& loader, WorkSlot const& work) {
    constexpr bool kEven = Cfg::kBuffers % 2 == 0;  // keys follow keys in a buffer
    if constexpr (Cfg::kE4m3) fits = uniform(smem.scales[parity][0].fits | smem.scales[parity][1].fits << 1);
    int full = 0, left = (uniform(work.tiles) + Cfg::kWarps - 1 - warp) / Cfg::kWarps;
#pragma unroll 1
    while (left > 0) {
      WarpBuffer<Cfg> const& of_keys = take_buffer(loader);
      int const slot = (loader.buffer + Cfg::kBuffers) % (2 * Cfg::kBuffers) / 2;  // of a round before
      Tile tile = smem.tiles[warp][slot];
      tile.packed = uniform(tile.packed);
      if (tile.packed == 0) {  // left empty
        load<kEven>(loader, true);
        take_buffer(loader);
        load<kEven>(loader, false);
        continue;
      }
      --left;
      u32 const no_page = Cfg::kPaged ? static_cast<u32>(uniform(smem.hidden[warp][slot])) : 0;
      Scores scores;
      compute_scores(scores, of_keys);
      __syncwarp();  // all have read the buffer, and what the tile is
      load<kEven>(loader, true);
      if constexpr (Cfg::kSoftcap) cap_scores(scores, p.tanh_scale);
      mask(scores, tile, no_page, work);
      Weighed weights;
      Rows::weigh_tile(weights, softmax, out, scores, full >= kLazyTiles, p.scale_log2);  // row by row, as packed tiles
      full += tile.kind() == kFull ? 1 : 0;
      add_values(weights, take_buffer(loader));
      __syncwarp();
      load<kEven>(loader, false);
    }
  }

  // The oldest buffer, which is the next one to be filled. It is there for all lanes: scales are copied by other ones,
  // and one says what a tile is.
  __device__ __forceinline__ WarpBuffer<Cfg> const& take_buffer(Loader const& loader) const {
    int const index = loader.buffer % Cfg::kBuffers;
    cp_async_wait<Cfg::kBuffers - 1>();
    if constexpr (Copies::kAtOnce) {  // filled in the round before
      mbarrier_wait(smem_address(&smem.full[warp][index]), loader.buffer / Cfg::kBuffers ^ 1);
    }
    __syncwarp();
    return smem.rings[warp].buffers[index];
  }

  // kSame: loads keys where `keys` says so, else values.
  template <bool kSame>
  __device__ __forceinline__ static void load(Loader& loader, bool keys) {
    if (keys == kSame) {
      loader.load_keys();
    } else {
      loader.load_values();
    }
  }

  // O, row_max and sums of the block's last item, where all warps find them. Rows from `live` on are left out.
  __device__ __forceinline__ void leave(int live) {
    cp_async_wait<0>();
    __syncwarp();  // the ring is read
    softmax.finish();
    float* const s_out = smem.rings[warp].out;
    float const more = left_to_out();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = Rows::row(h);
      if (row >= live) continue;
#pragma unroll
      for (int j = 0; j < Out::kBlocks; ++j) {
        float2 const two = Rows::pair(out, h, j);
        Rows::store_pair(s_out, row, j, make_float2(two.x * more, two.y * more));
      }
      if (Rows::is_first()) smem.sums[warp][row] = make_float2(softmax.row_max[0][h], softmax.row_sum[0][h]);
    }
  }

  // The same of another item, added to what the warps before it had: the additions are those that are made of what
  // all warps have left.
  __device__ __forceinline__ void add_to_chain(int item, int live) {
    softmax.finish();
    mbarrier_wait(smem_address(&smem.turn[warp]), (item + (warp == 0)) % 2);
    float const more = left_to_out();
    WarpSum sums[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = Rows::row(h);
      if (warp != 0 && row < live) sums[h].of = smem.chain_sums[row];
    }
    __syncwarp();  // all have read them
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const row = Rows::row(h);
      if (row >= live) continue;
      sums[h].add(make_float2(softmax.row_max[0][h], softmax.row_sum[0][h]), p.scale_log2);
#pragma unroll
      for (int j = 0; j < Out::kBlocks; ++j) {
        float2 const before = warp == 0 ? make_float2(0.f, 0.f) : Rows::load_pair(smem.chain, row, j);
        float2 const two = Rows::pair(out, h, j);
        float const low = two.x * more, high = two.y * more;
        Rows::store_pair(smem.chain, row, j, make_float2(sums[h].plus(before.x, low), sums[h].plus(before.y, high)));
      }
      if (Rows::is_first()) smem.chain_sums[row] = sums[h].of;
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ float left_to_out() const {
    return Cfg::kBf16 && (fits & 2) != 0 ? smem.scales[parity][1].power() : 1.f;
  }
};

}  // namespace omni
