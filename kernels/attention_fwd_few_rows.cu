// Forward attention of at most 16 rows of heads and tokens, for compute capability 9.0: mma.sync, operands
// straight from the warp's own ring. Keys and values of 16 bits, or of e4m3.
#include "omni/sm90/few_rows/block.cuh"

using Cfg = omni::FewRowsConfig<
    OMNI_HEAD_DIM, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_BLOCKS, OMNI_BF16, OMNI_SOFTCAP, OMNI_PAGE != 0, OMNI_RAGGED,
    OMNI_FP8, OMNI_CACHED, OMNI_ROWS>;
using Smem = omni::FewRowsSmem<Cfg>;
static_assert(sizeof(Cfg::Params) == OMNI_PARAMS_BYTES, "params.py and sm90/forward/pages.cuh disagree");
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "few_rows_spec.py and sm90/few_rows/smem.cuh disagree");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, Cfg::kBlocks)
    attention_fwd_few_rows(const __grid_constant__ Cfg::Params args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  omni::FewRowsBlock<Cfg>(args, *reinterpret_cast<Smem*>(s_memory)).run();
}
