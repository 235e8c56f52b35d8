// The sums of dQ in float32, in the order of accumulators, to the result. A thread block has 64 queries of a head.
#include "omni/backward_params.cuh"
#include "omni/store.cuh"

namespace omni {

struct ConvertParams {
  BackwardParams b;
  float const* dq_sums;  // (batch, q_heads, q_padded / 64, 64 * head_dim rounded up)
};

template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void convert(ConvertParams const& args) {
  BackwardParams const& b = args.b;
  ForwardParams const& p = b.p;
  int const tiles = b.q_padded / 64, used = (p.q_len + 63) / 64;
  int const head = blockIdx.x / used, tile = blockIdx.x - head * used;
  float4 const* const g_sums = reinterpret_cast<float4 const*>(args.dq_sums) +
                               (static_cast<i64>(head) * tiles + tile) * (64 * kHeadDim / 4) + threadIdx.x;
  RegTile<1, kHeadDim> dq;
#pragma unroll
  for (int i = 0; i < kHeadDim / 8; ++i) {
    float4 const four = g_sums[128 * i];
    dq.x[0][4 * i] = four.x;
    dq.x[0][4 * i + 1] = four.y;
    dq.x[0][4 * i + 2] = four.z;
    dq.x[0][4 * i + 3] = four.w;
  }
  unsigned char* const g_head = static_cast<unsigned char*>(b.dq) +
                                2 * (head / p.q_heads * b.dq_strides.batch + head % p.q_heads * b.dq_strides.head);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int const q = 64 * tile + threadIdx.x / 32 * 16 + dq.row(0, h);
    store_row<kBf16>(dq, 0, h, p.scale, g_head + 2 * q * b.dq_strides.token, q < p.q_len ? p.head_dim : 0);
  }
}

}  // namespace omni

static_assert(sizeof(omni::ConvertParams) == OMNI_PARAMS_BYTES, "params.py and attention_bwd_convert.cu disagree");

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_convert(const __grid_constant__ omni::ConvertParams args) {
  omni::convert<OMNI_HEAD_DIM, OMNI_BF16>(args);
}
