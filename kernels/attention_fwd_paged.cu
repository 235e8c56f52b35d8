// Forward attention on keys and values in pages, for compute capability 9.0: three warpgroups of the Hopper kernel's
// consumers, and beside them a warp that brings keys and one that brings values, by boxes of the copy engine where
// these fill pages, else key by key.
#include "omni/sm90/forward/loop.cuh"
#include "omni/sm90/paged/config.cuh"
#include "omni/sm90/paged/page_warps.cuh"
#include "omni/sm90/paged/triple_key_warps.cuh"

static_assert(OMNI_CACHED && !OMNI_PACK && !OMNI_FP8 && !OMNI_NARROW && OMNI_BLOCKS == 1, "what PagedSpec has");
constexpr bool kByKey = OMNI_PAGE == 1;
using Base = omni::Sm90Config<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_Q_SLOTS, OMNI_PING_PONG, OMNI_PACK,
    OMNI_BF16, OMNI_SOFTCAP, OMNI_CACHED, kByKey ? 8 : OMNI_PAGE, OMNI_RAGGED, OMNI_CONVERTERS, OMNI_BLOCKS,
    OMNI_SCHEDULER, OMNI_NARROW, omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>>;
using Cfg = omni::PagedTriple<Base, kByKey>::Type;
using Params = omni::ForwardParamsSm90Of<true, Cfg::kRagged>::Type;
static_assert(sizeof(Params) == OMNI_PARAMS_BYTES, "params.py and sm90/forward/pages.cuh disagree");
using Smem = omni::ForwardSmem<Cfg>;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "spec.py and sm90/forward/smem.cuh disagree");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_fwd_paged(const __grid_constant__ Params args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  if (threadIdx.x == 0) smem.init_barriers();
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    int const warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if constexpr (kByKey) {
      omni::TripleKeyWarps<Cfg>(args, smem).run(warp);
    } else {
      omni::PageWarps<Cfg>(args, smem).run(warp);
    }
    if (threadIdx.x == 32) omni::Scheduler<Smem>(args, smem).run();
  } else {
    omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
    omni::ForwardLoop<Cfg>(args, smem, warpgroup - 1).run();
  }
}
