// kernels/omni/sm80/ptx.cuh for the host: the layouts are those of the PTX ISA, "Matrix fragments for mma.m16n8k16" and
// "ldmatrix". Every address is checked.
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
  cpu::collective([](cpu::Warp& warp) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        unsigned short two[2];
        for (int e = 0; e < 2; ++e) {
          int const along = lane / 4, across = 2 * (lane % 4) + e;
          u32 const row = warp.in[8 * matrix + (kTransposed ? across : along)][0];
          memcpy(&two[e], shared_memory + row + 2 * (kTransposed ? along : across), 2);
        }
        warp.out[lane][matrix] = two[0] | static_cast<u32>(two[1]) << 16;
      }
    }
  });
  memcpy(r, cpu::warp().out[cpu::lane()], 16);
}

inline void ldmatrix_x4(u32 (&r)[4], u32 s_row) { load_matrices<false>(r, s_row); }
inline void ldmatrix_x4_trans(u32 (&r)[4], u32 s_row) { load_matrices<true>(r, s_row); }

template <bool kBf16>
float half_of(u32 pair, int e) {
  u32 const bits = pair >> 16 * e & 0xffff;
  return kBf16 ? __int_as_float(bits << 16) : cpu::of_half(bits);
}

template <bool kBf16>
void multiply(cpu::Warp& warp) {
  using Columns = float __attribute__((vector_size(32)));
  float a[16][16];
  Columns b[16], products[16];
  for (int lane = 0; lane < 32; ++lane) {
    u32 const* const in = warp.in[lane];
    for (int e = 0; e < 2; ++e) {
      int const group = lane / 4, of = 2 * (lane % 4) + e;
      for (int i = 0; i < 4; ++i) a[group + 8 * (i % 2)][of + 8 * (i / 2)] = half_of<kBf16>(in[i], e);
      for (int i = 0; i < 2; ++i) b[of + 8 * i][group] = half_of<kBf16>(in[4 + i], e);
    }
  }
  for (int row = 0; row < 16; ++row) {
    products[row] = Columns{};
    for (int k = 0; k < 16; ++k) products[row] += a[row][k] * b[k];
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float const sum = products[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] + __int_as_float(warp.in[lane][6 + i]);
      memcpy(&warp.out[lane][i], &sum, 4);
    }
  }
}

template <bool kBf16>
void mma_m16n8k16(float* d, u32 const (&a)[4], u32 b0, u32 b1) {
  u32* const in = cpu::warp().in[cpu::lane()];
  memcpy(in, a, 16);
  in[4] = b0;
  in[5] = b1;
  memcpy(in + 6, d, 16);
  cpu::collective(multiply<kBf16>);
  memcpy(d, cpu::warp().out[cpu::lane()], 16);
}

template <bool kBf16>
void multiply_half(cpu::Warp& warp) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    u32 const* const in = warp.in[lane];
    for (int e = 0; e < 2; ++e) {
      int const group = lane / 4, of = 2 * (lane % 4) + e;
      for (int i = 0; i < 2; ++i) a[group + 8 * i][of] = half_of<kBf16>(in[i], e);
      b[of][group] = half_of<kBf16>(in[2], e);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float sum = __int_as_float(warp.in[lane][3 + i]);
      for (int k = 0; k < 8; ++k) sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
      memcpy(&warp.out[lane][i], &sum, 4);
    }
  }
}

template <bool kBf16>
void mma_m16n8k8(float* d, u32 a0, u32 a1, u32 b) {
  u32* const in = cpu::warp().in[cpu::lane()];
  in[0] = a0;
  in[1] = a1;
  in[2] = b;
  memcpy(in + 3, d, 16);
  cpu::collective(multiply_half<kBf16>);
  memcpy(d, cpu::warp().out[cpu::lane()], 16);
}

}  // namespace omni
