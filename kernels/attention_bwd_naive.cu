// The plain baseline of the backward pass: a thread block a query row makes its dQ, a thread block a key makes its dK
// and dV, everything in float32 and straight from global memory. Every other kernel is compared with it. It shares with
// them what attention_naive.cu shares with the forward kernels; lse2 and delta are those of attention_bwd_delta.cu.
#include "omni/backward_params.cuh"
#include "omni/lse2.cuh"
#include "omni/mask/rule.cuh"
#include "omni/numbers.cuh"

namespace omni {

constexpr int kHeadDim = OMNI_HEAD_DIM;
constexpr int kValueDim = OMNI_VALUE_DIM;
constexpr int kBr = OMNI_BR;
constexpr int kBc = OMNI_BC;
constexpr bool kOfKeys = OMNI_PART == 1;  // dK and dV; else dQ
constexpr bool kBf16 = OMNI_BF16;
constexpr bool kSoftcap = OMNI_SOFTCAP;
constexpr int kThreads = 128;
// Columns of dQ and dK, and of dV, that a thread owns.
constexpr int kColumns = (kHeadDim + kThreads - 1) / kThreads;
constexpr int kValueColumns = (kValueDim + kThreads - 1) / kThreads;
constexpr int kTokens = kBr > kBc ? kBr : kBc;
static_assert(4 * (kHeadDim + kValueDim + 2 * kTokens) <= OMNI_SMEM_BYTES, "two rows, and the weights of a tile");

// What a thread block shares: its own row of either tensor, and of a tile each token's weight and gradient.
struct Shared {
  float* const first;   // kHeadDim: of q or k
  float* const second;  // kValueDim: of dO or v
  float* const weight;  // kTokens: P, or -1 where the pair is hidden
  float* const grad;    // kTokens: dS

  __device__ __forceinline__ explicit Shared(float* s_memory)
      : first(s_memory),
        second(s_memory + kHeadDim),
        weight(s_memory + kHeadDim + kValueDim),
        grad(s_memory + kHeadDim + kValueDim + kTokens) {}
};

// Columns of v, dO and dV.
__device__ __forceinline__ int value_columns(ForwardParams const& p) {
  return kValueDim == kHeadDim ? p.head_dim : p.value_dim;
}

// q inside [start, start + count), in one unsigned comparison.
__device__ __forceinline__ bool in_span(int q, int start, int count) {
  return static_cast<u32>(q - start) < static_cast<u32>(count);
}

// Does query q see key k? owned: place in its block of the token that the thread block owns; walked: of the other one
// in the tile. Bits of the tiles of a key block are 32 queries of a key, of a block row 32 keys of a query.
__device__ __forceinline__ bool is_visible(
    MaskView const& mask, Tile const& tile, int q, int k, int owned, int walked) {
  if (tile.kind() == kFull) return true;
  if (tile.kind() == kCausal) return k <= q + mask.p.diagonal;
  if (int const payload = tile.payload; payload >= 0) {
    constexpr int kOwned = kOfKeys ? kBc : kBr;
    constexpr int kWords = (kOfKeys ? kBr : kBc) / 32;
    i64 const word = (static_cast<i64>(payload) * kOwned + owned) * kWords + walked / 32;
    return mask.p.lists.bit_tiles[word] >> (walked % 32) & 1;
  }
  for (int i = 0; i < mask.p.n_spans; ++i) {
    int2 const span = mask.spans()[static_cast<i64>(i) * mask.p.k_padded + k];
    if (in_span(q, span.x, span.y)) return true;
  }
  return false;
}

__device__ __forceinline__ float load16(unsigned char const* g_row, int d) {
  return unpack_half<kBf16>(reinterpret_cast<unsigned short const*>(g_row)[d]);
}

__device__ __forceinline__ void load_row(float* s_row, unsigned char const* g_row, int head_dim) {
  for (int d = threadIdx.x; d < head_dim; d += kThreads) s_row[d] = load16(g_row, d);
}

__device__ __forceinline__ float dot(float const* s_row, unsigned char const* g_row, int head_dim) {
  float sum = 0.f;
  for (int d = 0; d < head_dim; d += 8) {
    uint4 const eight = *reinterpret_cast<uint4 const*>(g_row + 2 * d);
    u32 const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const two = unpack_pair<kBf16>(pairs[i]);
      sum += s_row[d + 2 * i] * two.x + s_row[d + 2 * i + 1] * two.y;
    }
  }
  return sum;
}

