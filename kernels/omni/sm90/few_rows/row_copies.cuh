// How rows of keys and values lie in a buffer, where lanes write and read 16 bytes of them, a chunk:
//
//  keys:   a lane reads of key 8 * i + lane / 4 the columns 64 * h + 16 * (lane % 4) to + 15, for all i and h. They are
//          the k index of four steps of Q K^T, four columns each, and Q lies in the same order.
//  values: of keys 16 * t + 2 * (lane % 4) + {0, 1, 8, 9}, the k index of step t of P V, the columns
//          kHeadDim / 8 * (lane / 4) and those behind it, one for each block of eight columns of O.
//
// Rows lie one behind the other. Where the copy engine may bring a tile at once, some lanes meet others in a bank when
// they read. Elsewhere rows come by cp.async alone: the chunks of each line of 128 bytes change places, so that neither
// who writes nor who reads meets another in a bank. Either way a line of memory is a line of the buffer: where its
// chunks go apart, cp.async takes up to twice as long.
#pragma once

#include "omni/sm90/few_rows/config.cuh"

namespace omni {

// A lane copies 16 bytes of a row at a time, all lanes kKeys whole rows.
template <class Cfg>
struct RowCopies {
  static constexpr bool kAtOnce = Cfg::kE4m3 && !Cfg::kPaged;
  static constexpr int kHalves = Cfg::kHeadDim / 64;
  static constexpr int kRow = Cfg::kHeadDim * Cfg::kElement;  // bytes
  static constexpr int kChunks = kRow / 16;
  static constexpr int kKeys = 32 / kChunks;
  static constexpr int kCount = Cfg::kBc / kKeys;
  static_assert(kChunks >= 4 && kChunks <= 16, "a row has 64 to 256 bytes");

  // Where the lane's share of a tile begins, and that of copy j, in a buffer at a multiple of 128. ptxas must not split
  // the address into the lane's part and one of the warp in a uniform register: then it takes an odd register for the
  // policy of cp.async, and what it makes is no instruction (NVRTC 12.9 to 13.5). A shuffle and XOR keep it whole.
  __device__ __forceinline__ static u32 first_target(u32 s_elements, int lane) {
    return (s_elements + 16 * lane) ^ turn(lane / kChunks);
  }

  __device__ __forceinline__ static u32 target(u32 s_first, int j) { return (s_first ^ turn(kKeys * j)) + 512 * j; }

  // Where a lane reads part n of 16 columns of key 8 i + lane / 4.
  __device__ __forceinline__ static u32 key_at(int lane, int i, int half, int n) {
    int const key = lane / 4, chunk = (4 * half + lane % 4) * Cfg::kElement + n;
    return 8 * kRow * i + ((kRow * key + 16 * chunk) ^ turn(key));
  }

  // Where a lane reads of key 16 t + 2 (lane % 4) + {0, 1, 8, 9}[i] what begins at byte `at` of the row.
  __device__ __forceinline__ static u32 value_at(int lane, int t, int i, int at) {
    int const key = 2 * (lane % 4) + i % 2;
    return 8 * kRow * (2 * t + i / 2) + ((kRow * key + at) ^ turn(key));
  }

 private:
  // Bits of the address of a chunk that change with its key: those of lanes that read or write at the same time differ.
  // turn(a + b) is turn(a) ^ turn(b) where a and b have no bit in common.
  __device__ __forceinline__ static u32 turn(int key) {
    if constexpr (kAtOnce) return 0;
    if constexpr (kRow == 256) return 16 * ((key ^ key >> 1) & 1) | 16 * (key & 4);
    if constexpr (kRow == 64) return 16 * (key & 6);
    if constexpr (Cfg::kElement == 2) return 16 * (key & 7);
    return 16 * (key & 2) | 64 * ((key ^ key >> 2) & 1);
  }
};

}  // namespace omni
