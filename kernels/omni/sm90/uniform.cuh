// Values that a whole warp has in common, made known to be so.
#pragma once

#include "omni/params.cuh"

namespace omni {

// Where warps may diverge as far as the compiler knows, wgmma is serialised (C7520), and lanes are made to meet before
// each shuffle. So the bounds of loops and what branches ask must be known to be uniform.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

}  // namespace omni
