// All gradients in one kernel for compute capability 9.0, a block of keys a work item. dK and dV are sums in one order;
// dQ is added by whichever thread block comes first, or as part "ordered" in one order, too. Variants of either make dQ
// of the sums themselves.
#include "omni/sm90/backward/background.cuh"
#include "omni/sm90/backward/finish.cuh"
#include "omni/sm90/backward/fused_apart.cuh"
#include "omni/sm90/backward/key_producer.cuh"
#include "omni/sm90/backward/rows_ahead.cuh"
#include "omni/sm90/backward/tickets.cuh"

using Cfg = omni::BackwardConfig<
    OMNI_HEAD_DIM, OMNI_VALUE_DIM, OMNI_BR, OMNI_BC, OMNI_STAGES, OMNI_WARPS, OMNI_BF16, OMNI_SOFTCAP, true,
    OMNI_ORDERED, omni::WgmmaAtom<OMNI_SCORES_ATOM_N, OMNI_SUMS_ATOM_N>, OMNI_FINISHES, OMNI_PREPARES>;
static_assert(sizeof(omni::BackwardParamsSm90) == OMNI_PARAMS_BYTES, "params.py and sm90/backward/config.cuh disagree");
using Smem = omni::KeySmem<Cfg>;
static_assert(sizeof(Smem) <= OMNI_SMEM_BYTES, "backward_spec.py and sm90/backward/key_smem.cuh disagree");
static_assert(!Smem::kRoles && Cfg::kBc == 64 * Cfg::kConsumers, "64 keys a consumer warpgroup");

template <class Cfg>
__device__ __forceinline__ void consume(omni::BackwardParamsSm90 const& args, omni::KeySmem<Cfg>& smem, int warpgroup) {
  if constexpr (Cfg::kApart) {
    if (warpgroup > Cfg::kConsumers) {
      omni::setmaxnreg_dec<Cfg::kApartRegisters>();
      return omni::QueryGradientLoop<Cfg>(smem).run();
    }
  }
  omni::setmaxnreg_inc<Cfg::kConsumerRegisters>();
  if constexpr (Cfg::kPrepares) omni::make_first_rows<Cfg>(args, warpgroup - 1);
  omni::ConsumerOf<Cfg>(args, smem).run();
  if constexpr (Cfg::kBackground) {
    constexpr int kPieces = (Cfg::kHeadDim + 31) / 32;  // there are registers for all of a row
    omni::finish_in_background<Cfg, kPieces>(args, omni::thread_index() / 32 % 8 * 4);
  }
}

extern "C" __global__ void __launch_bounds__(Cfg::kThreads, 1)
    attention_bwd_sm90(const __grid_constant__ omni::BackwardParamsSm90 args) {
  extern __shared__ __align__(1024) unsigned char s_memory[];
  auto& smem = *reinterpret_cast<Smem*>(s_memory);
  if (threadIdx.x == 0) smem.init_barriers();
  __syncthreads();
  // Uniform over the warp, and known to be: wgmma must be executed convergently.
  int const warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    omni::setmaxnreg_dec<Cfg::kProducerRegisters>();
    if constexpr (Cfg::kFinishes) {  // first here: behind the producer it would take registers that there are not
      if (omni::uniform(omni::thread_index() / 32) == 1 + Smem::kBuffers) return omni::finish_sums<Cfg>(args, smem);
    }
    if constexpr (Cfg::kBackground) {
      if (omni::uniform(omni::thread_index() / 32) == 1 + Smem::kBuffers) {
        omni::wait_for_kernel_ahead();
        if constexpr (Cfg::kPrepares) omni::make_rows_ahead<Cfg>(args);
        return omni::finish_in_background<Cfg, 1>(args, 0);
      }
    }
    if (omni::thread_index() == 0) omni::KeyProducer<Cfg>(args, smem).run();
    if constexpr (Smem::kStaged) {
      int const buffer = omni::thread_index() / 32 - 1;  // read anew: kept, it would be a register of the producer's
      bool const is_first = omni::thread_index() % 32 == 0;
      if (is_first && buffer >= 0 && buffer < Smem::kBuffers) {
        if constexpr (Cfg::kFinishes) {
          omni::OrderedAdder<Cfg>(args, smem).run();
        } else if constexpr (Cfg::kTickets) {
          omni::add_by_tickets<Cfg>(args, smem, buffer);
        } else if constexpr (Cfg::kBackground) {
          omni::BackgroundAdder<Cfg>(args, smem).run();
        } else {
          omni::add_tiles<Cfg>(args, smem, buffer);
        }
      }
    }
  } else {
    consume<Cfg>(args, smem, warpgroup);
  }
}
