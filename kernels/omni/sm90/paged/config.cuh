// The shape of the Hopper kernel that reads pages beside three warpgroups of consumers.
#pragma once

#include "omni/sm90/forward/config.cuh"

namespace omni {

template <class Base>
struct PagedTriple : Base {
  static constexpr bool kScheduler = true;
  static constexpr int kWalkers = 3;
  static_assert(Base::kConsumers == 3 && Base::kPaged && !Base::kKeyByKey, "boxes beside three warpgroups");
};

}  // namespace omni
