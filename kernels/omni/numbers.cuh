// Numbers: pairs of 16-bit values and back, exponentials, the logarithm of a sum of them, and constants that NVRTC
// has no header for.
#pragma once

#include "omni/params.cuh"

namespace omni {

// Up to so many columns of values the weights P go into O += P V as two 16-bit numbers, rounded value and rest: the
// error of so short a row is a matter of luck otherwise, and the second product costs little.
constexpr int kSplitWeightsDim = 32;

__device__ __forceinline__ float neg_inf() { return __int_as_float(0xff800000); }

// Two floats as one register of 16-bit values, `low` in the low half (PTX ISA, cvt: the first source is the high half).
template <bool kBf16>
__device__ __forceinline__ u32 pack_pair(float low, float high) {
  u32 pair;
  if constexpr (kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <bool kBf16>
__device__ __forceinline__ float unpack_half(u32 bits16) {
  if constexpr (kBf16) {
    return __int_as_float(bits16 << 16);
  } else {
    float value;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(bits16));
    return value;
  }
}

// The low and the high value of a pair.
template <bool kBf16>
__device__ __forceinline__ float2 unpack_pair(u32 pair) {
  return make_float2(unpack_half<kBf16>(pair & 0xffffu), unpack_half<kBf16>(pair >> 16));
}

// What rounding two floats to `pair` left, rounded in turn.
template <bool kBf16>
__device__ __forceinline__ u32 pack_rest(float low, float high, u32 pair) {
  float2 const rounded = unpack_pair<kBf16>(pair);
  return pack_pair<kBf16>(low - rounded.x, high - rounded.y);
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float power;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// The sink of a head in base 2; there are sink_logits.
__device__ __forceinline__ float sink_log2(ForwardParams const& p, int head) { return p.sink_logits[head] * kLog2E; }

// Is what is taken off a row's scaled scores so large that its rounding shows? Up to 2^12 it moves a weight of 1 by
// less than 2^-12, which float16 rounds to 1. In rows that are far, row_max is taken off the scores before they are
// scaled, so that the greatest weight is exactly 1. bfloat16 shows nothing of it below 2^15.
template <bool kBf16>
__device__ __forceinline__ bool is_far(float offset) {
  return !kBf16 && fabsf(offset) > 4096.f;
}

// Natural logarithm of a row's sum of exponentials: `sum` of exp2(score * scale_log2 - round(row_max * scale_log2)), or
// of exp2((score - row_max) * scale_log2) where that is far. -inf for a row that saw no key. `residue` is what rounding
// took off the subtrahend.
template <bool kBf16>
__device__ __forceinline__ float log_sum(float row_max, float sum, float scale, float scale_log2) {
  if (sum == 0.f) return neg_inf();
  float const offset = row_max * scale_log2;
  float const residue = is_far<kBf16>(offset) ? 0.f : fmaf(row_max, scale_log2, -offset);
  return fmaf(row_max, scale, fmaf(-residue, kLn2, logf(sum)));
}

}  // namespace omni
