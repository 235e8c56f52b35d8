// Forward attention for compute capability 8.0 and later: mma.sync, ldmatrix, cp.async.
#include "omni/sm80/forward.cuh"
#include "omni/sm80/forward_tiled.cuh"

using Cfg = omni::Sm80Config<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_OUT_COLUMNS, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_SHARE_KV,
    OMNI_SWIZZLE, OMNI_BF16, OMNI_SOFTCAP, OMNI_PAGE, OMNI_RAGGED, OMNI_FP8, OMNI_MMA_ATOM_K>;
using Params = omni::ForwardParamsOf<Cfg::kPaged, Cfg::kRagged, Cfg::kFp8>::Type;
static_assert(sizeof(Params) == OMNI_PARAMS_BYTES, "params.py and params.cuh disagree");

template <class Config>
__device__ __forceinline__ void attend(omni::ForwardParams const& p, unsigned char* s_memory) {
  omni::WorkItem const work = omni::work_item(p, blockIdx.x);
  if constexpr (Config::kTiledHeadDim) {
    omni::TiledForward<Config>(p, work, s_memory).run(work);
  } else {
    omni::Forward<Config>(p, work, s_memory).run(work);
  }
}

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1) attention_fwd_sm80(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  attend<Cfg>(p, s_memory);
}
