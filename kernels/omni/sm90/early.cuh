// While the kernel ahead in the stream still runs, what a thread block reads first comes to L2.
#pragma once

#include "omni/sm90/config.cuh"
#include "omni/visit.cuh"

namespace omni {

// By threads of the producer's warpgroup that have nothing else to do (beside three warpgroups of consumers they lack the
// registers): Q of the block's first item, K and V of its first tile. None of it is read before the kernel ahead has ended,
// which may still write it; L2 is where both meet.
template <class Cfg>
struct Early {
  static constexpr int kFirstThread = 64, kThreads = 64;
  static constexpr int kLine = 128;  // bytes

  AttnParamsSm90 const& args;

  __device__ __forceinline__ void run() const {
    if (!is_launch_ahead()) return;
    AttnParams const& p = args.p;
    WorkItem const item = work_item<Cfg::kHeads>(p, blockIdx.x);
#pragma unroll 1
    for (int i = 0; i < Cfg::kHeads; ++i) {
      bring(p.q, p.q_strides, item.batch, item.head + i, item.q0, min(item.q0 + Cfg::kBr, p.q_len));
    }
    if (item.first == item.end) return;
    int const k0 = p.entries[item.first].z, stop = min(k0 + Cfg::kBc, p.k_len);
    bring(p.k, p.k_strides, item.batch, item.head / p.group, k0, stop);
    bring(p.v, p.v_strides, item.batch, item.head / p.group, k0, stop);
  }

 private:
  // Is a launch of this library on the same stream under way? Of other kernels nothing is known: mostly they have ended by
  // now, and a second request for what is loaded anyway would only take time.
  __device__ __forceinline__ bool is_launch_ahead() const { return *static_cast<int volatile const*>(args.counter + 2) != 0; }

  __device__ __forceinline__ void bring(
      void const* tensor, i64 const (&strides)[3], int batch, int head, int row, int stop) const {
    row += threadIdx.x - kFirstThread;
    unsigned char const* g_row = static_cast<unsigned char const*>(tensor) + 2 * (batch * strides[0] + head * strides[1] + row * strides[2]);
#pragma unroll 1
    for (; row < stop; row += kThreads, g_row += 2 * kThreads * strides[2]) {
#pragma unroll
      for (int byte = 0; byte < 2 * Cfg::kHeadDim; byte += kLine) {
        if (byte < 2 * args.p.head_dim) prefetch_to_l2(g_row + byte);
      }
    }
  }
};

}  // namespace omni
