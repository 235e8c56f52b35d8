// Shared-memory addresses as the instructions of both pipes take them.
#pragma once

#include "omni/params.cuh"

namespace omni {

__device__ __forceinline__ u32 smem_address(void const* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

}  // namespace omni
