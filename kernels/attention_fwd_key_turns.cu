// Forward attention of up to 64 rows of heads and tokens of a key head in one tile, for compute capability 9.0: two
// warpgroups of the Hopper kernel's consumers take the tiles of keys in turn.
#include "omni/sm90/forward/first_tile.cuh"
#include "omni/sm90/forward/page_loader.cuh"
#include "omni/sm90/key_turns/loop.cuh"
#include "omni/sm90/paged/key_warps.cuh"

static_assert(OMNI_PACK && !OMNI_FP8 && !OMNI_NARROW && OMNI_BLOCKS == 1, "what AttnSpec has of packed tiles");
using Base = omni::Sm90Config<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_Q_SLOTS, OMNI_PING_PONG, false,
    OMNI_BF16, OMNI_SOFTCAP, OMNI_CACHED, OMNI_PAGE, OMNI_RAGGED, OMNI_CONVERTERS, OMNI_BLOCKS, OMNI_SCHEDULER,
    OMNI_NARROW, omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>>;
using Cfg = omni::KeyTurns<omni::PagedDouble<Base>::Type>;
using Params = omni::ForwardParamsSm90Of<Cfg::kPaged, Cfg::kRagged>::Type;
static_assert(sizeof(Params) == OMNI_PARAMS_BYTES, "params.py and sm90/forward/config.cuh disagree");
using Smem = omni::KeyTurnsSmem<Cfg>;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "spec.py and sm90/key_turns/config.cuh disagree");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_fwd_key_turns(const __grid_constant__ Params args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  omni::WorkList<Smem>{args, smem}.prefetch_first();
  if (threadIdx.x == 0) smem.init_barriers();
  smem.zero_rows_of_no_token(args.p);
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    if constexpr (Cfg::kKeyByKey) {
      omni::KeyWarps<Cfg>(args, smem).run(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0));
    } else if constexpr (Cfg::kLoaders != 0) {
      omni::run_page_loader<Cfg>(args, smem);
    } else if (threadIdx.x == 0) {
      omni::Producer<Cfg>(args, smem).run();
    }
    if constexpr (!Cfg::kCached) {
      if (threadIdx.x >= omni::FirstTilePrefetch<Cfg>::kFirstThread) omni::FirstTilePrefetch<Cfg>{args}.run();
    }
    if (threadIdx.x == 32) omni::Scheduler<Smem>(args, smem).run();
  } else {
    omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
    omni::KeyTurnsLoop<Cfg>(args, smem, warpgroup - 1).run();
  }
}
