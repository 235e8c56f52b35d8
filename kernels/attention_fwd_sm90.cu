// Forward attention for compute capability 9.0: TMA, mbarrier rings, warp specialisation, wgmma. Persistent: a thread
// block a multiprocessor, or a few, work items handed out longest first.
#include "omni/sm90/forward/converter.cuh"
#include "omni/sm90/forward/first_tile.cuh"
#include "omni/sm90/forward/loop.cuh"
#include "omni/sm90/forward/page_loader.cuh"
#include "omni/sm90/forward/producer.cuh"

using Cfg = omni::Sm90Config<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_Q_SLOTS, OMNI_PING_PONG, OMNI_PACK,
    OMNI_BF16, OMNI_SOFTCAP, OMNI_CACHED, OMNI_PAGE, OMNI_RAGGED, OMNI_CONVERTERS, OMNI_BLOCKS, OMNI_SCHEDULER,
    OMNI_NARROW, omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>>;
using Params = omni::ForwardParamsSm90Of<Cfg::kPaged, Cfg::kRagged, Cfg::kFp8, Cfg::kTails>::Type;
static_assert(sizeof(Params) == OMNI_PARAMS_BYTES, "params.py and sm90/forward/config.cuh disagree");
using Smem = omni::ForwardSmemOf<Cfg>::Type;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "spec.py and sm90/forward/smem.cuh disagree");

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, Cfg::kBlocks)
    attention_fwd_sm90(const __grid_constant__ Params args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  if constexpr (Cfg::kPack) omni::WorkList<Smem>{args, smem}.prefetch_first();
  if (threadIdx.x == 0) smem.init_barriers();
  if constexpr (Cfg::kPack) smem.zero_rows_of_no_token(args.p);
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    if constexpr (Cfg::kApart) {
      if (threadIdx.x == 0) omni::Producer<Cfg>(args, smem).run_for_queries();
      omni::run_finder<Cfg>(args, smem);
    } else if constexpr (Cfg::kLoaders != 0) {
      omni::run_page_loader<Cfg>(args, smem);
    } else {
      bool const produces = Cfg::kPaged ? threadIdx.x < 32 : threadIdx.x == 0;
      if (produces) omni::Producer<Cfg>(args, smem).run();
    }
    if constexpr (Cfg::kScheduler) {
      if constexpr (!Cfg::kCached) {
        if (threadIdx.x >= omni::FirstTilePrefetch<Cfg>::kFirstThread) omni::FirstTilePrefetch<Cfg>{args}.run();
      }
      if (threadIdx.x == 32) omni::Scheduler<Smem>(args, smem).run();
    }
  } else if (Cfg::kApart && warpgroup > Cfg::kConsumers) {
    if constexpr (Cfg::kApartRegisters > Cfg::kEntryRegisters) {
      omni::setmaxnreg_inc<Cfg::kApartRegisters>();
    } else {
      omni::setmaxnreg_dec<Cfg::kApartRegisters>();
    }
    omni::run_page_loader<Cfg>(args, smem);
    omni::run_converter<Cfg>(args, smem);
  } else {
    omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
    omni::ForwardLoop<Cfg>(args, smem, warpgroup - 1).run();
  }
}
