// Writes new keys and values into caches of e4m3: value / scale, to nearest.
#include "omni/append.cuh"
#include "omni/fp8.cuh"

namespace omni {

struct Fp8AppendParams : AppendParams {
  KvScales scales;  // of tokens they are written
};

constexpr bool kBf16 = OMNI_BF16;
constexpr float kLargest = 448.f;
constexpr float kLeastNormal = 0.015625f;  // 2^-6; below it numbers are multiples of 2^-9

// The nearest number of e4m3, of two the even one; beyond the largest one that.
__device__ __forceinline__ u32 e4m3_of(float x) {
  u32 const sign = __float_as_uint(x) >> 24 & 0x80u;
  float const magnitude = fabsf(x);
  if (magnitude != magnitude) return sign | 0x7fu;
  float const held = fminf(magnitude, kLargest);
  if (held < kLeastNormal) return sign | static_cast<u32>(rintf(held * 512.f));
  u32 const bits = __float_as_uint(held);  // 20 bits of the fraction go; exponents are counted from 7, not from 127
  return sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3));
}

// What a tensor of one kind, keys or values, takes of a token of a head.
struct Row {
  uint4 const* g_new;  // 8 numbers each
  unsigned char* g_to;
  float* g_scale;  // of the token, or of more; null for `all`
  float all;
  bool of_token;
  int columns;

  __device__ __forceinline__ float largest() const {
    float found = 0.f;
    for (int i = 0; i < columns / 8; ++i) {
      uint4 const eight = g_new[i];
      u32 const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 const two = unpack_pair<kBf16>(pairs[j]);
        found = fmaxf(found, fmaxf(fabsf(two.x), fabsf(two.y)));  // of NaN the other one
      }
    }
    return found;
  }

  // Every thread of a row finds the row's scale; one writes it.
  __device__ __forceinline__ float scale(bool writes) const {
    if (!of_token) return g_scale == nullptr ? all : *g_scale;
    float const most = largest();
    float const found = most > 0.f ? most / kLargest : 1.f;
    if (writes) *g_scale = found;
    return found;
  }

  // Columns 8 * chunk to 8 * chunk + 7.
  __device__ __forceinline__ void write(int chunk) const {
    float const factor = scale(chunk == 0);
    uint4 const eight = g_new[chunk];
    u32 const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
    u32 words[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 const two = unpack_pair<kBf16>(pairs[j]);
      u32 const both = e4m3_of(two.x / factor) | e4m3_of(two.y / factor) << 8;
      words[j / 2] |= both << 16 * (j % 2);
    }
    *reinterpret_cast<uint2*>(g_to + 8 * chunk) = make_uint2(words[0], words[1]);
  }
};

// A thread writes 8 columns of a key and of its value, as far as each is so wide.
__device__ __forceinline__ void append(Fp8AppendParams const& p, Place const& at) {
  auto const write = [&](void const* from, Strides const& from_strides, E4m3Rows const& to, int columns) {
    if (8 * at.chunk >= columns) return;
    uint4 const* const g_new =
        reinterpret_cast<uint4 const*>(Tensor{from, from_strides}.row(at.sequence, at.head, at.token));
    i64 const of_scale = paged_offset(to.scale_strides, at.page, at.row);
    float* const g_scale = to.g_scales == nullptr ? nullptr : const_cast<float*>(to.g_scales) + of_scale;
    Row{g_new, const_cast<unsigned char*>(to.row(at.page, at.row)), g_scale, to.all, to.has_scales_of_tokens(), columns}
        .write(at.chunk);
  };
  KvScales const& scales = p.scales;
  write(
      p.k_new, p.k_new_strides, e4m3_rows(p.k, p.k_strides, scales.k, scales.k_strides, scales.k_factor, at.head),
      p.head_dim);
  write(
      p.v_new, p.v_new_strides, e4m3_rows(p.v, p.v_strides, scales.v, scales.v_strides, scales.v_factor, at.head),
      p.value_dim);
}

}  // namespace omni

static_assert(sizeof(omni::Fp8AppendParams) == OMNI_PARAMS_BYTES, "params.py and cache_append_fp8.cu disagree");

extern "C" __global__ void __launch_bounds__(OMNI_THREADS, 1)
    cache_append_fp8(const __grid_constant__ omni::Fp8AppendParams p) {
  omni::i64 const index = static_cast<omni::i64>(blockIdx.x) * OMNI_THREADS + threadIdx.x;
  omni::at_place(p, index, [&](omni::Place const& at) { omni::append(p, at); });
}
