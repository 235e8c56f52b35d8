// What the kernels of a backward pass need first: lse2 and delta of every row, and compact copies of q, dO, k and v in
// which rows and keys that take no part hold zeros. Memory sets its pace.
//
// A group of kLanes lanes has a row: as many as the row has pieces of 8 columns (head_dim rounded up to 16, over 8),
// rounded up to a power of 2, at most 32. A thread block has 256 / kLanes rows of one head, and the grid is one-
// dimensional: batch * q_heads * ceil(q_padded / rows) blocks, and where k_copy or v_copy is asked
// batch * kv_heads * ceil(k_len / rows) more. backward_spec.py has the same number of rows (prepared_rows).
#include "omni/backward_params.cuh"
#include "omni/numbers.cuh"

namespace omni {

constexpr bool kBf16 = OMNI_BF16;
constexpr int kThreads = 256;
constexpr float kLog2E = 1.44269504088896341f;

constexpr int lanes_of(int pieces) {
  int lanes = 1;
  while (lanes < pieces && lanes < 32) lanes *= 2;
  return lanes;
}

constexpr int kLanes = lanes_of(OMNI_HEAD_DIM / 8);
constexpr int kRows = kThreads / kLanes;  // of a thread block

// A row of 16-bit elements, `column` elements apart.
struct Row {
  unsigned char const* data;
  i64 column;

  __device__ __forceinline__ bool is_wide() const { return column == 1 && reinterpret_cast<u64>(data) % 16 == 0; }

  // Columns d to d + 7.
  __device__ __forceinline__ uint4 eight(int d) const {
    if (is_wide()) return *reinterpret_cast<uint4 const*>(data + 2 * d);
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = element(d + 2 * i) | element(d + 2 * i + 1) << 16;
    return make_uint4(word[0], word[1], word[2], word[3]);
  }

 private:
  __device__ __forceinline__ u32 element(int d) const {
    return *reinterpret_cast<unsigned short const*>(data + 2 * d * column);
  }
};

// Eight products, added up.
__device__ __forceinline__ float dot(uint4 const& a, uint4 const& b) {
  u32 const left[4] = {a.x, a.y, a.z, a.w};
  u32 const right[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 const x = unpack_pair<kBf16>(left[i]);
    float2 const y = unpack_pair<kBf16>(right[i]);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
  }
  return sum;
}

// Bit `index` of the words of a mask; false where there are none.
__device__ __forceinline__ bool has_bit(u32 const* words, i64 first, int index) {
  return words != nullptr && (words[first + index / 32] >> (index % 32) & 1);
}

// One row of a compact copy, (..., head_dim): `from`, or zeros. index: of the row, counted over all heads.
__device__ __forceinline__ void copy_row(void* copy, i64 index, Row const& from, bool zero, int head_dim) {
  if (copy == nullptr) return;
  uint4* const g_copy = reinterpret_cast<uint4*>(static_cast<unsigned char*>(copy) + 2 * index * head_dim);
  for (int piece = threadIdx.x % kLanes; piece < head_dim / 8; piece += kLanes) {
    g_copy[piece] = zero ? make_uint4(0, 0, 0, 0) : from.eight(8 * piece);
  }
}

// Which head, and which of its rows: block `index` of those that have `rows` rows a head.
struct Place {
  int batch, head, row;
};

__device__ __forceinline__ Place place_of(int index, int heads, int rows) {
  int const blocks = (rows + kRows - 1) / kRows;
  int const head = index / blocks;
  int const row = (index - head * blocks) * kRows + threadIdx.x / kLanes;
  return Place{head / heads, head % heads, row};
}

__device__ __forceinline__ void prepare_query(BackwardParams const& params, Place const& at) {
  ForwardParams const& p = params.p;
  bool const exists = at.row < p.q_len;
  int const mask = p.mask_batch == 1 ? 0 : at.batch;
  i64 const index = (static_cast<i64>(at.batch) * p.q_heads + at.head) * p.q_len + at.row;
  bool const dead = exists && has_bit(params.dead_rows, static_cast<i64>(mask) * (params.q_padded / 32), at.row);
  float const lse = exists ? p.lse[index] : neg_inf();
  bool const sees = exists && !dead && lse != neg_inf();  // NaN goes on

  Row const dout{params.gradient_of_out().row(at.batch, at.head, exists ? at.row : 0), params.dout_column};
  Row const out{Tensor{p.out, p.out_strides}.row(at.batch, at.head, exists ? at.row : 0), 1};
  float sum = 0.f;
  if (sees) {
    for (int d = 8 * (threadIdx.x % kLanes); d < p.head_dim; d += 8 * kLanes) sum += dot(dout.eight(d), out.eight(d));
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % kLanes == 0 && at.row < params.q_padded) {
    i64 const target = params.statistics(at.batch, at.head) + at.row;
    float const of_lse = sees && params.dlse != nullptr ? params.dlse[index] : 0.f;
    params.lse2[target] = sees ? lse * kLog2E : -neg_inf();
    params.delta[target] = sees ? sum - of_lse : 0.f;
  }
  if (!exists) return;
  copy_row(params.q_copy, index, Row{p.query().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
  copy_row(params.dout_copy, index, dout, dead, p.head_dim);
}

__device__ __forceinline__ void prepare_key(BackwardParams const& params, Place const& at) {
  ForwardParams const& p = params.p;
  if (at.row >= p.k_len) return;
  int const mask = p.mask_batch == 1 ? 0 : at.batch;
  i64 const index = (static_cast<i64>(at.batch) * params.kv_heads + at.head) * p.k_len + at.row;
  bool const dead = has_bit(p.lists.dead, static_cast<i64>(mask) * (p.k_padded / 32), at.row);
  copy_row(params.k_copy, index, Row{p.key().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
  copy_row(params.v_copy, index, Row{p.value().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
}

__device__ __forceinline__ void prepare(BackwardParams const& params) {
  int const index = blockIdx.x;
  int const of_queries = params.p.batch * params.p.q_heads * ((params.q_padded + kRows - 1) / kRows);
  if (index < of_queries) {
    prepare_query(params, place_of(index, params.p.q_heads, params.q_padded));
  } else {
    prepare_key(params, place_of(index - of_queries, params.kv_heads, params.p.k_len));
  }
}

}  // namespace omni

static_assert(sizeof(omni::BackwardParams) == OMNI_PARAMS_BYTES, "params.py and backward_params.cuh disagree");

extern "C" __global__ void __launch_bounds__(omni::kThreads)
    attention_bwd_delta(const __grid_constant__ omni::BackwardParams params) {
  omni::prepare(params);
}
