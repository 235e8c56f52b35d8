// Writes new keys and values into caches: as the last keys of each sequence, or at given slots.
#include "omni/append.cuh"

namespace omni {

// A thread copies 16 bytes of a key and of its value, as far as each is so wide.
__device__ __forceinline__ void append(AppendParams const& p, Place const& at) {
  auto const copy = [&](void const* from, Strides const& from_strides, void* to, Strides const& to_strides) {
    unsigned char const* const g_from = Tensor{from, from_strides}.row(at.sequence, at.head, at.token);
    unsigned char const* const g_to = Tensor{to, to_strides}.row(at.page, at.head, at.row);
    reinterpret_cast<uint4*>(const_cast<unsigned char*>(g_to))[at.chunk] =
        reinterpret_cast<uint4 const*>(g_from)[at.chunk];
  };
  if (8 * at.chunk < p.head_dim) copy(p.k_new, p.k_new_strides, p.k, p.k_strides);
  if (8 * at.chunk < p.value_dim) copy(p.v_new, p.v_new_strides, p.v, p.v_strides);
}

}  // namespace omni

static_assert(sizeof(omni::AppendParams) == OMNI_PARAMS_BYTES, "params.py and append.cuh disagree");

extern "C" __global__ void __launch_bounds__(OMNI_THREADS, 1)
    cache_append(const __grid_constant__ omni::AppendParams p) {
  omni::i64 const index = static_cast<omni::i64>(blockIdx.x) * OMNI_THREADS + threadIdx.x;
  omni::at_place(p, index, [&](omni::Place const& at) { omni::append(p, at); });
}
