// dQ for compute capability 9.0, a block of queries a work item, on the forward pass's lists: TMA, mbarrier rings, warp
// specialisation, wgmma. Persistent, deterministic: each sum is made by one warpgroup in the order of the block's
// tiles.
#include "omni/sm90/backward/query_loop.cuh"
#include "omni/sm90/backward/query_producer.cuh"

using Cfg = omni::BackwardConfig<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_BF16, OMNI_SOFTCAP, false, false,
    omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>>;
static_assert(sizeof(omni::BackwardParamsSm90) == OMNI_PARAMS_BYTES, "params.py and sm90/backward/config.cuh disagree");
using Smem = omni::QuerySmem<Cfg>;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "backward_spec.py and sm90/backward/query_smem.cuh disagree");
static_assert(Cfg::kBr == 64 * Cfg::kConsumers, "64 queries a consumer warpgroup");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_bwd_dq_sm90(const __grid_constant__ omni::BackwardParamsSm90 args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  if (threadIdx.x == 0) smem.init_barriers();
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    if (threadIdx.x == 0) omni::QueryProducer<Cfg>(args, smem).run();
  } else {
    omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
    omni::QueryLoop<Cfg>(args, smem).run();
  }
}
