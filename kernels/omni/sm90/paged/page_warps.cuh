// Who brings pages beside three warpgroups of consumers: a warp the boxes of keys, another one those of values, and a
// thread Q; the scheduler takes the work items. One warp for all of them would look a page of keys up, wait, and ask
// for one box after the other, then the same for values: longer than consumers take for a tile. Who waits for whom:
//
//  these warps: work_full, on which the scheduler arrives, k_empty, v_empty and q_empty, on which consumers arrive.
//  consumers: k_full, v_full and q_full, on which the copy engine arrives for these warps.
//  scheduler: work_empty, on which they arrive beside the consumers, and work_wanted, on which the warp of keys does.
#pragma once

#include "omni/sm90/forward/producer.cuh"

namespace omni {

template <class Cfg>
struct PageWarps : Producer<Cfg> {
  using Of = Producer<Cfg>;
  using Smem = typename Of::Smem;
  static constexpr int kOfKeys = 0, kOfScheduler = 1, kOfValues = 2, kOfQueries = 3;  // warps

  __device__ __forceinline__ PageWarps(ForwardParamsSm90 const& params, Smem& memory) : Of(params, memory) {}

  __device__ __forceinline__ void run(int warp) {
    if (warp == kOfKeys) {
      prefetch_tensormap(&this->args.k_map);
      run_tiles<true>();
    } else if (warp == kOfValues) {
      prefetch_tensormap(&this->args.v_map);
      run_tiles<false>();
    } else if (warp == kOfQueries) {
      if (lane_id() == 0) this->run_for_queries();
    }
  }

 private:
  template <bool kKeys>
  __device__ __forceinline__ void run_tiles() {
    wait_for_kernel_ahead();
#pragma unroll 1
    while (true) {
      this->wait_for_item(this->slot);
      if (this->work(this->slot).head < 0) break;
      typename Of::Walk walk = this->smem.walks[this->slot.stage()];
      int left = this->work(this->slot).tiles;
      if (kKeys && left < Of::kAskAt) ask();
#pragma unroll 1
      for (; left > 0; --left) {
        if (kKeys && left == Of::kAskAt) ask();
        Tile const tile = walk.take(this->args.p.lists);
        if constexpr (kKeys) {
          this->load_k_in_boxes(this->slot, tile);
        } else {
          this->load_v_in_boxes(this->slot, tile);
        }
      }
      release(this->smem.work_empty[this->slot.stage()]);
      this->slot.next();
    }
    let_next_kernel_come();
  }

  __device__ __forceinline__ void ask() const {
    if (this->leads()) mbarrier_arrive(smem_address(&this->smem.work_wanted));
  }
};

}  // namespace omni