// The weight of a visible pair and the gradient of its score, to the places of `token`. g_first, g_second: rows of the
// other token.
__device__ __forceinline__ void weigh_pair(
    BackwardParams const& params, Shared const& s, int token, i64 statistic, unsigned char const* g_first,
    unsigned char const* g_second) {
  ForwardParams const& p = params.p;
  float score = dot(s.first, g_first, p.head_dim);
  if constexpr (kSoftcap) score = tanhf(score * p.tanh_scale);
  float const lse2 = params.lse2[statistic];
  float const weight = kBf16 || kSoftcap ? exp2_approx(fmaf(score, p.scale_log2, -lse2)) : weight_of(score, p, lse2);
  s.weight[token] = weight;
  float const grad = weight * (dot(s.second, g_second, value_columns(p)) - params.delta[statistic]);
  s.grad[token] = kSoftcap ? grad * fmaf(-score, score, 1.f) : grad;
}

// sum += factors[token] * row of the token, over the visible ones. g_rows: of the tile, `stride` bytes apart.
template <int kOwned>
__device__ __forceinline__ void add_rows(
    float (&sum)[kOwned], float const* s_factors, float const* s_weight, unsigned char const* g_rows, i64 stride,
    int2 tokens_and_columns) {
  for (int token = 0; token < tokens_and_columns.x; ++token) {
    if (s_weight[token] < 0.f) continue;  // hidden: its row may hold anything
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      int const d = i * kThreads + threadIdx.x;
      if (d < tokens_and_columns.y) sum[i] += s_factors[token] * load16(g_rows + token * stride, d);
    }
  }
}

template <int kOwned>
__device__ __forceinline__ void store_sum(float const (&sum)[kOwned], unsigned char* g_row, float factor, int columns) {
#pragma unroll
  for (int i = 0; i < kOwned; ++i) {
    int const d = i * kThreads + threadIdx.x;
    if (d < columns) {
      reinterpret_cast<unsigned short*>(g_row)[d] = static_cast<unsigned short>(pack_pair<kBf16>(sum[i] * factor, 0.f));
    }
  }
}

// Row `token` of a gradient.
__device__ __forceinline__ unsigned char* gradient_row(
    void* gradient, Strides const& strides, int batch, int head, int token) {
  return const_cast<unsigned char*>(Tensor{gradient, strides}.row(batch, head, token));
}

__device__ __forceinline__ void query_gradient(BackwardParams const& params, Shared const& s) {
  ForwardParams const& p = params.p;
  int const q = blockIdx.x % p.q_len;
  int const head = blockIdx.x / p.q_len % p.q_heads;
  int const batch = blockIdx.x / p.q_len / p.q_heads;
  int const mask_index = p.mask_batch == 1 ? 0 : batch;
  MaskView const mask{p, mask_index};
  load_row(s.first, p.query().row(batch, head, q), p.head_dim);
  load_row(s.second, params.gradient_of_out().row(batch, head, q), value_columns(p));
  float dq[kColumns] = {};
  int const* const entries = p.lists.row_offsets + mask_index * p.q_blocks + q / kBr;
  RowWalk<kBc> walk(entries);
  while (walk.has_next()) {
    Tile const tile = walk.take(p.lists);
    unsigned char const* const g_k = p.key().row(batch, head / p.group, tile.first);
    unsigned char const* const g_v = p.value().row(batch, head / p.group, tile.first);
    int const keys = min(tile.length(), kBc);
    __syncthreads();  // the rows are there; the weights of the tile before are read
    for (int c = threadIdx.x; c < keys; c += kThreads) {
      if (is_visible(mask, tile, q, tile.first + c, q % kBr, c)) {
        weigh_pair(
            params, s, c, params.statistics(batch, head) + q, g_k + 2 * c * p.k_strides.token,
            g_v + 2 * c * p.v_strides.token);
      } else {
        s.weight[c] = -1.f;
      }
    }
    __syncthreads();
    add_rows(dq, s.grad, s.weight, g_k, 2 * p.k_strides.token, make_int2(keys, p.head_dim));
  }
  store_sum(dq, gradient_row(params.dq, params.dq_strides, batch, head, q), p.scale, p.head_dim);
}

