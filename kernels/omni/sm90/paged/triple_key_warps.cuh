// Who brings keys and values in pages that no box fills beside three warpgroups of consumers: warps with the tasks, the
// barriers and the fences of KeyWarps (key_warps.cuh). A warp has 32 registers here, and has to be done with a tile
// before consumers are, so it takes as few instructions as it can. The rows of a pool are counted by its strides, where
// these allow it: a number of 32 bits then says where a key is, a lane reads four of them at once, and one instruction
// makes an address. Tiles with keys that are not anywhere, and other strides, take addresses of 64 bits.
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

// The rows of a head in a pool, counted: row r of a page is number page * of_page + r, and as many times `bytes` behind
// the first one. of_page: 0 where strides do not allow it.
struct CountedRows {
  u32 of_page, bytes;

  __device__ __forceinline__ CountedRows(Tensor const& pool, PageTable const& table) : of_page(0), bytes(0) {
    constexpr u64 kMost = 1ull << 32;
    u64 const page = static_cast<u64>(pool.strides.batch) / 8, row = static_cast<u64>(pool.strides.token) / 8;
    if (table.size == 1) {
      if (16 * page < kMost) {
        of_page = 1;
        bytes = static_cast<u32>(16 * page);
      }
    } else if (page < kMost && 16 * row < kMost && row != 0) {
      u32 const rows = static_cast<u32>(page) / static_cast<u32>(row);
      if (static_cast<u64>(rows) * row == page && static_cast<u64>(rows) * table.pages + table.size <= kMost) {
        of_page = rows;
        bytes = static_cast<u32>(16 * row);
      }
    }
  }
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
  static_assert(kGroups % 4 == 0, "numbers of rows that are read at once");

  // Numbers of a lane's rows in groups one behind the other.
  struct alignas(16) Numbers {
    u32 row[4];
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

  // Writes the numbers of a tile's rows for all lanes: row g of each group of four behind that of group g - 1. Returns
  // whether each row is somewhere; else what is written is not read.
  __device__ __forceinline__ bool count(
      i64* s_rows, int const (&entries)[kWords], Tile const& tile, CountedRows const& rows) const {
    u32* const s_own = reinterpret_cast<u32*>(s_rows) + lane_id() % kRows * kGroups + lane_id() / kRows;
    bool whole = rows.of_page != 0 && tile.length() >= Cfg::kBc;
    __syncwarp();
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      s_own[w * (32 / kRows)] = entries[w] * rows.of_page + by_page.rest(tile.first + 32 * w + lane_id());
      whole = whole && this->pages().has(entries[w]);
    }
    __syncwarp();
    return __all_sync(0xffffffffu, whole);
  }

