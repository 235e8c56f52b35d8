// The shape of the Hopper kernel that reads pages beside three warpgroups of consumers.
#pragma once

#include "omni/sm90/forward/config.cuh"

namespace omni {

// Page: as in Sm90Config, whose three warpgroups leave no registers for threads that copy keys.
template <class Base, int Page>
struct PagedTriple : Base {
  static constexpr int kPage = Page;
  static constexpr bool kKeyByKey = Page == 1;
  static constexpr bool kScheduler = true;
  static constexpr int kLoaders = kKeyByKey ? 3 : 0;
  static constexpr int kFillers = kKeyByKey ? kLoaders : 1;
  static constexpr int kWalkers = 3;
  static constexpr int kProducerRegisters = kKeyByKey ? 56 : 32;
  static constexpr int kConsumerRegisters = kKeyByKey ? 152 : 160;
  static_assert(Base::kConsumers == 3 && Base::kBc % Page == 0, "pages beside three warpgroups");
};

}  // namespace omni
