// CUDA's words for a compiler of the host: a thread is a context of its own (threads.cpp), a thread block's threads take
// turns, and what a warp does together is done by its last lane to come. Enough for the kernels that tests run so.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct int2 {
  int x, y;
};
struct uint2 {
  unsigned x, y;
};
struct float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x, y, z;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cpu {

struct Copy {
  void* target;
  void const* source;
  int bytes, size;
};

inline void copy_now(Copy const& copy) {
  memset(copy.target, 0, copy.size);
  memcpy(copy.target, copy.source, copy.bytes);
}

struct Thread {
  Index index;
  std::vector<Copy> open;                 // copies of no group yet
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
  int arrived = 0;
  unsigned round = 0;
  uint32_t in[32][12];
  uint32_t out[32][4];
  float* sums[32];  // what each lane has of a product of a warpgroup
};

// A product of a warpgroup, d (+)= a b: a is 64 x 16, b is 16 x n; addresses are of shared memory.
struct Product {
  int n;
  bool bf16, accumulate;
  bool a_in_registers;    // else at a
  bool rows_are_columns;  // b lies in rows, one a column; else one a row, in panels
  uint32_t a, b, b_leading;
  uint32_t a_row, b_row;  // bytes of a row, which the swizzle spans: 128, 64 or 32
};

extern Thread* thread;  // whose turn it is
extern Index block, grid;
extern bool late;  // do copies happen when they are waited for, or at once?
extern int smem_bytes;
extern unsigned blocks_begun;
void yield();         // another thread's turn
void wait_for_all();  // of the thread block
extern Warp warps[];  // of the thread block
inline Warp& warp() { return warps[thread->index.x / 32]; }
void fail(char const* why);
void check_source(void const* source, int bytes);
void check_target(void const* target, int bytes);
inline int lane() { return thread->index.x % 32; }

// products.cpp, of what all lanes have put into warp.in
void load_matrices(Warp& warp, bool transposed);
void multiply_16(Warp& warp, bool bf16);
void multiply_8(Warp& warp, bool bf16);
void multiply_group(Warp& warp, Product const& of);

// What a reduction adds to global memory. Threads take turns, so nothing comes in between.
inline void add(float* target, float const* x, int count) {
  if (reinterpret_cast<uintptr_t>(target) % (4 * count)) fail("red: address");
  check_target(target, 4 * count);
  for (int i = 0; i < count; ++i) target[i] += x[i];
}

// `together` reads what every lane has put into warp.in and fills warp.out.
template <class Together>
void collective(Together const& together) {
  Warp& mine = warp();
  unsigned const round = mine.round;
  if (++mine.arrived == 32) {
    together(mine);
    mine.arrived = 0;
    ++mine.round;
  }
  while (mine.round == round) yield();
}

}  // namespace cpu

extern unsigned char shared_memory[] asm("s_memory");  // what kernels declare as extern __shared__

#define threadIdx (cpu::thread->index)
#define blockIdx cpu::block
#define gridDim cpu::grid
#define __syncthreads cpu::wait_for_all

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4, "a word");
  memcpy(cpu::warp().in[cpu::lane()], &value, 4);
  cpu::warp().in[cpu::lane()][1] = mask;
  cpu::collective([](cpu::Warp& warp) {
    for (int i = 0; i < 32; ++i) warp.out[i][0] = warp.in[(i ^ warp.in[i][1]) % 32][0];
  });
  memcpy(&value, cpu::warp().out[cpu::lane()], 4);
  return value;
}

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  static_assert(sizeof(T) <= 8, "two words at most");
  memcpy(cpu::warp().in[cpu::lane()], &value, sizeof(T));
  cpu::warp().in[cpu::lane()][2] = from;
  cpu::collective([](cpu::Warp& warp) {
    for (int i = 0; i < 32; ++i) memcpy(warp.out[i], warp.in[warp.in[i][2] % 32], 8);
  });
  memcpy(&value, cpu::warp().out[cpu::lane()], sizeof(T));
  return value;
}

inline void __syncwarp() {
  cpu::collective([](cpu::Warp&) {});
}

inline void __threadfence() { cpu::yield(); }
inline void __nanosleep(unsigned) { cpu::yield(); }

template <class T>
T atomicAdd(T* counter, T more) {
  T const before = *counter;
  *counter += more;
  return before;
}

inline int atomicOr(int* bits, int more) {
  int const before = *bits;
  *bits |= more;
  return before;
}

inline int __any_sync(unsigned, bool holds) {
  cpu::warp().in[cpu::lane()][0] = holds;
  cpu::collective([](cpu::Warp& warp) {
    uint32_t any = 0;
    for (int i = 0; i < 32; ++i) any |= warp.in[i][0];
    for (int i = 0; i < 32; ++i) warp.out[i][0] = any;
  });
  return cpu::warp().out[cpu::lane()][0];
}

inline unsigned __ballot_sync(unsigned, bool holds) {
  cpu::warp().in[cpu::lane()][0] = holds;
  cpu::collective([](cpu::Warp& warp) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= warp.in[i][0] << i;
    for (int i = 0; i < 32; ++i) warp.out[i][0] = all;
  });
  return cpu::warp().out[cpu::lane()][0];
}

template <class Combine>
int reduce(int value, Combine const& combine) {
  cpu::warp().in[cpu::lane()][0] = value;
  cpu::collective([&](cpu::Warp& warp) {
    int all = warp.in[0][0];
    for (int i = 1; i < 32; ++i) all = combine(all, static_cast<int>(warp.in[i][0]));
    for (int i = 0; i < 32; ++i) warp.out[i][0] = all;
  });
  return cpu::warp().out[cpu::lane()][0];
}

inline int __reduce_add_sync(unsigned, int value) {
  return reduce(value, [](int a, int b) { return a + b; });
}
inline int __reduce_max_sync(unsigned, int value) {
  return reduce(value, [](int a, int b) { return max(a, b); });
}
inline int __reduce_min_sync(unsigned, int value) {
  return reduce(value, [](int a, int b) { return min(a, b); });
}

inline int __all_sync(unsigned mask, bool holds) { return !__any_sync(mask, !holds); }

inline int __ffs(unsigned x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return (static_cast<unsigned long long>(high) << 32 | low) >> (by & 31);
}

inline float __fmul_rn(float a, float b) { return a * b; }

inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1.f : 0.f; }  // 0 for NaN

inline float __int_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return (static_cast<uint64_t>(high) << 32 | low) << by % 32 >> 32;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t const bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

// What numbers.cuh does in PTX.
namespace cpu {

// Without the compiler's own conversion, which is a call: the exponent's bias is 112 more in a float.
inline float of_half(unsigned bits16) {
  unsigned bits = (bits16 & 0x7fff) << 13;
  float value;
  memcpy(&value, &bits, 4);
  value *= 0x1p112f;
  if ((bits16 & 0x7c00) == 0x7c00) value = __int_as_float(bits | 0x7f800000);
  return bits16 & 0x8000 ? -value : value;
}

template <bool kBf16>
unsigned rounded(float value) {
  uint32_t bits = 0;
  if (kBf16) {
    memcpy(&bits, &value, 4);
    return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  }
  _Float16 const half = static_cast<_Float16>(value);
  memcpy(&bits, &half, 2);
  return bits;
}

template <bool kBf16>
unsigned pack(float low, float high) {
  return rounded<kBf16>(low) | rounded<kBf16>(high) << 16;
}

}  // namespace cpu
