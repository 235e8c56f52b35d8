// kernels/omni/sm80/ptx.cuh for the host: products.cpp has the layouts. Every address is checked.
#pragma once

#include "omni/address.cuh"

namespace omni {

inline void copy_async(u32 s_target, void const* g_source, int bytes, int size) {
  if (s_target % size || s_target + size > static_cast<u32>(cpu::smem_bytes)) cpu::fail("cp.async: target");
  if (bytes != 0) cpu::check_source(g_source, bytes);
  cpu::Copy const copy{shared_memory + s_target, g_source, bytes, size};
  if (!cpu::late) return copy_now(copy);
  memset(copy.target, 0xff, size);  // nothing to rely on before it is waited for
  cpu::thread->open.push_back(copy);
}

inline void cp_async_16(u32 s_target, void const* g_source, int bytes) { copy_async(s_target, g_source, bytes, 16); }
inline void cp_async_4(u32 s_target, void const* g_source, int bytes) { copy_async(s_target, g_source, bytes, 4); }

inline void cp_async_commit() {
  cpu::thread->groups.push_back(cpu::thread->open);
  cpu::thread->open.clear();
}

template <int kPending>
void cp_async_wait() {
  auto& groups = cpu::thread->groups;
  while (groups.size() > kPending) {
    for (cpu::Copy const& copy : groups.front()) copy_now(copy);
    groups.erase(groups.begin());
  }
}

template <bool kTransposed>
void load_matrices(u32 (&r)[4], u32 s_row) {
  if (s_row % 16 || s_row + 16 > static_cast<u32>(cpu::smem_bytes)) cpu::fail("ldmatrix: address");
  cpu::warp().in[cpu::lane()][0] = s_row;
  cpu::collective([](cpu::Warp& warp) { cpu::load_matrices(warp, kTransposed); });
  memcpy(r, cpu::warp().out[cpu::lane()], 16);
}

inline void ldmatrix_x4(u32 (&r)[4], u32 s_row) { load_matrices<false>(r, s_row); }
inline void ldmatrix_x4_trans(u32 (&r)[4], u32 s_row) { load_matrices<true>(r, s_row); }

template <bool kBf16>
void mma_m16n8k16(float* d, u32 const (&a)[4], u32 b0, u32 b1) {
  u32* const in = cpu::warp().in[cpu::lane()];
  memcpy(in, a, 16);
  in[4] = b0;
  in[5] = b1;
  memcpy(in + 6, d, 16);
  cpu::collective([](cpu::Warp& warp) { cpu::multiply_16(warp, kBf16); });
  memcpy(d, cpu::warp().out[cpu::lane()], 16);
}

template <bool kBf16>
void mma_m16n8k8(float* d, u32 a0, u32 a1, u32 b) {
  u32* const in = cpu::warp().in[cpu::lane()];
  in[0] = a0;
  in[1] = a1;
  in[2] = b;
  memcpy(in + 3, d, 16);
  cpu::collective([](cpu::Warp& warp) { cpu::multiply_8(warp, kBf16); });
  memcpy(d, cpu::warp().out[cpu::lane()], 16);
}

}  // namespace omni
