// kernels/omni/sm90/wgmma_table.cuh for the host: products.cpp has the layouts. Done when it is started, for a warp by
// its last lane to come.
#pragma once

#include "omni/params.cuh"
#include "omni/sm90/ptx.cuh"

namespace omni {

template <int kN, bool kBf16>
struct Wgmma {
  static u32 start(u64 descriptor) { return static_cast<u32>(descriptor & 0x3fff) << 4; }
  static u32 leading(u64 descriptor) { return static_cast<u32>(descriptor >> 16 & 0x3fff) << 4; }

  // Bytes of a row, of which the next eight begin eight times as far on.
  static u32 row(u64 descriptor) {
    int const swizzle = static_cast<int>(descriptor >> 62);
    u32 const bytes = swizzle == 0 ? 0 : 256 >> swizzle, step = static_cast<u32>(descriptor >> 32 & 0x3fff) << 4;
    if (step != 8 * bytes) cpu::fail("wgmma: the swizzle or the step of eight rows");
    return bytes;
  }

  static void multiply(float (&d)[kN / 2], cpu::Product const& of) {
    cpu::warp().sums[cpu::lane()] = d;
    cpu::collective([&](cpu::Warp& warp) { cpu::multiply_group(warp, of); });
  }

  static void ss_kk(float (&d)[kN / 2], u64 a, u64 b, int accumulate) {
    multiply(d, {kN, kBf16, accumulate != 0, false, true, start(a), start(b), 0, row(a), row(b)});
  }

  static void ss_kn(float (&d)[kN / 2], u64 a, u64 b, int accumulate) {
    multiply(d, {kN, kBf16, accumulate != 0, false, false, start(a), start(b), leading(b), row(a), row(b)});
  }

  static void rs_n(float (&d)[kN / 2], u32 const* a, u64 b) {
    memcpy(cpu::warp().in[cpu::lane()], a, 16);
    multiply(d, {kN, kBf16, true, true, false, 0, start(b), leading(b), 0, row(b)});
  }

  static void rs_k(float (&d)[kN / 2], u32 const* a, u64 b, int accumulate) {
    memcpy(cpu::warp().in[cpu::lane()], a, 16);
    multiply(d, {kN, kBf16, accumulate != 0, true, true, 0, start(b), 0, 0, row(b)});
  }
};

}  // namespace omni
