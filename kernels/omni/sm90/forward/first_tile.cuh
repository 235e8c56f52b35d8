// While the kernel ahead in the stream still runs, what a thread block reads first comes to L2.
#pragma once

#include "omni/sm90/forward/config.cuh"
#include "omni/work.cuh"

namespace omni {

// By threads of the producer's warpgroup that have nothing else to do (beside three warpgroups of consumers they lack
// the registers): Q of the block's first item, K and V of its first tile. None of it is read before the kernel ahead
// has ended, which may still write it; L2 is where both meet.
template <class Cfg>
struct FirstTilePrefetch {
  static constexpr int kFirstThread = 64, kThreads = 64;
  static constexpr int kLine = 128;  // bytes

  ForwardParamsSm90 const& args;

  __device__ __forceinline__ void run() const {
    if (!is_launch_ahead()) return;
    ForwardParams const& p = args.p;
    WorkItem const item = work_item<Cfg::kHeads, Cfg::kPack>(p, blockIdx.x);
    int const heads = Cfg::kPack ? min(p.pack_heads, p.group - item.head % p.group) : Cfg::kHeads;
    int const tokens = Cfg::kPack ? p.pack_tokens : Cfg::kBr;
#pragma unroll 1
    for (int i = 0; i < heads; ++i) {
      prefetch_rows<false>(p.query(), item.batch, item.head + i, item.q0, min(item.q0 + tokens, p.q_len));
    }
    if (item.tiles == 0) return;
    int const first = p.lists.entries[item.first].z, stop = min(first + Cfg::kBc, p.k_len);
    prefetch_rows<false>(p.key(), item.batch, item.head / p.group, first, stop);
    prefetch_rows<true>(p.value(), item.batch, item.head / p.group, first, stop);
  }

 private:
  // Is a launch of this library on the same stream under way? Of other kernels nothing is known: mostly they have
  // ended by now, and a second request for what is loaded anyway would only take time.
  __device__ __forceinline__ bool is_launch_ahead() const {
    return *static_cast<int volatile const*>(args.counter + 2) != 0;
  }

  // Rows `token` to `stop`, as wide as values or as keys.
  template <bool kValues>
  __device__ __forceinline__ void prefetch_rows(Tensor const& tensor, int batch, int head, int token, int stop) const {
    constexpr int kColumns = kValues ? Cfg::kValueDim : Cfg::kHeadDim;
    token += threadIdx.x - kFirstThread;
    unsigned char const* g_row = tensor.row(batch, head, token);
#pragma unroll 1
    for (; token < stop; token += kThreads, g_row += 2 * kThreads * tensor.strides.token) {
#pragma unroll
      for (int byte = 0; byte < 2 * kColumns; byte += kLine) {
        int const columns = kValues ? value_columns<Cfg>(args.p) : args.p.head_dim;
        if (byte < 2 * columns) prefetch_to_l2(g_row + byte);
      }
    }
  }
};

}  // namespace omni
