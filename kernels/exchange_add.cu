// Adds gradients of keys that came back from the ranks which were sent them to those of their owner: in float32, first
// the owner's, then the others by rank, rounded once.
#include "omni/exchange/ptx.cuh"
#include "omni/numbers.cuh"

namespace omni {

constexpr bool kBf16 = OMNI_BF16;
constexpr int kGradients = 2;  // of k and of v, or of one alone

// Steps are in units of 16 bytes.
struct ExchangeAddParams {
  void* grads[kGradients];  // (batch, heads, keys, columns)
  Strides strides[kGradients];
  uint4 const* returned;   // (rows, batch, heads, columns of both)
  int const* keys;         // that are added to
  int const* begins;       // of each of them, where its rows begin in `rows`; and their number
  int const* rows;         // of `returned`, by rank
  int chunks[kGradients];  // of 16 bytes in a row of each gradient
  int batch, heads, count;
};

struct Eight {
  float x[8];

  __device__ __forceinline__ explicit Eight(uint4 const& given) {
    u32 const pairs[4] = {given.x, given.y, given.z, given.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const two = unpack_pair<kBf16>(pairs[i]);
      x[2 * i] = two.x;
      x[2 * i + 1] = two.y;
    }
  }

  __device__ __forceinline__ void operator+=(Eight const& other) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += other.x[i];
  }

  __device__ __forceinline__ uint4 rounded() const {
    return make_uint4(
        pack_pair<kBf16>(x[0], x[1]), pack_pair<kBf16>(x[2], x[3]), pack_pair<kBf16>(x[4], x[5]),
        pack_pair<kBf16>(x[6], x[7]));
  }
};

// A thread adds to 16 bytes of a key.
__device__ __forceinline__ void add_returned(ExchangeAddParams const& p, i64 index) {
  int const columns = p.chunks[0] + p.chunks[1], wide = p.batch * p.heads * columns;
  if (index >= static_cast<i64>(p.count) * wide) return;
  int const key = static_cast<int>(index / wide), column = static_cast<int>(index % wide);
  int const side = column % columns >= p.chunks[0];
  int const head = column / columns % p.heads, batch = column / columns / p.heads;
  uint4* const g_sum = static_cast<uint4*>(p.grads[side]) + batch * p.strides[side].batch +
                       head * p.strides[side].head + p.keys[key] * p.strides[side].token + column % columns -
                       side * p.chunks[0];
  Eight sum(*g_sum);
  int const stop = p.begins[key + 1];
  for (int at = p.begins[key]; at < stop; ++at) {
    sum += Eight(load_once(p.returned + static_cast<i64>(p.rows[at]) * wide + column));
  }
  *g_sum = sum.rounded();
}

}  // namespace omni

static_assert(sizeof(omni::ExchangeAddParams) == OMNI_PARAMS_BYTES, "params.py and exchange_add.cu disagree");

extern "C" __global__ void __launch_bounds__(OMNI_THREADS)
    exchange_add(const __grid_constant__ omni::ExchangeAddParams p) {
  omni::add_returned(p, static_cast<omni::i64>(blockIdx.x) * OMNI_THREADS + threadIdx.x);
}
