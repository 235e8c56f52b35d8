// Forward attention for compute capability 8.0 and later: mma.sync, ldmatrix, cp.async.
#include "omni/sm80/mainloop.cuh"
#include "omni/sm80/mainloop_tiled.cuh"

using Cfg = omni::AttnConfig<OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_SHARE_KV,
                             OMNI_SWIZZLE, OMNI_BF16>;
static_assert(sizeof(omni::AttnParams) == OMNI_PARAMS_BYTES, "launch.py and params.cuh disagree");

template <class Config>
__device__ __forceinline__ void attend(omni::AttnParams const& p, unsigned char* s_memory) {
  omni::WorkItem const work = omni::work_item(p, blockIdx.x);
  if constexpr (Config::kTiledHeadDim) {
    omni::TiledMainloop<Config>(p, work, s_memory).run(work);
  } else {
    omni::Mainloop<Config>(p, work, s_memory).run(work);
  }
}

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1) attention_fwd_sm80(const __grid_constant__ omni::AttnParams p) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  attend<Cfg>(p, s_memory);
}
