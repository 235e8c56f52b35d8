// Writes new keys and values into caches: as the last keys of each sequence, or at given slots.
#include "omni/append.cuh"

namespace omni {

// A thread copies 16 bytes of a key and of its value, as far as each is so wide.
__device__ __forceinline__ void append(AppendParams const& p, i64 index) {
  int const chunks = max(p.head_dim, p.value_dim) / 8;
  int const chunk = static_cast<int>(index % chunks);
  int const head = static_cast<int>(index / chunks % p.kv_heads);
  int const token = static_cast<int>(index / chunks / p.kv_heads % p.tokens);
  int const sequence = static_cast<int>(index / chunks / p.kv_heads / p.tokens);
  if (sequence >= p.batch) return;
  int row;
  int const page = place_of(p, sequence, token, row);
  if (page == p.pages) return;
  auto const copy = [&](void const* from, Strides const& from_strides, void* to, Strides const& to_strides) {
    unsigned char const* const g_from = Tensor{from, from_strides}.row(sequence, head, token);
    unsigned char const* const g_to = Tensor{to, to_strides}.row(page, head, row);
    reinterpret_cast<uint4*>(const_cast<unsigned char*>(g_to))[chunk] = reinterpret_cast<uint4 const*>(g_from)[chunk];
  };
  if (8 * chunk < p.head_dim) copy(p.k_new, p.k_new_strides, p.k, p.k_strides);
  if (8 * chunk < p.value_dim) copy(p.v_new, p.v_new_strides, p.v, p.v_strides);
}

}  // namespace omni

static_assert(sizeof(omni::AppendParams) == OMNI_PARAMS_BYTES, "params.py and append.cuh disagree");

extern "C" __global__ void __launch_bounds__(OMNI_THREADS, 1)
    cache_append(const __grid_constant__ omni::AppendParams p) {
  omni::append(p, static_cast<omni::i64>(blockIdx.x) * OMNI_THREADS + threadIdx.x);
}
