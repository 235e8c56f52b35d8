// kernels/omni/sm90/few_rows/ptx.cuh for the host.
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

inline u32 transpose_8x8(u32 pair) {
  u32 found = 0;
  int const lane = lane_id();
  for (int e = 0; e < 2; ++e) {
    for (int half = 0; half < 2; ++half) {
      u32 const got = __shfl_sync(0xffffffffu, pair, 4 * (2 * (lane % 4) + e) + lane / 8);
      if (half == lane / 4 % 2) found |= (got >> 16 * half & 0xffffu) << 16 * e;
    }
  }
  return found;
}

inline void cp_async_16_once(u32 target, void const* source, int bytes) { cp_async_16(target, source, bytes); }

inline void bulk_load_once(u32 target, void const* source, int bytes, u32 barrier) {
  if (target % 16 || bytes % 16 || target + bytes > static_cast<u32>(cpu::smem_bytes)) cpu::fail("bulk copy: target");
  if (reinterpret_cast<uintptr_t>(source) % 16) cpu::fail("bulk copy: source");
  for (int i = 0; i < bytes; i += 16) cpu::check_source(static_cast<char const*>(source) + i, 16);
  bulk_load(target, source, bytes, barrier);
}

inline bool elect_one() { return lane_id() == 0; }

}  // namespace omni
