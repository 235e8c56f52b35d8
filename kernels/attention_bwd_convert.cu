// The sums of dQ in float32, in the order of accumulators, to the result. A thread block has 64 queries of a head.
#include "omni/dq_sums.cuh"
#include "omni/store.cuh"

namespace omni {

template <int kHeadDim, bool kBf16>
__device__ __forceinline__ void convert(BackwardParamsWithSums const& args) {
  BackwardParams const& b = args.b;
  ForwardParams const& p = b.p;
  int const tiles = b.q_padded / kSumRows, used = (p.q_len + kSumRows - 1) / kSumRows;
  int const head = blockIdx.x / used, tile = blockIdx.x - head * used, warp = threadIdx.x / 32;
  float const* const g_sums = args.dq_sums + (static_cast<i64>(head) * tiles + tile) * (kSumRows * kHeadDim);
  RegTile<1, kHeadDim> dq;
#pragma unroll
  for (int i = 0; i < kHeadDim / 8; ++i) read_sums(&dq.x[0][4 * i], g_sums + sums_block(warp, i));
  unsigned char* const g_head = static_cast<unsigned char*>(b.dq) +
                                2 * (head / p.q_heads * b.dq_strides.batch + head % p.q_heads * b.dq_strides.head);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int const q = kSumRows * tile + 16 * warp + dq.row(0, h);
    store_row<kBf16>(dq, 0, h, p.scale, g_head + 2 * q * b.dq_strides.token, q < p.q_len ? p.head_dim : 0);
  }
}

}  // namespace omni

static_assert(sizeof(omni::BackwardParamsWithSums) == OMNI_PARAMS_BYTES, "params.py and dq_sums.cuh disagree");

extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_convert(const __grid_constant__ omni::BackwardParamsWithSums args) {
  omni::convert<OMNI_HEAD_DIM, OMNI_BF16>(args);
}
