// What tensor cores do, for a warp at once: the layouts are those of the PTX ISA, "Matrix fragments for mma.m16n8k16",
// "ldmatrix", and "Register fragments and shared memory matrix layouts" of wgmma, with swizzles of 32, 64 and 128 bytes.
// Compiled once for all kernels, with what this processor has: sums run over k in its order, without fused additions,
// so that the instructions that are used for them change no bit.
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "cuda.h"

namespace cpu {
namespace {

using Eight = float __attribute__((vector_size(32)));
using Eight16 = uint16_t __attribute__((vector_size(16)));
using Eight32 = uint32_t __attribute__((vector_size(32)));

template <bool kBf16>
Eight floats(uint16_t const* bits16) {
  Eight16 bits;
  memcpy(&bits, bits16, 16);
  if constexpr (kBf16) {
    return reinterpret_cast<Eight>(__builtin_convertvector(bits, Eight32) << 16);
  } else {
#ifdef __F16C__
    return reinterpret_cast<Eight>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(bits)));
#else
    Eight found;
    for (int i = 0; i < 8; ++i) found[i] = of_half(bits[i]);
    return found;
#endif
  }
}

// 16 x kK numbers in rows of 16 as floats.
template <bool kBf16, int kRows, int kK>
void convert(float (&to)[kRows][kK], uint16_t const (&from)[kRows][kK]) {
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kK; k += 8) {
      Eight const found = floats<kBf16>(&from[row][k]);
      memcpy(&to[row][k], &found, 32);
    }
  }
}

// The products of 16 rows and 8 columns, from zero.
template <int kK>
void multiply(Eight (&sums)[16], float const (&a)[16][kK], Eight const* b) {
  for (int row = 0; row < 16; ++row) {
    Eight sum{};
    for (int k = 0; k < kK; ++k) sum += a[row][k] * b[k];
    sums[row] = sum;
  }
}

template <bool kBf16>
void mma16(Warp& warp) {
  uint16_t a16[16][16], b16[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    int const group = lane / 4, of = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) memcpy(&a16[group + 8 * (i % 2)][of + 8 * (i / 2)], &warp.in[lane][i], 4);
    for (int i = 0; i < 2; ++i) memcpy(&b16[group][of + 8 * i], &warp.in[lane][4 + i], 4);
  }
  float a[16][16], columns[8][16];
  convert<kBf16>(a, a16);
  convert<kBf16>(columns, b16);
  Eight b[16], sums[16];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) b[k][n] = columns[n][k];
  }
  multiply(sums, a, b);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float const sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] + __int_as_float(warp.in[lane][6 + i]);
      memcpy(&warp.out[lane][i], &sum, 4);
    }
  }
}

template <bool kBf16>
void mma8(Warp& warp) {
  uint16_t a16[16][8], b16[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    int const group = lane / 4, of = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) memcpy(&a16[group + 8 * i][of], &warp.in[lane][i], 4);
    memcpy(&b16[group][of], &warp.in[lane][2], 4);
  }
  float a[16][8], b[8][8];
  convert<kBf16>(a, a16);
  convert<kBf16>(b, b16);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float sum = __int_as_float(warp.in[lane][3 + i]);
      for (int k = 0; k < 8; ++k) sum += a[lane / 4 + 8 * (i / 2)][k] * b[2 * (lane % 4) + i % 2][k];
      memcpy(&warp.out[lane][i], &sum, 4);
    }
  }
}

// Eight numbers of shared memory: chunks of 16 bytes change places by bits 7 to 9 of their address, inside of a row.
uint16_t const* chunk(uint32_t at, uint32_t row_bytes) {
  return reinterpret_cast<uint16_t const*>(shared_memory + (at ^ (at >> 3 & (row_bytes - 16))));
}

template <bool kBf16>
void wgmma(Warp& warp, Product const& of, int first_row) {
  float a[16][16];
  if (of.a_in_registers) {
    uint16_t a16[16][16];
    for (int lane = 0; lane < 32; ++lane) {
      int const group = lane / 4, column = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) memcpy(&a16[group + 8 * (i % 2)][column + 8 * (i / 2)], &warp.in[lane][i], 4);
    }
    convert<kBf16>(a, a16);
  } else {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; k += 8) {
        Eight const found = floats<kBf16>(chunk(of.a + of.a_row * (first_row + row) + 2 * k, of.a_row));
        memcpy(&a[row][k], &found, 32);
      }
    }
  }
  for (int n = 0; n < of.n; n += 8) {
    Eight b[16], sums[16];
    if (of.rows_are_columns) {
      for (int column = 0; column < 8; ++column) {
        for (int k = 0; k < 16; k += 8) {
          Eight const found = floats<kBf16>(chunk(of.b + of.b_row * (n + column) + 2 * k, of.b_row));
          for (int i = 0; i < 8; ++i) b[k + i][column] = found[i];
        }
      }
    } else {
      int const columns = of.b_row / 2;
      uint32_t const panel = of.b + of.b_leading * (n / columns) + 2 * (n % columns);
      for (int k = 0; k < 16; ++k) b[k] = floats<kBf16>(chunk(panel + of.b_row * k, of.b_row));
    }
    multiply(sums, a, b);
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        float& to = warp.sums[lane][n / 2 + i];
        float const sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
        to = of.accumulate ? to + sum : sum;
      }
    }
  }
}

}  // namespace

void load_matrices(Warp& warp, bool transposed) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) memcpy(rows[row], shared_memory + warp.in[8 * matrix + row][0], 16);
    for (int lane = 0; lane < 32; ++lane) {
      int const along = lane / 4, across = 2 * (lane % 4);
      uint16_t const low = transposed ? rows[across][along] : rows[along][across];
      uint16_t const high = transposed ? rows[across + 1][along] : rows[along][across + 1];
      warp.out[lane][matrix] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

void multiply_16(Warp& warp, bool bf16) { bf16 ? mma16<true>(warp) : mma16<false>(warp); }
void multiply_8(Warp& warp, bool bf16) { bf16 ? mma8<true>(warp) : mma8<false>(warp); }

void multiply_group(Warp& warp, Product const& of) {
  int const first_row = thread->index.x % 128 / 32 * 16;
  of.bf16 ? wgmma<true>(warp, of, first_row) : wgmma<false>(warp, of, first_row);
}

}  // namespace cpu
