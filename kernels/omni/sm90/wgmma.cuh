// Shared-memory descriptors and the two products of one tile for one consumer warpgroup.
#pragma once

#include "omni/sm90/config.cuh"
#include "omni/sm90/wgmma_table.cuh"
#include "omni/tile.cuh"

namespace omni {

// PTX ISA, wgmma "Matrix descriptor": address and byte offsets in units of 16, swizzle mode 1 = 128 bytes. The stride
// offset is the distance of groups of 8 rows (1024 bytes); the leading offset that of 64-column panels, which only the
// MN-major operand V crosses inside one instruction.
__device__ __forceinline__ u64 wgmma_descriptor(u32 s_address, int panel_bytes) {
  return static_cast<u64>((s_address & 0x3ffff) >> 4) | static_cast<u64>(panel_bytes >> 4) << 16 |
         static_cast<u64>(1024 >> 4) << 32 | static_cast<u64>(1) << 62;
}

// Ties registers to this point of the program: the compiler takes the outputs of a wgmma as ready when it is issued,
// and must neither read them earlier than the wait nor write them later than the fence.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void pin_registers(u32 (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// S = Q K^T, started. q, k: descriptors of the warpgroup's first row and of the K tile.
template <class Cfg, class Scores>
__device__ __forceinline__ void start_scores(Scores& scores, u64 q, u64 k) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Cfg::kHeadDim / 16; ++step) {
    // 32 bytes a step inside the swizzled panel; only the low word of a descriptor changes.
    u64 const q_offset = (step % 4 * 32 + step / 4 * Cfg::kQPanelBytes) >> 4;
    u64 const k_offset = (step % 4 * 32 + step / 4 * Cfg::kKvPanelBytes) >> 4;
    Wgmma<Cfg::kBc, Cfg::kBf16>::scores(scores.x[0], q + q_offset, k + k_offset, step != 0);
  }
  wgmma_commit();
}

// O += P V, started; the caller commits. p: P as pairs, in the order of the score registers, which is the order of A fragments.
template <class Cfg, class Out>
__device__ __forceinline__ void start_values(Out& out, u32 const (&p)[Cfg::kBc / 4], u64 v) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Cfg::kBc / 16; ++step) {
    Wgmma<Cfg::kHeadDim, Cfg::kBf16>::values(out.x[0], p + 4 * step, v + ((step * 16 * Cfg::kRowBytes) >> 4));
  }
}

}  // namespace omni
