// dK and dV for compute capability 9.0, a block of keys a work item: TMA, mbarrier rings, warp specialisation, wgmma.
// Persistent, deterministic: each sum is made by one warpgroup in the order of the block's tiles.
#include "omni/sm90/backward/key_loop.cuh"
#include "omni/sm90/backward/key_producer.cuh"

using Cfg = omni::BackwardConfig<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_BF16, OMNI_SOFTCAP, false, false,
    omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>>;
static_assert(sizeof(omni::BackwardParamsSm90) == OMNI_PARAMS_BYTES, "params.py and sm90/backward/config.cuh disagree");
using Smem = omni::KeySmem<Cfg>;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "backward_spec.py and sm90/backward/key_smem.cuh disagree");
static_assert(
    Smem::kRoles ? Cfg::kConsumers == 2 && Cfg::kBc == 64 : Cfg::kBc == 64 * Cfg::kConsumers,
    "64 keys a consumer warpgroup, or a role a warpgroup");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_bwd_dkdv_sm90(const __grid_constant__ omni::BackwardParamsSm90 args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  if (threadIdx.x == 0) smem.init_barriers();
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    if (threadIdx.x == 0) omni::KeyProducer<Cfg>(args, smem).run();
    return;
  }
  omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
  if constexpr (!Smem::kRoles) {
    omni::KeyLoop<Cfg>(args, smem).run();
  } else if (warpgroup == 1) {
    omni::ValueRole<Cfg>(args, smem).run();
  } else {
    omni::KeyRole<Cfg>(args, smem).run();
  }
}
