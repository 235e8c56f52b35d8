// Who brings keys and values in pages that no box fills: a warp the keys, another one the values, and a thread Q; the
// scheduler takes the work items. A warp copies 16 bytes a thread, eight threads a row, to where the copy engine would
// put them. Where rows are it looks up a tile ahead, a lane a key, and writes to shared memory, from where all lanes
// read it. Who waits for whom:
//
//  these warps: work_full, on which the scheduler arrives, k_empty, v_empty and q_empty, on which consumers arrive.
//  consumers: k_full and v_full, on which each thread of a warp arrives when its copies are there, and on k_full the
//    warp once more, which releases what it wrote about the keys; q_full, on which the copy engine arrives. A fence of
//    the consumers' shows copies of threads to wgmma.
//  scheduler: work_empty, on which they arrive beside the consumers, and work_wanted, on which the warp of keys does.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/producer.cuh"
#include "omni/sm90/paged/config.cuh"

namespace omni {

template <class Cfg>
struct KeyWarps : Producer<Cfg> {
  using Of = Producer<Cfg>;
  using Smem = typename Of::Smem;
  static constexpr int kKeysWarp = 0, kValuesWarp = 2, kQueriesWarp = 3;  // the scheduler is in another one
  static constexpr int kWords = Cfg::kBc / 32;
  static constexpr int kRows = 4;                               // that a warp copies in one instruction
  static constexpr int kAtOnce = Cfg::kConsumers == 3 ? 2 : 4;  // instructions, as registers allow
  static constexpr int kNone = 1;                               // added to addresses of rows that are not anywhere
  static_assert(Cfg::kStages >= 2 && kSmemSpans >= 2, "room for addresses of keys and of values");

  u32 const inverse;  // of the size of pages

  __device__ __forceinline__ KeyWarps(ForwardParamsSm90 const& params, Smem& memory)
      : Of(params, memory), inverse(~0u / static_cast<u32>(this->pages().size)) {}

  __device__ __forceinline__ void run(int warp) {
    if (warp == kKeysWarp) {
      run_tiles<true>();
    } else if (warp == kValuesWarp) {
      run_tiles<false>();
    } else if (warp == kQueriesWarp) {
      if (lane_id() == 0) this->run_for_queries();
    }
  }

 private:
  // Field by field: a Tile has padding, which else would be kept in registers.
  __device__ __forceinline__ static Tile copy_of(Tile const& tile) {
    return Tile{tile.packed, tile.payload, tile.first};
  }

  __device__ __forceinline__ typename Of::Walk walk_of() const {
    typename Of::Walk const& s_walk = this->smem.walks[this->slot.stage()];
    typename Of::Walk walk(this->args.p.lists, s_walk.index, 0);
    walk.next = copy_of(s_walk.next);
    return walk;
  }

  // The entry of a key among those of its sequence, and the key's row in that page.
  __device__ __forceinline__ u32 entry_of(u32 key, u32& row) const {
    u32 const size = this->pages().size;
    u32 index = static_cast<u32>(static_cast<u64>(key) * inverse >> 32);  // or one less
    row = key - index * size;
    if (row >= size) {
      ++index;
      row -= size;
    }
    return index;
  }

  // The entries of the lane's keys of a tile, which are not looked at before they are needed, a tile later.
  __device__ __forceinline__ void find(int (&entries)[kWords], Tile const& tile, int sequence) const {
    PageTable const& table = this->pages();
    int const* const g_entries = table.entries + static_cast<i64>(sequence) * table.next;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      u32 row;
      u32 const index = entry_of(tile.first + key, row);
      entries[w] = -1;
      if (key < tile.length()) entries[w] = g_entries[index];
    }
  }

