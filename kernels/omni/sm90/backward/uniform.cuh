// Values that a whole warp has in common, made known to be so.
#pragma once

#include "omni/params.cuh"

namespace omni {

// The bounds of loops must be known to be uniform: wgmma in a path that could diverge is serialised (C7520).
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

}  // namespace omni
