// Who brings keys and values in pages that no box fills beside three warpgroups of consumers: warps with the tasks, the
// barriers and the fences of KeyWarps (key_warps.cuh). A warp has 32 registers here, and has to be done with a tile
// before consumers are, so it takes as few instructions as it can. One multiplication finds the page of a key, and a
// lane reads where two of its rows are at once, before it copies the two ahead of them.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/producer.cuh"
#include "omni/sm90/paged/config.cuh"

namespace omni {

// Division of numbers from 0 to 2^31 - 1 by a number from 1 to 2^31 - 1. The factor is 2^(31 + shift) / divisor, made
// larger by at most 1, and 2^shift at least the divisor: what is too much does not reach the next quotient.
struct ByNumber {
  u32 divisor, factor;
  int shift;

  __device__ __forceinline__ explicit ByNumber(u32 number) : divisor(number), factor((1u << 31) / number), shift(0) {
    u32 rest = (1u << 31) % number;
#pragma unroll 1
    for (; 1u << shift < number; ++shift) {
      rest *= 2;
      factor = 2 * factor + (rest >= number);
      if (rest >= number) rest -= number;
    }
    ++factor;
  }

  __device__ __forceinline__ u32 quotient(u32 n) const { return __umulhi(2 * n, factor) >> shift; }
  __device__ __forceinline__ u32 rest(u32 n) const { return n - quotient(n) * divisor; }
};

template <class Cfg>
struct TripleKeyWarps : Producer<Cfg> {
  using Of = Producer<Cfg>;
  using Smem = typename Of::Smem;
  static constexpr int kKeysWarp = 0, kValuesWarp = 2, kQueriesWarp = 3;  // the scheduler is in another one
  static constexpr int kWords = Cfg::kBc / 32;
  static constexpr int kRows = 4;  // that a warp copies in one instruction
  static constexpr int kGroups = Cfg::kBc / kRows;
  static constexpr int kNone = 1;  // added to addresses of rows that are not anywhere
  static_assert(Cfg::kStages >= 2 && kSmemSpans >= 2, "room for addresses of keys and of values");

  // Where two rows of a lane begin, of neighbouring groups.
  struct alignas(16) Pair {
    i64 row[2];
  };

  ByNumber const by_page;

  __device__ __forceinline__ TripleKeyWarps(ForwardParamsSm90 const& params, Smem& memory)
      : Of(params, memory), by_page(this->pages().size) {}

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

  // The entries of the lane's keys of a tile, which are not looked at before they are needed, a tile later. A lane past
  // the last key gets that one's.
  __device__ __forceinline__ void find(int (&entries)[kWords], Tile const& tile, int sequence) const {
    PageTable const& table = this->pages();
    int const* const g_entries = table.entries + static_cast<i64>(sequence) * table.next;
    int const last = tile.length() - 1;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      entries[w] = g_entries[by_page.quotient(tile.first + min(32 * w + lane_id(), last))];
    }
  }

  // Where a tile's rows begin, for all lanes: row g of each group of four behind that of group g - 1. none: keys that
  // have no page. Returns whether each row is somewhere.
  template <bool kOfKeys>
  __device__ __forceinline__ bool locate(
      i64* s_rows, int const (&entries)[kWords], Tile const& tile, int kv_head, u32 (&none)[kWords]) const {
    PageTable const& table = this->pages();
    Tensor const& pool = kOfKeys ? this->args.p.key() : this->args.p.value();
    i64 const head = reinterpret_cast<i64>(pool.rows(0, kv_head));
    i64* const s_own = s_rows + lane_id() % kRows * kGroups + lane_id() / kRows;
    int const length = tile.length();
    bool whole = true;
    __syncwarp();
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      bool const exists = key < length, found = exists && table.has(entries[w]);
      u32 const page = found ? entries[w] : 0, row = by_page.rest(tile.first + key);
      i64 const at = head + 2 * (page * pool.strides.batch + row * pool.strides.token);
      s_own[w * (32 / kRows)] = at | (found ? 0 : kNone);
      if constexpr (kOfKeys) none[w] = __ballot_sync(0xffffffffu, exists && !found);
      whole = whole && found;
    }
    __syncwarp();
    return __all_sync(0xffffffffu, whole);
  }

  // The lane's 16 bytes in each panel of its row.
  template <int kPanels>
  __device__ __forceinline__ static void copy_row(u32 s_target, i64 row, int (&bytes)[kPanels]) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      void const* const g_source = reinterpret_cast<unsigned char const*>(row) + kPanelRowBytes * panel;
      cp_async_16(s_target + panel * Cfg::kKvPanelBytes, g_source, bytes[panel]);
    }
  }

  // Of tiles of which each row is somewhere.
  template <int kPanels>
  __device__ __forceinline__ static void copy_all(u32 s_even, i64 const* s_rows, int chunk, int (&bytes)[kPanels]) {
    Pair const* const s_pairs = reinterpret_cast<Pair const*>(s_rows);
    Pair next = s_pairs[0];
#pragma unroll
    for (int group = 0; group < kGroups; group += 2) {
      Pair const pair = next;
      if (group + 2 < kGroups) next = s_pairs[group / 2 + 1];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        copy_row<kPanels>(
            (s_even ^ kRows * n % 8 * 16) + (group + n) * kRows * kPanelRowBytes, pair.row[n] + 16 * chunk, bytes);
      }
    }
  }

  // Of tiles with keys that are not anywhere: zeros for these.
  template <int kPanels>
  __device__ __forceinline__ static void copy_some(u32 s_even, i64 const* s_rows, int chunk, int (&bytes)[kPanels]) {
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      i64 const at = load_shared_i64(s_rows + group);
      int some[kPanels];
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) some[panel] = at & kNone ? 0 : bytes[panel];
      u32 const s_target = (s_even ^ kRows * group % 8 * 16) + group * kRows * kPanelRowBytes;
      copy_row<kPanels>(s_target, (at & ~i64{kNone}) + 16 * chunk, some);
    }
  }

  template <int kPanels>
  __device__ __forceinline__ static void copy(u32 s_tile, i64 const* s_rows, int columns, bool whole) {
    int const row = lane_id() / 8, chunk = lane_id() % 8;
    u32 const s_even = s_tile + row * kPanelRowBytes + (chunk ^ row) * 16;
    int bytes[kPanels];
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) bytes[panel] = kPanelColumns * panel + 8 * chunk < columns ? 16 : 0;
    if (whole) {
      copy_all<kPanels>(s_even, s_rows + row * kGroups, chunk, bytes);
    } else {
      copy_some<kPanels>(s_even, s_rows + row * kGroups, chunk, bytes);
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
        bool const whole = locate<kOfKeys>(s_rows, entries, tile, work.kv_head, none);
        if (left > 1) {
          next = copy_of(walk.take(this->args.p.lists));
          find(entries, next, work.mask);
        }
        u64* const full = kOfKeys ? &this->smem.k_full[stage] : &this->smem.v_full[stage];
        mbarrier_wait(
            smem_address(kOfKeys ? &this->smem.k_empty[stage] : &this->smem.v_empty[stage]), ring.parity() ^ 1);
        u32 const s_tile = smem_address(kOfKeys ? this->smem.k[stage] : this->smem.v[stage]);
        int const columns = kOfKeys ? this->args.p.head_dim : value_columns<Cfg>(this->args.p);
        copy<kPanels>(s_tile, s_rows, columns, whole);
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
