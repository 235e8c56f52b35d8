// What the kernels of a backward pass need first: lse2 and delta of every row, and compact copies of q, dO, k and v in
// which rows and keys that take no part hold zeros. So do rows of dQ that take no part where the kernel that follows
// comes to no others. Memory sets its pace. A second kernel (part 5) adds up what the blocks of this one leave of the
// gradients of sink logits, in one order.
//
// A group of kLanes lanes has a row: as many as the row has pieces of 8 columns (the greater of head_dim and value_dim,
// rounded up to 16, over 8), rounded up to a power of 2, at most 32. A thread block has 256 / kLanes rows of one head,
// and the grid is one-dimensional: batch * q_heads * ceil(q_padded / rows) blocks, and where k_copy or v_copy is asked
// batch * kv_heads * ceil(k_len / rows) more. backward_kernel.py has the same number of rows (prepared_rows).
#include "omni/delta.cuh"

namespace omni {

constexpr bool kBf16 = OMNI_BF16;
constexpr int kThreads = 256;
static_assert(OMNI_SMEM_BYTES >= kThreads / 32 * 4, "backward_kernel.py");
constexpr bool kAddsSinks = OMNI_PART == 5;
// How far above a row's lse, in powers of 2, a sink counts for the gradient of lse: the keys' share of the weights, its
// inverse, and weights down to 1e-20 of the row's stay numbers. cpu/backward.py has the same limit, exp(40).
constexpr float kSinkLimitLog2 = 40.f * kLog2E;

constexpr int kHeadDim = OMNI_HEAD_DIM;
constexpr int kValueDim = OMNI_VALUE_DIM;
constexpr int kLanes = lanes_of((kHeadDim > kValueDim ? kHeadDim : kValueDim) / 8);
constexpr int kRows = kThreads / kLanes;  // of a thread block

// Columns of v, out and dO.
__device__ __forceinline__ int value_columns(ForwardParams const& p) {
  return kValueDim == kHeadDim ? p.head_dim : p.value_dim;
}

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

// Bit `index` of the words of a mask; false where there are none.
__device__ __forceinline__ bool has_bit(u32 const* words, i64 first, int index) {
  return words != nullptr && (words[first + index / 32] >> (index % 32) & 1);
}

// One row of a compact copy, (..., columns): `from`, or zeros. index: of the row, counted over all heads.
__device__ __forceinline__ void copy_row(void* copy, i64 index, Row const& from, bool zero, int columns) {
  if (copy == nullptr) return;
  uint4* const g_copy = reinterpret_cast<uint4*>(static_cast<unsigned char*>(copy) + 2 * index * columns);
  for (int piece = threadIdx.x % kLanes; piece < columns / 8; piece += kLanes) {
    g_copy[piece] = zero ? make_uint4(0, 0, 0, 0) : from.eight(8 * piece);
  }
}

// The gradient of a row of q.
__device__ __forceinline__ void zero_gradient(BackwardParams const& params, int batch, int head, int row) {
  Strides const& of = params.dq_strides;
  unsigned char* const g_row =
      static_cast<unsigned char*>(params.dq) + 2 * (batch * of.batch + head * of.head + row * of.token);
  for (int piece = threadIdx.x % kLanes; piece < params.p.head_dim / 8; piece += kLanes) {
    reinterpret_cast<uint4*>(g_row)[piece] = make_uint4(0, 0, 0, 0);
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

// The sum over the thread block, in one order. s_sums: a number for each warp.
__device__ __forceinline__ float block_sum(float value, float* s_sums) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) s_sums[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) sum += s_sums[i];
  return sum;
}

// log2(1 + exp2(x)).
__device__ __forceinline__ float softplus2(float x) { return fmaxf(x, 0.f) + log2f(1.f + exp2_approx(-fabsf(x))); }

__device__ __forceinline__ void prepare_query(BackwardParams const& params, Place const& at, float* s_sums) {
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
    int const columns = value_columns(p);
    for (int d = 8 * (threadIdx.x % kLanes); d < columns; d += 8 * kLanes) sum += dot<kBf16>(dout.eight(d), out.eight(d));
  }
  sum = sum_of_row<kLanes>(sum);
  float of_sink = 0.f;
  if (threadIdx.x % kLanes == 0 && at.row < params.q_padded) {
    i64 const target = params.statistics(at.batch, at.head) + at.row;
    float of_lse = sees && params.dlse != nullptr ? params.dlse[index] : 0.f;
    float lse2 = lse * kLog2E, whole = lse;  // with the sink
    if (sees && p.sink_logits != nullptr) {
      float above = (p.sink_logits[at.head] - lse) * kLog2E;
      of_sink = sum * exp2_approx(-softplus2(-above));
      if (of_lse != 0.f) {  // what vanishes beside dlse may be as large as at the limit
        above = fminf(above, kSinkLimitLog2);
        of_lse *= 1.f + exp2_approx(above);
      }
      lse2 += softplus2(above);
      whole = fmaf(softplus2(above), kLn2, lse);
    }
    store_statistics<kBf16>(params, target, sees, lse2, whole, sum, of_lse);
  }
  if (params.sink_sums != nullptr) {
    of_sink = block_sum(of_sink, s_sums);
    if (threadIdx.x == 0) params.sink_sums[blockIdx.x] = of_sink;
  }
  if (!exists) return;
  copy_row(params.q_copy, index, Row{p.query().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
  copy_row(params.dout_copy, index, dout, dead, value_columns(p));
  if (dead && params.zeroes_dead_rows) zero_gradient(params, at.batch, at.head, at.row);
}

__device__ __forceinline__ void prepare_key(BackwardParams const& params, Place const& at) {
  ForwardParams const& p = params.p;
  if (at.row >= p.k_len) return;
  int const mask = p.mask_batch == 1 ? 0 : at.batch;
  i64 const index = (static_cast<i64>(at.batch) * params.kv_heads + at.head) * p.k_len + at.row;
  bool const dead = has_bit(p.lists.dead, static_cast<i64>(mask) * (p.k_padded / 32), at.row);
  copy_row(params.k_copy, index, Row{p.key().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
  copy_row(params.v_copy, index, Row{p.value().row(at.batch, at.head, at.row), 1}, dead, value_columns(p));
}

__device__ __forceinline__ void prepare(BackwardParams const& params, float* s_sums) {
  int const index = blockIdx.x;
  int const of_queries = params.p.batch * params.p.q_heads * ((params.q_padded + kRows - 1) / kRows);
  if (index < of_queries) {
    prepare_query(params, place_of(index, params.p.q_heads, params.q_padded), s_sums);
  } else {
    prepare_key(params, place_of(index - of_queries, params.kv_heads, params.p.k_len));
  }
}

// The gradient of the sink of head blockIdx.x: what the blocks that prepared its rows left, batch after batch.
__device__ __forceinline__ void add_sinks(BackwardParams const& params, float* s_sums) {
  int const blocks = (params.q_padded + kRows - 1) / kRows;
  float sum = 0.f;
  for (int batch = 0; batch < params.p.batch; ++batch) {
    float const* const g_sums = params.sink_sums + (static_cast<i64>(batch) * params.p.q_heads + blockIdx.x) * blocks;
    for (int i = threadIdx.x; i < blocks; i += kThreads) sum += g_sums[i];
  }
  sum = block_sum(sum, s_sums);
  if (threadIdx.x == 0) params.dsink_logits[blockIdx.x] = -sum;
}

}  // namespace omni

static_assert(sizeof(omni::BackwardParams) == OMNI_PARAMS_BYTES, "params.py and backward_params.cuh disagree");

extern "C" __global__ void __launch_bounds__(omni::kThreads)
    attention_bwd_delta(const __grid_constant__ omni::BackwardParams params) {
  extern __shared__ float s_memory[];
  if constexpr (omni::kAddsSinks) {
    omni::add_sinks(params, s_memory);
  } else {
    omni::prepare(params, s_memory);
  }
}
