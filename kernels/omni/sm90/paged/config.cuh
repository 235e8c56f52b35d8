// The shape of the Hopper kernel that reads pages beside three warpgroups of consumers.
#pragma once

#include "omni/sm90/forward/config.cuh"

namespace omni {

// One warp takes the work items, three load: a single one that did both would keep the consumers waiting, since it looks
// two pages up a tile, one after the other, and asks for one box after the other. Page: as in Sm90Config, whose three
// warpgroups leave no registers for threads that copy.
template <class Base, int Page>
struct PagedTriple : Base {
  static constexpr int kPage = Page;
  static constexpr bool kKeyByKey = Page == 1;
  static constexpr bool kScheduler = true;
  static constexpr int kLoaders = 3;
  static constexpr int kFillers = kLoaders;
  static constexpr int kWalkers = kLoaders;
  // Scores, weights and O of a consumer say whether it can do without a few registers.
  static constexpr bool kSpares = Base::kBc / 2 + Base::kBc / 4 + Base::kValueDim / 2 <= 112;
  static constexpr int kProducerRegisters = kSpares ? 56 : 32;
  static constexpr int kConsumerRegisters = kSpares ? 152 : 160;
  static_assert(Base::kConsumers == 3 && Base::kBc % Page == 0, "pages beside three warpgroups");
};

}  // namespace omni
