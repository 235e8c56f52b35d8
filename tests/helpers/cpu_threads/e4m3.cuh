// kernels/omni/sm90/few_rows/e4m3.cuh for the host.
#pragma once

#include "omni/numbers.cuh"
#include "omni/sm80/ptx.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

inline void cvt_f16x4_e4m3x4(u32 four, u32& low, u32& high) {
  float4 const x = cvt_f32x4_e4m3x4(four);
  low = pack_pair<false>(x.x, x.y);
  high = pack_pair<false>(x.z, x.w);
}

inline void cp_async_8(u32 s_target, void const* g_source, int bytes) { copy_async(s_target, g_source, bytes, 8); }

}  // namespace omni
