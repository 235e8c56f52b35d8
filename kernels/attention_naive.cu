// The plain baseline: one thread block a query row, K and V read straight from global memory, no tensor cores. Every
// other kernel is compared with it. It shares with them what the words of an entry mean (Tile), where the element
// rule's spans lie (MaskView), the exponential and the logarithm of a sum (exp2_approx, log_sum), and how 16-bit
// values are read and rounded: an error in these is in all kernels at once, and only the reference shows it. The walk
// from tile to tile, the element rule itself, the products and the softmax are written anew.
#include "omni/fp8.cuh"
#include "omni/mask/rule.cuh"
#include "omni/numbers.cuh"
#include "omni/ragged.cuh"

namespace omni {

constexpr int kHeadDim = OMNI_HEAD_DIM;
constexpr int kValueDim = OMNI_VALUE_DIM;
constexpr int kBr = OMNI_BR;
constexpr int kBc = OMNI_BC;
constexpr bool kBf16 = OMNI_BF16;
constexpr bool kSoftcap = OMNI_SOFTCAP;
constexpr bool kPaged = OMNI_PAGE != 0;
constexpr bool kRagged = OMNI_RAGGED;
constexpr bool kFp8 = OMNI_FP8;
using Params = ForwardParamsOf<kPaged, kRagged, kFp8>::Type;
constexpr int kThreads = 128;
constexpr int kOwned = (kValueDim + kThreads - 1) / kThreads;  // columns of O a thread owns

// Columns of v and out.
__device__ __forceinline__ int value_columns(ForwardParams const& p) {
  return kValueDim == kHeadDim ? p.head_dim : p.value_dim;
}

// q inside [start, start + count), in one unsigned comparison.
__device__ __forceinline__ bool in_span(int q, int start, int count) {
  return static_cast<u32>(q - start) < static_cast<u32>(count);
}

// Does row q, at `row` of its block, see key k, at `column` of the tile?
__device__ __forceinline__ bool is_visible(MaskView const& mask, Tile const& tile, int q, int row, int column) {
  int const k = tile.first + column;
  if (tile.kind() == kFull) return true;
  if (tile.kind() == kCausal) return k <= q + mask.p.diagonal;
  if (int const payload = tile.payload; payload >= 0) {
    i64 const word = (static_cast<i64>(payload) * kBr + row) * (kBc / 32) + column / 32;
    return mask.p.lists.bit_tiles[word] >> (column % 32) & 1;
  }
  for (int i = 0; i < mask.p.n_spans; ++i) {
    int2 const span = mask.spans()[static_cast<i64>(i) * mask.p.k_padded + k];
    if (in_span(q, span.x, span.y)) return true;
  }
  return false;
}

// Combines one value of every thread; all threads get the result. s_reduce: kThreads floats.
template <class Combine>
__device__ __forceinline__ float block_reduce(float value, float* s_reduce, Combine combine) {
  s_reduce[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) s_reduce[threadIdx.x] = combine(s_reduce[threadIdx.x], s_reduce[threadIdx.x + half]);
    __syncthreads();
  }
  float const result = s_reduce[0];
  __syncthreads();
  return result;
}

__device__ __forceinline__ float load16(unsigned short const* g, i64 index) { return unpack_half<kBf16>(g[index]); }

__device__ __forceinline__ float dot(float const* s_q, unsigned short const* g_key, int head_dim) {
  float sum = 0.f;
  for (int d = 0; d < head_dim; d += 8) {
    uint4 const eight = *reinterpret_cast<uint4 const*>(g_key + d);
    u32 const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const two = unpack_pair<kBf16>(pairs[i]);
      sum += s_q[d + 2 * i] * two.x + s_q[d + 2 * i + 1] * two.y;
    }
  }
  return sum;
}

constexpr i64 kNoPage = -1;  // no offset: those are multiples of 8

// From where the keys of a head in page 0 begin to key k of a sequence, in elements.
__device__ __forceinline__ i64 paged_key(ForwardParams const& p, Strides const& strides, int sequence, int k) {
  PageTable const& table = static_cast<PagedParams const&>(p).pages;
  int row;
  int const page = table.page_of(sequence, k, row);
  return page == table.pages ? kNoPage : paged_offset(strides, page, row);
}

