// A scale that all keys, or all values, of a head share, as an operand of the tensor cores: of e4m3 they make float32
// products in place of a conversion and a multiplication an element. s = 2^e f with 1 <= |f| < 2, and f is the sum of
// two float16. An m16n8k16 product has numbers of e4m3 as A, twice along k, and both float16 on two diagonals as B; so
// each lane finds its own numbers times f in D, in their places. Lanes of a quad share a row of A: of keys it is one
// key's, of values one column's, so a NaN goes nowhere where it would not come anyway.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/few_rows/config.cuh"
#include "omni/sm90/few_rows/ptx.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

// In shared memory, of keys or of values, for all warps.
struct HeadScale {
  uint2 diagonals[32];  // B of each lane: of f rounded, and of what is left of it
  float scale;
  int fits;  // 1: all numbers are those that a float32 product gives, rounded to 16 bits; 4: each token has a scale

  // 2^e.
  __device__ __forceinline__ float power() const { return __uint_as_float(__float_as_uint(scale) & 0x7f800000u); }
};

// What a lane needs of it for a tile.
template <bool kBf16>
struct Diagonal {
  uint2 b;
  float power;

  // Four e4m3 of a word times the scale: as bfloat16 without 2^e, which changes no digit of theirs.
  __device__ __forceinline__ void apply(u32 (&pairs)[2], u32 four) const {
    u32 a[4];
    cvt_f16x4_e4m3x4(four, a[0], a[1]);
    a[2] = a[0];
    a[3] = a[1];
    float d[4] = {};
    mma_m16n8k16<false>(d, a, b.x, b.y);
    float const more = kBf16 ? 1.f : power;
    pairs[0] = pack_pair<kBf16>(d[0] * more, d[1] * more);
    pairs[1] = pack_pair<kBf16>(d[2] * more, d[3] * more);
  }

  // Sums of tensor cores need not be rounded as float32 ones are, and f may have digits that two float16 have not: who
  // knows is the hardware. Eight of the 256 bytes a lane; not NaN, which would hide its neighbours.
  __device__ __forceinline__ bool is_right(float scale) const {
    bool right = true;
#pragma unroll
    for (u32 sign = 0; sign < 2; ++sign) {
      u32 const codes = (0x03020100u + 0x04040404u * lane_id()) & (lane_id() == 31 ? 0x00ffffffu : 0xffffffffu);
      u32 const four = codes | sign * 0x80808080u;
      u32 pairs[2];
      apply(pairs, four);
      float4 const x = cvt_f32x4_e4m3x4(four);
      u32 const wanted[2] = {pack_pair<kBf16>(x.x * scale, x.y * scale), pack_pair<kBf16>(x.z * scale, x.w * scale)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float const more = kBf16 ? power : 1.f;
        float2 const found = unpack_pair<kBf16>(pairs[i]), one = unpack_pair<kBf16>(wanted[i]);
        right = right && found.x * more == one.x && found.y * more == one.y;
      }
    }
    return right;
  }
};

// By one warp. of_tokens: each has one; `scale` is any then.
template <bool kBf16>
__device__ __forceinline__ void write_scale(HeadScale& s_scale, float scale, bool of_tokens) {
  constexpr u32 kMost = 40;  // of |e|: further powers of 2 could leave the range of float32
  u32 const exponent = __float_as_uint(scale) & 0x7f800000u;
  float const fraction = __uint_as_float((__float_as_uint(scale) & 0x807fffffu) | 0x3f800000u);
  u32 const first = pack_pair<false>(fraction, fraction);
  float const left = fraction - unpack_pair<false>(first).x;
  // B: k = 2 (lane % 4) and the next one, n = lane / 4.
  u32 const here = lane_id() / 8 == lane_id() % 4 ? (lane_id() & 4 ? 0xffff0000u : 0xffffu) : 0u;
  Diagonal<kBf16> const diagonal{
      make_uint2(first & here, pack_pair<false>(left, left) & here), __uint_as_float(exponent)};
  bool const is_near = exponent >= (127u - kMost) << 23 && exponent <= (127u + kMost) << 23;
  int const fits = __all_sync(0xffffffffu, diagonal.is_right(scale) && is_near && !of_tokens);
  s_scale.diagonals[lane_id()] = diagonal.b;
  if (lane_id() == 0) {
    s_scale.scale = scale;
    s_scale.fits = of_tokens ? 4 : fits;
  }
}

}  // namespace omni
