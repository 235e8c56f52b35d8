// Caches of e4m3: an element stands for its number times a scale, a float32 product, rounded once to 16 bits. Who loads
// a tile does that, and tiles in shared memory are those of a cache that holds these 16-bit numbers.
#pragma once

#include "omni/ragged.cuh"

namespace omni {

// Of keys and of values: one scale for all, for each key head, or for each token and head. Along an axis that shares
// one the stride is 0. The batch is that of the pools: pages, or sequences.
struct KvScales {
  float const* k;  // null where k_factor is that of all
  float const* v;
  Strides k_strides, v_strides;
  float k_factor, v_factor;
};

struct Fp8Params : RaggedParams {
  KvScales scales;
};

template <bool kPaged, bool kRagged>
struct ForwardParamsOf<kPaged, kRagged, true> {
  using Type = Fp8Params;
};

// The keys or the values of a head of e4m3 pools, and their scales.
struct E4m3Rows {
  unsigned char const* g_head;  // the first key in page 0
  Strides const& strides;
  float const* g_scales;  // that of the same key, or null
  Strides const& scale_strides;
  float all;

  __device__ __forceinline__ unsigned char const* row(int page, int row) const {
    return g_head + paged_offset(strides, page, row);
  }

  // Else one scale serves all keys of the head.
  __device__ __forceinline__ bool has_scales_of_tokens() const {
    return g_scales != nullptr && (scale_strides.batch | scale_strides.token) != 0;
  }

  __device__ __forceinline__ float scale(int page, int row) const {
    return g_scales == nullptr ? all : g_scales[paged_offset(scale_strides, page, row)];
  }
};

__device__ __forceinline__ E4m3Rows e4m3_rows(
    void const* data, Strides const& strides, float const* scales, Strides const& of_scales, float all, int head) {
  return E4m3Rows{
      static_cast<unsigned char const*>(data) + head * strides.head, strides,
      scales == nullptr ? nullptr : scales + head * of_scales.head, of_scales, all};
}

__device__ __forceinline__ E4m3Rows e4m3_keys(ForwardParams const& p, KvScales const& scales, int kv_head) {
  return e4m3_rows(p.k, p.k_strides, scales.k, scales.k_strides, scales.k_factor, kv_head);
}

__device__ __forceinline__ E4m3Rows e4m3_values(ForwardParams const& p, KvScales const& scales, int kv_head) {
  return e4m3_rows(p.v, p.v_strides, scales.v, scales.v_strides, scales.v_factor, kv_head);
}

// Where a key of a sequence is: its page and its row there, or without pages the sequence and the key. False: nowhere.
template <bool kPaged>
__device__ __forceinline__ bool find_key(PageTable const& table, int sequence, int key, int& page, int& row) {
  if constexpr (kPaged) {
    page = table.page_of(sequence, key, row);
    return page != table.pages;
  }
  page = sequence;
  row = key;
  return true;
}

// The numbers of bytes 0 and 1 of a word, or of 2 and 3, without an instruction that devices before sm_89 lack: as
// float16 the bits of a byte are its number times 2^-8, subnormal ones too. NaN, all bits of a magnitude, is what
// carries into the next bit; it gets the exponent of NaN.
template <bool kUpper>
__device__ __forceinline__ float2 e4m3_numbers(u32 four) {
  u32 const bytes = __byte_perm(four, 0, kUpper ? 0x3424 : 0x1404);  // each in the upper half of 16 bits
  u32 const magnitudes = bytes & 0x7f007f00u;
  u32 const nan = (magnitudes + 0x01000100u) & 0x80008000u;
  float2 const two = unpack_pair<false>((bytes & 0x80008000u) | magnitudes >> 1 | nan >> 1);
  return make_float2(two.x * 256.f, two.y * 256.f);
}

template <bool kBf16>
__device__ __forceinline__ u32 scaled_pair(float2 numbers, float scale) {
  return pack_pair<kBf16>(numbers.x * scale, numbers.y * scale);
}

// Eight elements as eight 16-bit numbers.
template <bool kBf16>
__device__ __forceinline__ uint4 dequantised(uint2 eight, float scale) {
  return make_uint4(
      scaled_pair<kBf16>(e4m3_numbers<false>(eight.x), scale), scaled_pair<kBf16>(e4m3_numbers<true>(eight.x), scale),
      scaled_pair<kBf16>(e4m3_numbers<false>(eight.y), scale), scaled_pair<kBf16>(e4m3_numbers<true>(eight.y), scale));
}

}  // namespace omni
