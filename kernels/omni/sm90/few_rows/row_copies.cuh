// How rows of keys and values lie in a buffer, where lanes write and read 16 bytes of them:
//
//  keys:   a lane reads of key 8 * i + lane / 4 the columns 64 * h + 16 * (lane % 4) to + 15, for all i and h. They are
//          the k index of four steps of Q K^T, four columns each, and Q lies in the same order.
//  values: of keys 16 * t + 2 * (lane % 4) + {0, 1, 8, 9}, the k index of step t of P V, the columns
//          kHeadDim / 8 * (lane / 4) and those behind it, one for each block of eight columns of O.
//
// Where the copy engine may bring a tile at once, rows lie one behind the other, and some lanes meet others in a bank
// when they read. Rows in pages come by cp.async alone. They lie in the order of the lanes that read them, turned so
// that neither who writes nor who reads meets another in a bank. Either way lanes side by side copy whole lines of 128
// bytes.
#pragma once

#include "omni/sm90/few_rows/config.cuh"

namespace omni {

// A lane copies 16 bytes of a row at a time, all lanes kKeys whole rows.
template <class Cfg>
struct RowCopies {
  static constexpr bool kAtOnce = !Cfg::kPaged;
  static constexpr int kHalves = Cfg::kHeadDim / 64;
  static constexpr int kRow = Cfg::kHeadDim * Cfg::kElement;  // bytes
  static constexpr int kChunks = kRow / 16;
  static constexpr int kKeys = 32 / kChunks;
  static constexpr int kCount = Cfg::kBc / kKeys;
  static_assert(kChunks >= 4 && kChunks <= 16, "a row has 64 to 256 bytes");

  // Of keys: where the lane's share of the first copy goes, and how far from there that of copy j does.
  __device__ __forceinline__ static u32 key_target(int lane) {
    if constexpr (kAtOnce) return 16 * lane;
    int const chunk = lane % kChunks, half = chunk / (4 * Cfg::kElement);
    int const quarter = chunk % (4 * Cfg::kElement) / Cfg::kElement, part = chunk % Cfg::kElement;
    return 512 * (half * Cfg::kElement + part) + 16 * ((4 * (lane / kChunks) + quarter) ^ 4 * turn(half, part));
  }

  __device__ __forceinline__ static u32 key_step(int j) {
    if constexpr (kAtOnce) return 512 * j;
    return 512 * kHalves * Cfg::kElement * (kKeys * j / 8) + 64 * (kKeys * j % 8);
  }

  // Where a lane reads part n of 16 columns of key 8 i + lane / 4.
  __device__ __forceinline__ static u32 key_at(int lane, int i, int half, int n) {
    if constexpr (kAtOnce) return kRow * (8 * i + lane / 4) + 16 * ((4 * half + lane % 4) * Cfg::kElement + n);
    return 512 * ((i * kHalves + half) * Cfg::kElement + n) + 16 * (lane ^ 4 * turn(half, n));
  }

  // Of values: where the lane's share of copy j goes.
  __device__ __forceinline__ static u32 value_target(int lane, int j) {
    if constexpr (kAtOnce) return 16 * lane + 512 * j;
    int const key = lane / kChunks;
    u32 const first = kBlock * (key % 2) + unit(lane % kChunks, key / 2, key % 2);
    return (first ^ 16 * (kKeys * j % 8 / 2)) + 2 * kBlock * (kKeys * j / 8);
  }

  // Where a lane reads of key 16 t + 2 (lane % 4) + {0, 1, 8, 9}[i] what begins at byte `at` of the row.
  __device__ __forceinline__ static u32 value_at(int lane, int t, int i, int at) {
    if constexpr (kAtOnce) return kRow * (16 * t + i / 2 * 8 + i % 2 + 2 * (lane % 4)) + at;
    return kBlock * (4 * t + i) + unit(at / 16, lane % 4, i % 2) + at % 16;
  }

 private:
  static constexpr int kBlock = 4 * kRow;  // bytes of four keys whose chunks lie side by side

  // Of keys: lanes change places, so that both halves of a row, or both parts of 16 columns, go to other banks.
  __device__ __forceinline__ static int turn(int half, int part) { return Cfg::kElement == 1 ? half : part; }

  // Of values: where a chunk of a pair of keys is in their block. Chunks turn the four pairs.
  __device__ __forceinline__ static u32 unit(int chunk, int pair, int odd_key) {
    return 16 * (4 * chunk + (pair ^ chunk / 2 % 4 ^ (kChunks == 4 ? 2 * odd_key : 0)));
  }
};

}  // namespace omni