  // Where a tile's rows begin, for all lanes. none: keys that have no page.
  __device__ __forceinline__ void locate(
      i64* s_rows, int const (&entries)[kWords], Tile const& tile, Tensor const& pool, i64 head,
      u32 (&none)[kWords]) const {
    __syncwarp();
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      int const key = 32 * w + lane_id();
      bool const exists = key < tile.length(), found = exists && this->pages().has(entries[w]);
      u32 const page = found ? entries[w] : 0, row = by_page.rest(tile.first + key);
      s_rows[key] = head + 2 * (page * pool.strides.batch + row * pool.strides.token) + (found ? 0 : kNone);
      none[w] = __ballot_sync(0xffffffffu, exists && !found);
    }
    __syncwarp();
  }

  // The lane's chunk of a row.
  template <int kPanels>
  __device__ __forceinline__ static void copy_row(u32 s_target, i64 chunk, int const (&bytes)[kPanels]) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      void const* const g_source = reinterpret_cast<unsigned char const*>(chunk) + kPanelRowBytes * panel;
      cp_async_16(s_target + panel * Cfg::kKvPanelBytes, g_source, bytes[panel]);
    }
  }

  // Rows by their numbers. s_even: where the lane's chunk of its row of even groups goes.  chunk: of row 0.
  template <int kPanels>
  __device__ __forceinline__ static void copy_counted(
      u32 s_even, i64 const* s_rows, i64 chunk, u32 row_bytes, int const (&bytes)[kPanels]) {
    Numbers const* const s_numbers = reinterpret_cast<Numbers const*>(s_rows) + lane_id() / 8 * (kGroups / 4);
    Numbers next = s_numbers[0];
#pragma unroll
    for (int group = 0; group < kGroups; group += 4) {
      Numbers const now = next;
      if (group + 4 < kGroups) next = s_numbers[group / 4 + 1];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        u32 const s_target = (s_even ^ kRows * n % 8 * 16) + (group + n) * kRows * kPanelRowBytes;
        copy_row<kPanels>(s_target, chunk + static_cast<u64>(now.row[n]) * row_bytes, bytes);
      }
    }
  }

  // Rows by their addresses.
  template <int kPanels>
  __device__ __forceinline__ static void copy_located(u32 s_even, i64 const* s_rows, int const (&bytes)[kPanels]) {
    int const row = lane_id() / 8, chunk = lane_id() % 8;
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      i64 const at = load_shared_i64(s_rows + group * kRows + row);
      int some[kPanels];
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) some[panel] = at & kNone ? 0 : bytes[panel];
      u32 const s_target = (s_even ^ kRows * group % 8 * 16) + group * kRows * kPanelRowBytes;
      copy_row<kPanels>(s_target, (at & ~i64{kNone}) + 16 * chunk, some);
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

  // Starts the copies of a tile, and has its barrier await them.
  template <bool kOfKeys>
  __device__ __forceinline__ void copy(
      int stage, i64 const* s_rows, i64 head, CountedRows const& counted, bool by_numbers) const {
    constexpr int kPanels = kOfKeys ? Cfg::kPanels : Cfg::kValuePanels;
    int const row = lane_id() / 8, chunk = lane_id() % 8;
    int const columns = kOfKeys ? this->args.p.head_dim : value_columns<Cfg>(this->args.p);
    int bytes[kPanels];
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) bytes[panel] = kPanelColumns * panel + 8 * chunk < columns ? 16 : 0;
    u32 const s_tile = smem_address(kOfKeys ? this->smem.k[stage] : this->smem.v[stage]);
    u32 const s_even = s_tile + row * kPanelRowBytes + (chunk ^ row) * 16;
    if (by_numbers) {
      copy_counted<kPanels>(s_even, s_rows, head + 16 * chunk, counted.bytes, bytes);
    } else {
      copy_located<kPanels>(s_even, s_rows, bytes);
    }
    mbarrier_arrive_when_copied(smem_address(kOfKeys ? &this->smem.k_full[stage] : &this->smem.v_full[stage]));
  }

  template <bool kOfKeys>
  __device__ __forceinline__ void run_tiles() {
    Tensor const& pool = kOfKeys ? this->args.p.key() : this->args.p.value();
    CountedRows counted(pool, this->pages());
    counted.bytes = __shfl_sync(0xffffffffu, counted.bytes, 0);
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
        i64 const head = reinterpret_cast<i64>(pool.rows(0, work.kv_head));
        u32 none[kWords] = {};
        bool const by_numbers = count(s_rows, entries, tile, counted);
        if (!by_numbers) locate(s_rows, entries, tile, pool, head, none);
        if (left > 1) {
          next = copy_of(walk.take(this->args.p.lists));
          find(entries, next, work.mask);
        }
        mbarrier_wait(
            smem_address(kOfKeys ? &this->smem.k_empty[stage] : &this->smem.v_empty[stage]), ring.parity() ^ 1);
        if constexpr (kOfKeys) describe(stage, tile, none);
        copy<kOfKeys>(stage, s_rows, head, counted, by_numbers);
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
