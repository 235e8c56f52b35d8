// Elements in a warp's ring as operands of mma.sync: 16-bit numbers as they are, e4m3 as the numbers that they stand
// for, times their scale in float32 and rounded once; by the tensor cores where the head has one scale that fits.
#pragma once

#include "omni/sm90/few_rows/smem.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

// The B fragment of one step: k indices 2 c, 2 c + 1 and 2 c + 8, 2 c + 9 of a column, c = lane % 4.
struct BFragment {
  u32 low, high;
};

__device__ __forceinline__ u32 word_of(uint4 const& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Of keys: step `step` of four, by what the lane has of 16 columns of a key. kFits: the head's scale does.
template <class Cfg, bool kFits>
__device__ __forceinline__ BFragment
key_fragment(uint4 const (&share)[Cfg::kElement], int step, Diagonal<Cfg::kBf16> const& of_head, float scale) {
  if constexpr (kFits) {
    u32 pairs[2];
    of_head.apply(pairs, word_of(share[0], step));
    return {pairs[0], pairs[1]};
  } else if constexpr (Cfg::kE4m3) {
    float4 const four = cvt_f32x4_e4m3x4(word_of(share[0], step));
    return {
        scaled_pair<Cfg::kBf16>(make_float2(four.x, four.y), scale),
        scaled_pair<Cfg::kBf16>(make_float2(four.z, four.w), scale)};
  } else {
    return {word_of(share[step / 2], step % 2 * 2), word_of(share[step / 2], step % 2 * 2 + 1)};
  }
}

// Of values: word `word` of what the lane has of keys 2 c and 2 c + 1, which hold 4 / kElement columns each, as the
// halves of B fragments of as many blocks of eight columns.
template <class Cfg, bool kFits>
__device__ __forceinline__ void value_halves(
    u32 (&halves)[4 / Cfg::kElement], u32 even, u32 odd, Diagonal<Cfg::kBf16> const& of_head, float2 const& scales) {
  if constexpr (kFits) {
    u32 lower[2], upper[2];
    of_head.apply(lower, __byte_perm(even, odd, 0x5140));
    of_head.apply(upper, __byte_perm(even, odd, 0x7362));
    halves[0] = lower[0];
    halves[1] = lower[1];
    halves[2] = upper[0];
    halves[3] = upper[1];
  } else if constexpr (Cfg::kE4m3) {
    float4 const lower = cvt_f32x4_e4m3x4(__byte_perm(even, odd, 0x5140));
    float4 const upper = cvt_f32x4_e4m3x4(__byte_perm(even, odd, 0x7362));
    halves[0] = pack_pair<Cfg::kBf16>(lower.x * scales.x, lower.y * scales.y);
    halves[1] = pack_pair<Cfg::kBf16>(lower.z * scales.x, lower.w * scales.y);
    halves[2] = pack_pair<Cfg::kBf16>(upper.x * scales.x, upper.y * scales.y);
    halves[3] = pack_pair<Cfg::kBf16>(upper.z * scales.x, upper.w * scales.y);
  } else {
    halves[0] = __byte_perm(even, odd, 0x5410);
    halves[1] = __byte_perm(even, odd, 0x7632);
  }
}

}  // namespace omni
