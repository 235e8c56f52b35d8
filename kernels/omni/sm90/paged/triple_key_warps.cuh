// Warps that bring keys and values key by key beside three warpgroups of consumers (copying_warps.cuh). A warp has 32
// registers here, and has to be done with a tile before consumers are, so it takes as few instructions as it can. One
// multiplication finds the page of a key, and a lane reads where two of its rows are at once, before it copies the two
// ahead of them.
#pragma once

#include "omni/sm90/paged/copying_warps.cuh"

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
struct TripleKeyRows : CopiedRows<Cfg> {
  using Base = CopiedRows<Cfg>;
  using Base::kNone, Base::kRows, Base::kWords;
  static constexpr int kGroups = Cfg::kBc / kRows;

  // Where two rows of a lane begin, of neighbouring groups.
  struct alignas(16) Pair {
    i64 row[2];
  };

  ByNumber const by_page;

  __device__ __forceinline__ TripleKeyRows(ForwardParamsSm90 const& params, typename Base::Smem& memory)
      : Base(params, memory), by_page(this->pages().size) {}

  // A lane past the last key gets that one's entry.
  __device__ __forceinline__ void find(int (&entries)[kWords], Tile const& tile, int sequence) const {
    PageTable const& table = this->pages();
    int const* const g_entries = table.entries + static_cast<i64>(sequence) * table.next;
    int const last = tile.length() - 1;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      entries[w] = g_entries[by_page.quotient(tile.first + min(32 * w + lane_id(), last))];
    }
  }

  // Row g of each group of four lies behind that of group g - 1.
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

 private:
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
};

template <class Cfg>
using TripleKeyWarps = CopyingWarps<TripleKeyRows<Cfg>>;

}  // namespace omni
