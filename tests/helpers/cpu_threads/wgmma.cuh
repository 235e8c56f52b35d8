// kernels/omni/sm90/wgmma_table.cuh for the host: the layouts are those of the PTX ISA, "Register fragments and shared
// memory matrix layouts" of wgmma, with the swizzle of 128 bytes. Done when it is started.
#pragma once

#include "omni/params.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

template <int kN, bool kBf16>
struct Wgmma {
  static float load(u32 at) {
    unsigned short bits;
    memcpy(&bits, shared_memory + swizzled(at), 2);
    return kBf16 ? __int_as_float(static_cast<u32>(bits) << 16) : cpu::of_half(bits);
  }

  static u32 start(u64 descriptor) { return static_cast<u32>(descriptor & 0x3fff) << 4; }
  static u32 leading(u64 descriptor) { return static_cast<u32>(descriptor >> 16 & 0x3fff) << 4; }

  // d (+)= a b, of which the lane holds rows lane / 4 + 8 * h and columns 8 * j + 2 * (lane % 4) + e.
  template <class B>
  static void multiply(float (&d)[kN / 2], float const (&a)[2][16], B const& b, bool accumulate) {
    for (int j = 0; j < kN / 8; ++j) {
      for (int e = 0; e < 2; ++e) {
        float column[16];
        for (int k = 0; k < 16; ++k) column[k] = b(k, 8 * j + 2 * (cpu::lane() % 4) + e);
        for (int h = 0; h < 2; ++h) {
          float sum = 0.f;
          for (int k = 0; k < 16; ++k) sum += a[h][k] * column[k];
          float& to = d[4 * j + 2 * h + e];
          to = accumulate ? to + sum : sum;
        }
      }
    }
  }

  static void ss_kk(float (&d)[kN / 2], u64 a, u64 b, int accumulate) {
    float rows[2][16];
    int const first = threadIdx.x % 128 / 32 * 16 + cpu::lane() / 4;
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 16; ++k) rows[h][k] = load(start(a) + 128 * (first + 8 * h) + 2 * k);
    }
    multiply(d, rows, [&](int k, int n) { return load(start(b) + 128 * n + 2 * k); }, accumulate);
  }

  static void ss_kn(float (&d)[kN / 2], u64 a, u64 b, int accumulate) {
    float rows[2][16];
    int const first = threadIdx.x % 128 / 32 * 16 + cpu::lane() / 4;
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 16; ++k) rows[h][k] = load(start(a) + 128 * (first + 8 * h) + 2 * k);
    }
    auto const value = [&](int k, int n) { return load(start(b) + leading(b) * (n / 64) + 128 * k + 2 * (n % 64)); };
    multiply(d, rows, value, accumulate);
  }

  static void rs_n(float (&d)[kN / 2], u32 const* a, u64 b) {
    memcpy(cpu::warp().in[cpu::lane()], a, 16);
    __syncwarp();
    float rows[2][16];
    for (int k = 0; k < 16; ++k) {
      for (int h = 0; h < 2; ++h) {
        u32 const pair = cpu::warp().in[cpu::lane() / 4 * 4 + k % 8 / 2][2 * (k / 8) + h];
        u32 const bits = pair >> 16 * (k % 2) & 0xffff;
        rows[h][k] = kBf16 ? __int_as_float(bits << 16) : cpu::of_half(bits);
      }
    }
    __syncwarp();
    auto const value = [&](int k, int n) { return load(start(b) + leading(b) * (n / 64) + 128 * k + 2 * (n % 64)); };
    multiply(d, rows, value, true);
  }
};

}  // namespace omni
