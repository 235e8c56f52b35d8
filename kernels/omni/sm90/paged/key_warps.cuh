// Warps that bring keys and values key by key beside two warpgroups of consumers (copying_warps.cuh).
#pragma once

#include "omni/sm90/paged/copying_warps.cuh"

namespace omni {

template <class Cfg>
struct KeyRows : CopiedRows<Cfg> {
  using Base = CopiedRows<Cfg>;
  using Base::kNone, Base::kRows, Base::kWords;
  static constexpr int kAtOnce = 4;  // instructions, as registers allow

  u32 const inverse;  // of the size of pages

  __device__ __forceinline__ KeyRows(ForwardParamsSm90 const& params, typename Base::Smem& memory)
      : Base(params, memory), inverse(~0u / static_cast<u32>(this->pages().size)) {}

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

  template <bool kOfKeys>
  __device__ __forceinline__ bool locate(
      i64* s_rows, int const (&entries)[kWords], Tile const& tile, int kv_head, u32 (&none)[kWords]) const {
    PageTable const& table = this->pages();
    Tensor const& pool = kOfKeys ? this->args.p.key() : this->args.p.value();
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

  template <int kPanels>
  __device__ __forceinline__ static void copy(u32 s_tile, i64 const* s_rows, int columns, bool whole) {
    if (whole) {
      copy_rows<kPanels, true>(s_tile, s_rows, columns);
    } else {
      copy_rows<kPanels, false>(s_tile, s_rows, columns);
    }
  }

 private:
  // kWhole: each row is somewhere.
  template <int kPanels, bool kWhole>
  __device__ __forceinline__ static void copy_rows(u32 s_tile, i64 const* s_rows, int columns) {
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
};

template <class Cfg>
using KeyWarps = CopyingWarps<KeyRows<Cfg>>;

}  // namespace omni
