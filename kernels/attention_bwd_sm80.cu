// Gradients for compute capability 8.0 and later: mma.sync, ldmatrix, cp.async. One source, two kernels: dK and dV of a
// block of keys (part 1), or dQ of a block of queries (part 2).
#include "omni/sm80/backward.cuh"
#include "omni/sm80/backward_tiled.cuh"

using Cfg = omni::BackwardConfig<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_PART, OMNI_BF16, OMNI_SMEM_BYTES,
    OMNI_SOFTCAP, OMNI_MMA_ATOM_K>;
static_assert(sizeof(omni::BackwardParams) == OMNI_PARAMS_BYTES, "params.py and backward_params.cuh disagree");

template <class Loop>
__device__ __forceinline__ void differentiate(omni::BackwardParams const& params, unsigned char* s_memory) {
  int const heads = Cfg::kOwnsKeys ? params.kv_heads : params.p.q_heads;
  Loop(params, omni::work_item_among(params.p, heads, blockIdx.x), s_memory).run();
}

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, Cfg::kBlocks)
    attention_bwd_sm80(const __grid_constant__ omni::BackwardParams params) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  if constexpr (Cfg::kTiledHeadDim) {
    differentiate<omni::TiledBackward<Cfg>>(params, s_memory);
  } else {
    differentiate<omni::Backward<Cfg>>(params, s_memory);
  }
}
