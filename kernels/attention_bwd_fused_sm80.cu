// All gradients in one kernel for compute capability 8.0 and later (mma.sync, ldmatrix, cp.async), a block of keys a
// thread block. dK and dV are sums in one order; dQ is added by whichever thread block comes first.
#include "omni/sm80/backward_fused.cuh"

constexpr int kScoreBytes = 2 * OMNI_BR * OMNI_BC * OMNI_STAGES;  // dS^T
constexpr int kOwnsKeys = 1;                                      // the part that walks queries, attention_bwd_sm80.cu
using Cfg = omni::BackwardConfig<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, kOwnsKeys, OMNI_BF16,
    OMNI_SMEM_BYTES - kScoreBytes, OMNI_SOFTCAP, OMNI_MMA_ATOM_K>;
using Loop = omni::FusedBackward<Cfg>;
static_assert(sizeof(omni::BackwardParamsWithSums) == OMNI_PARAMS_BYTES, "params.py and dq_sums.cuh disagree");
static_assert(Loop::kBytes == kScoreBytes, "backward_kernel.py");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_bwd_fused_sm80(const __grid_constant__ omni::BackwardParamsWithSums args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  Loop(args, omni::work_item_among(args.b.p, args.b.kv_heads, blockIdx.x), s_memory).run();
}