__device__ __forceinline__ KvScales const& scales(ForwardParams const& p) {
  return static_cast<Fp8Params const&>(p).scales;
}

// Where a key of a sequence is in a cache of e4m3.
struct E4m3Key {
  int page, row;
  bool exists;

  __device__ __forceinline__ E4m3Key(ForwardParams const& p, int sequence, int key) {
    exists = find_key<kPaged>(static_cast<PagedParams const&>(p).pages, sequence, key, page, row);
  }
};

// One element as the 16-bit number that it stands for.
__device__ __forceinline__ float load_e4m3(unsigned char const* g_row, int column, float scale) {
  u32 const pair = scaled_pair<kBf16>(e4m3_numbers<false>(g_row[column]), scale);
  return unpack_half<kBf16>(pair & 0xffffu);
}

__device__ __forceinline__ float dot_e4m3(float const* s_q, E4m3Rows const& keys, E4m3Key const& key, int head_dim) {
  unsigned char const* const g_key = keys.row(key.page, key.row);
  float const scale = keys.scale(key.page, key.row);
  float sum = 0.f;
  for (int d = 0; d < head_dim; d += 8) {
    uint4 const eight = dequantised<kBf16>(*reinterpret_cast<uint2 const*>(g_key + d), scale);
    u32 const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const two = unpack_pair<kBf16>(pairs[i]);
      sum += s_q[d + 2 * i] * two.x + s_q[d + 2 * i + 1] * two.y;
    }
  }
  return sum;
}

struct Row {
  float row_max = neg_inf();
  float sum = 0.f;
  float out[kOwned] = {};
};

// One tile of keys of the row: scores to shared memory, then the online softmax, then O.
__device__ __forceinline__ void add_tile(
    MaskView const& mask, Row& row, float* s_scores, float* s_reduce, unsigned short const* g_v, Tile const& tile) {
  ForwardParams const& p = mask.p;
  int const count = tile.length();
  float row_max = neg_inf();
  for (int c = threadIdx.x; c < count; c += kThreads) row_max = fmaxf(row_max, s_scores[c]);
  row_max = fmaxf(row.row_max, block_reduce(row_max, s_reduce, [](float a, float b) { return fmaxf(a, b); }));
  if (row_max == neg_inf()) return;
  float const correction = exp2_approx((row.row_max - row_max) * p.scale_log2);
  row.row_max = row_max;
  float const offset = row_max * p.scale_log2;
  float sum = 0.f;  // of the tile: shorter chains of additions round less
#pragma unroll
  for (int i = 0; i < kOwned; ++i) row.out[i] *= correction;
  for (int c = 0; c < count; ++c) {
    if (s_scores[c] == neg_inf()) continue;  // not seen: its V row may hold anything
    float const weight = exp2_approx(
        is_far<kBf16>(offset) ? (s_scores[c] - row_max) * p.scale_log2 : fmaf(s_scores[c], p.scale_log2, -offset));
    sum += weight;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      int const d = i * kThreads + threadIdx.x;
      if (d >= value_columns(p)) continue;
      if constexpr (kFp8) {
        E4m3Rows const values = e4m3_values(p, scales(p), blockIdx.x / p.q_len % p.q_heads / p.group);
        E4m3Key const key(p, mask.index, tile.first + c);
        row.out[i] += weight * load_e4m3(values.row(key.page, key.row), d, values.scale(key.page, key.row));
      } else if constexpr (kPaged) {
        row.out[i] += weight * load16(g_v, paged_key(p, p.v_strides, mask.index, tile.first + c) + d);
      } else {
        row.out[i] += weight * load16(g_v, c * p.v_strides.token + d);
      }
    }
  }
  row.sum = row.sum * correction + sum;
}

