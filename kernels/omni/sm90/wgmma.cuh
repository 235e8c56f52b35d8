// Shared-memory descriptors and the two products of one tile for one consumer warpgroup.
#pragma once

#include "omni/sm90/config.cuh"
#include "omni/sm90/wgmma_table.cuh"
#include "omni/tile.cuh"

namespace omni {

// The low word of a descriptor (PTX ISA, wgmma "Matrix descriptor"), the only one that differs between tiles: address and
// leading offset in units of 16 bytes. The leading offset is the distance of 64-column panels, which only the MN-major
// operand V crosses inside one instruction. Uniform, and seen to be: steps of it are then worked out once a warp.
__device__ __forceinline__ u32 descriptor_word(u32 s_address, int panel_bytes) {
  return __shfl_sync(0xffffffffu, (s_address & 0x3ffff) >> 4 | static_cast<u32>(panel_bytes >> 4) << 16, 0);
}

// The whole descriptor, `bytes` further on. High word: groups of 8 rows are 1024 bytes apart, swizzle of 128 bytes.
__device__ __forceinline__ u64 descriptor(u32 word, int bytes) {
  return static_cast<u64>((1024 >> 4) | 1u << 30) << 32 | (word + (bytes >> 4));
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

// S = Q K^T, started. q, k: words of the warpgroup's first row of Q and of the K tile.
template <class Cfg, class Scores>
__device__ __forceinline__ void start_scores(Scores& scores, u32 q, u32 k) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Cfg::kHeadDim / 16; ++step) {
    // 32 bytes a step inside the swizzled panel.
    int const in_panel = step % 4 * 32;
    u64 const a = descriptor(q, in_panel + step / 4 * Cfg::kQPanelBytes);
    u64 const b = descriptor(k, in_panel + step / 4 * Cfg::kKvPanelBytes);
    Wgmma<Cfg::kBc, Cfg::kBf16>::scores(scores.x[0], a, b, step != 0);
  }
  wgmma_commit();
}

// O += P V, started, between the caller's fence and commit. p: P as pairs, in the order of the score registers, which is
// the order of A fragments; v: the word of the V tile.
template <class Cfg, class Out>
__device__ __forceinline__ void start_values(Out& out, u32 const (&p)[Cfg::kBc / 4], u32 v) {
#pragma unroll
  for (int step = 0; step < Cfg::kBc / 16; ++step) {
    Wgmma<Cfg::kHeadDim, Cfg::kBf16>::values(out.x[0], p + 4 * step, descriptor(v, step * 16 * Cfg::kRowBytes));
  }
}

}  // namespace omni