__device__ __forceinline__ void key_gradients(BackwardParams const& params, Shared const& s) {
  ForwardParams const& p = params.p;
  int const k = blockIdx.x % p.k_len;
  int const kv_head = blockIdx.x / p.k_len % params.kv_heads;
  int const batch = blockIdx.x / p.k_len / params.kv_heads;
  int const mask_index = p.mask_batch == 1 ? 0 : batch;
  MaskView const mask{p, mask_index};
  load_row(s.first, p.key().row(batch, kv_head, k), p.head_dim);
  load_row(s.second, p.value().row(batch, kv_head, k), value_columns(p));
  float dk[kColumns] = {}, dv[kValueColumns] = {};
  int const* const entries = p.lists.row_offsets + mask_index * p.q_blocks + k / kBc;
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) {
    RowWalk<kBr> walk(entries);
    while (walk.has_next()) {
      Tile const tile = walk.take(p.lists);
      unsigned char const* const g_q = p.query().row(batch, head, tile.first);
      unsigned char const* const g_dout = params.gradient_of_out().row(batch, head, tile.first);
      int const queries = min(tile.length(), kBr);
      __syncthreads();  // the rows are there; the weights of the tile before are read
      for (int r = threadIdx.x; r < queries; r += kThreads) {
        if (is_visible(mask, tile, tile.first + r, k, k % kBc, r)) {
          weigh_pair(
              params, s, r, params.statistics(batch, head) + tile.first + r, g_q + 2 * r * p.q_strides.token,
              g_dout + 2 * r * params.dout_strides.token);
        } else {
          s.weight[r] = -1.f;
        }
      }
      __syncthreads();
      int2 const size = make_int2(queries, p.head_dim);
      int2 of_values = size;
      if constexpr (kValueDim != kHeadDim) of_values.y = p.value_dim;
      add_rows(dv, s.weight, s.weight, g_dout, 2 * params.dout_strides.token, of_values);
      add_rows(dk, s.grad, s.weight, g_q, 2 * p.q_strides.token, size);
    }
  }
  if (params.dk != nullptr) {
    store_sum(dk, gradient_row(params.dk, params.dk_strides, batch, kv_head, k), p.scale, p.head_dim);
  }
  if (params.dv != nullptr) {
    store_sum(dv, gradient_row(params.dv, params.dv_strides, batch, kv_head, k), 1.f, value_columns(p));
  }
}

}  // namespace omni

static_assert(sizeof(omni::BackwardParams) == OMNI_PARAMS_BYTES, "params.py and backward_params.cuh disagree");

extern "C" __global__ void __launch_bounds__(omni::kThreads, 1)
    attention_bwd_naive(const __grid_constant__ omni::BackwardParams params) {
  extern __shared__ float s_memory[];
  if constexpr (omni::kOfKeys) {
    omni::key_gradients(params, omni::Shared(s_memory));
  } else {
    omni::query_gradient(params, omni::Shared(s_memory));
  }
}
