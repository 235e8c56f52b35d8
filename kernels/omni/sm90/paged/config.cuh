// The shapes of the Hopper kernels that read pages by warps with a task each, beside two or three warpgroups of
// consumers.
#pragma once

#include "omni/sm90/forward/config.cuh"

namespace omni {

// Key by key (key_warps.cuh, triple_key_warps.cuh). One warp brings all keys of a tile, and one all values.
template <class Base>
struct KeyByKey : Base {
  static constexpr bool kScheduler = true, kKeyByKey = true;
  static constexpr int kPage = 1, kLoaders = 1, kFillers = 1, kWalkers = 3;
  static constexpr int kProducerRegisters = Base::kConsumers == 3 ? 32 : 56;
  static constexpr int kConsumerRegisters = Base::kConsumers == 3 ? 160 : 224;
  static_assert(Base::kConsumers > 1 && Base::kPaged && !Base::kFp8, "keys of 16 bits beside several warpgroups");
  static_assert(
      kProducerRegisters + Base::kConsumers * kConsumerRegisters <= Base::kThreads / 128 * Base::kEntryRegisters,
      "who asks for more registers than the block got at entry waits for ever");
};

// Beside three warpgroups, by boxes or key by key.
template <class Base, bool kByKey>
struct PagedTriple : Base {
  using Type = PagedTriple;
  static constexpr bool kScheduler = true;
  static constexpr int kWalkers = 3;
  static_assert(Base::kConsumers == 3 && Base::kPaged && !Base::kKeyByKey, "boxes beside three warpgroups");
};

template <class Base>
struct PagedTriple<Base, true> {
  using Type = KeyByKey<Base>;
};

// Beside two, which boxes fill as they do other kernels'.
template <class Base, bool kByKey = Base::kKeyByKey>
struct PagedDouble {
  using Type = Base;
};

template <class Base>
struct PagedDouble<Base, true> {
  using Type = KeyByKey<Base>;
};

}  // namespace omni