__device__ __forceinline__ void store_row(ForwardParams const& p, Row const& row, int batch, int head, int q) {
  float sum = row.sum;
  if (p.sink_logits != nullptr) sum += exp2_approx(fmaf(-row.row_max, p.scale_log2, sink_log2(p, head)));
  float const inverse = row.sum == 0.f ? 0.f : 1.f / sum;
  unsigned short* const g_out = static_cast<unsigned short*>(p.out) + batch * p.out_strides.batch +
                                head * p.out_strides.head + q * p.out_strides.token;
#pragma unroll
  for (int i = 0; i < kOwned; ++i) {
    int const d = i * kThreads + threadIdx.x;
    if (d < value_columns(p)) g_out[d] = static_cast<unsigned short>(pack_pair<kBf16>(row.out[i] * inverse, 0.f));
  }
  if (p.lse != nullptr && threadIdx.x == 0) {
    float const lse = log_sum<kBf16>(row.row_max, row.sum, p.scale, p.scale_log2);
    p.lse[(static_cast<i64>(batch) * p.q_heads + head) * p.q_len + q] = lse;
  }
}

// The sequence that a row among all belongs to, -1 where there is none, and the sequence's first row.
__device__ __forceinline__ int sequence_of(ForwardParams const& p, int q, int& first) {
  for (int i = 0; i < p.batch; ++i) {
    int2 const range = static_cast<RaggedParams const&>(p).row_ranges[i];
    first = range.x;
    if (range.x <= q && q < range.y) return i;
  }
  return -1;
}

__device__ __forceinline__ void attend_row(ForwardParams const& p, float* s_memory) {
  int const q = blockIdx.x % p.q_len;
  int const head = blockIdx.x / p.q_len % p.q_heads;
  int const batch = blockIdx.x / p.q_len / p.q_heads;
  int first = 0, sequence = batch;
  if constexpr (kRagged) sequence = sequence_of(p, q, first);
  if (kRagged && sequence < 0) return;
  int const mask_index = p.mask_batch == 1 ? 0 : sequence;
  int const row_of_sequence = q - first;
  MaskView const mask{p, mask_index};
  float* const s_q = s_memory;
  float* const s_scores = s_q + kHeadDim;
  float* const s_reduce = s_scores + kBc;
  unsigned short const* g_q = static_cast<unsigned short const*>(p.q) + batch * p.q_strides.batch +
                              head * p.q_strides.head + q * p.q_strides.token;
  int const of_batch = kPaged ? 0 : sequence;
  i64 const k_base = of_batch * p.k_strides.batch + head / p.group * p.k_strides.head;
  i64 const v_base = of_batch * p.v_strides.batch + head / p.group * p.v_strides.head;
  for (int d = threadIdx.x; d < p.head_dim; d += kThreads) s_q[d] = load16(g_q, d);
  Row row;
  int const* const entries = p.lists.row_offsets + mask_index * p.q_blocks + row_of_sequence / kBr;
  RowWalk<kBc> walk(entries);
  while (walk.has_next()) {
    Tile const tile = walk.take(p.lists);
    __syncthreads();
    for (int c = threadIdx.x; c < tile.length(); c += kThreads) {
      bool seen = is_visible(mask, tile, q, row_of_sequence % kBr, c);
      unsigned short const* g_key =
          static_cast<unsigned short const*>(p.k) + k_base + (tile.first + c) * p.k_strides.token;
      if constexpr (kPaged && !kFp8) {
        i64 const offset = paged_key(p, p.k_strides, mask_index, tile.first + c);
        seen = seen && offset != kNoPage;
        g_key = static_cast<unsigned short const*>(p.k) + k_base + offset;
      }
      float score = neg_inf();
      if constexpr (kFp8) {
        E4m3Key const key(p, mask_index, tile.first + c);
        seen = seen && key.exists;
        if (seen) score = dot_e4m3(s_q, e4m3_keys(p, scales(p), head / p.group), key, p.head_dim);
      } else {
        if (seen) score = dot(s_q, g_key, p.head_dim);
      }
      if (kSoftcap && seen) score = tanhf(score * p.tanh_scale);
      s_scores[c] = score;
    }
    __syncthreads();
    unsigned short const* g_v =
        static_cast<unsigned short const*>(p.v) + v_base + (kPaged ? 0 : tile.first * p.v_strides.token);
    add_tile(mask, row, s_scores, s_reduce, g_v, tile);
  }
  store_row(p, row, batch, head, q);
}

}  // namespace omni

static_assert(sizeof(omni::Params) == OMNI_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(omni::kThreads, 1)
    attention_naive(const __grid_constant__ omni::Params p) {
  extern __shared__ float s_memory[];
  omni::attend_row(p, s_memory);
}