  // Where a tile's rows begin, for all lanes. none: keys that have no page. Returns whether each row is somewhere.
  __device__ __forceinline__ bool locate(
      i64* s_rows, int const (&entries)[kWords], Tile const& tile, Tensor const& pool, int kv_head,
      u32 (&none)[kWords]) const {
    PageTable const& table = this->pages();
    i64 const head = reinterpret_cast<i64>(pool.rows(0, kv_head));
    bool whole = true;
    __syncwarp();
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      bool const exists = key < tile.length(), found = exists && table.has(entries[w]);
      u32 row;
      entry_of(tile.first + key, row);
      i64 const offset = 2 * (entries[w] * pool.strides.batch + static_cast<int>(row) * pool.strides.token);
      s_rows[32 * w + lane_id()] = found ? head + offset : head + kNone;
      none[w] = __ballot_sync(0xffffffffu, exists && !found);
      whole = whole && found;
    }
    __syncwarp();
    return __all_sync(0xffffffffu, whole);
  }

  // kWhole: each row is somewhere.
  template <int kPanels, bool kWhole>
  __device__ __forceinline__ static void copy(u32 s_tile, i64 const* s_rows, int columns) {
    constexpr int kTogether = kWhole ? kAtOnce : 2;
    int const row = lane_id() / 8, chunk = lane_id() % 8;
    u32 const s_even = s_tile + row * kPanelRowBytes + (chunk ^ row) * 16;
#pragma unroll 1
    for (int first = 0; first < Cfg::kBc; first += kRows * kTogether) {
      i64 at[kTogether];
#pragma unroll
      for (int n = 0; n < kTogether; ++n) at[n] = load_shared_i64(s_rows + first + kRows * n + row);
#pragma unroll
      for (int n = 0; n < kTogether; ++n) {
        i64 const g_row = (kWhole ? at[n] : at[n] & ~i64{kNone}) + 16 * chunk;
        u32 const s_target = (s_even ^ kRows * n % 8 * 16) + (first + kRows * n) * kPanelRowBytes;
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          int const bytes = (kWhole || !(at[n] & kNone)) && kPanelColumns * panel + 8 * chunk < columns ? 16 : 0;
          void const* const g_source = reinterpret_cast<unsigned char const*>(g_row) + kPanelRowBytes * panel;
          cp_async_16(s_target + panel * Cfg::kKvPanelBytes, g_source, bytes);
        }
      }
    }
  }

  // Tells consumers about the tile that comes to a stage.
  __device__ __forceinline__ void describe(int stage, Tile const& tile, u32 const (&none)[kWords]) const {
    if (lane_id() != 0) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) this->smem.units_of_no_page(stage)[w] = none[w];
    this->smem.tiles[stage] = tile;
    mbarrier_arrive(smem_address(&this->smem.k_full[stage]));
  }

  template <bool kOfKeys>
  __device__ __forceinline__ void run_tiles() {
    constexpr int kPanels = kOfKeys ? Cfg::kPanels : Cfg::kValuePanels;
    RingIndex<Cfg::kStages> ring;
    i64* const s_rows = reinterpret_cast<i64*>(this->smem.spans[kOfKeys ? 0 : 1][1]);
    wait_for_kernel_ahead();
#pragma unroll 1
    while (true) {
      this->wait_for_item(this->slot);
      WorkSlot const& work = this->work(this->slot);
      if (work.head < 0) break;
      typename Of::Walk walk = walk_of();
      int left = work.tiles;
      if (kOfKeys && left < Of::kAskAt) ask();
      Tile next{};
      int entries[kWords];
      if (left != 0) {
        next = copy_of(walk.take(this->args.p.lists));
        find(entries, next, work.mask);
      }
#pragma unroll 1
      for (; left > 0; --left) {
        if (kOfKeys && left == Of::kAskAt) ask();
        Tile const tile = copy_of(next);
        int const stage = ring.stage();
        u32 none[kWords];
        bool const whole =
            locate(s_rows, entries, tile, kOfKeys ? this->args.p.key() : this->args.p.value(), work.kv_head, none);
        if (left > 1) {
          next = copy_of(walk.take(this->args.p.lists));
          find(entries, next, work.mask);
        }
        u64* const full = kOfKeys ? &this->smem.k_full[stage] : &this->smem.v_full[stage];
        mbarrier_wait(
            smem_address(kOfKeys ? &this->smem.k_empty[stage] : &this->smem.v_empty[stage]), ring.parity() ^ 1);
        u32 const s_tile = smem_address(kOfKeys ? this->smem.k[stage] : this->smem.v[stage]);
        int const columns = kOfKeys ? this->args.p.head_dim : value_columns<Cfg>(this->args.p);
        if (whole) {
          copy<kPanels, true>(s_tile, s_rows, columns);
        } else {
          copy<kPanels, false>(s_tile, s_rows, columns);
        }
        mbarrier_arrive_when_copied(smem_address(full));
        if constexpr (kOfKeys) describe(stage, tile, none);
        ring.next();
      }
      release(this->smem.work_empty[this->slot.stage()]);
      this->slot.next();
    }
    let_next_kernel_come();
  }

  __device__ __forceinline__ void ask() const {
    if (this->leads()) mbarrier_arrive(smem_address(&this->smem.work_wanted));
  }
};

}  // namespace omni
