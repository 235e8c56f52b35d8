// What the kernels of a backward pass need first: lse2 and delta of every row, and compact copies of q, dO, k and v in
// which rows and keys that take no part hold zeros. So do rows of dQ that take no part where the kernel that follows
// comes to no others. Memory sets its pace. A second kernel (part 5) adds up what the blocks of this one leave of the
// gradients of sink logits, in one order.
//
// A group of kLanes lanes has kTogether rows, whose loads are on their way together. It has as many lanes as a row has
// pieces of 8 columns (the greater of head_dim and value_dim, rounded up to 16, over 8), rounded up to a power of 2, at
// most 32. A thread block has 256 / kLanes * kTogether rows of one head, and the grid is one-dimensional:
// batch * q_heads * ceil(q_padded / rows) blocks, and where k_copy or v_copy is asked batch * kv_heads *
// ceil(k_len / rows) more. backward_kernel.py has the same number of rows (prepared_rows).
#include "omni/backward_params.cuh"
#include "omni/lse2.cuh"

namespace omni {

constexpr bool kBf16 = OMNI_BF16;
constexpr int kThreads = 256;
static_assert(OMNI_SMEM_BYTES >= kThreads / 32 * 4, "backward_kernel.py");
constexpr bool kAddsSinks = OMNI_PART == 5;
// How far above a row's lse, in powers of 2, a sink counts for the gradient of lse: the keys' share of the weights, its
// inverse, and weights down to 1e-20 of the row's stay numbers. cpu/backward.py has the same limit, exp(40).
constexpr float kSinkLimitLog2 = 40.f * kLog2E;

constexpr int lanes_of(int pieces) {
  int lanes = 1;
  while (lanes < pieces && lanes < 32) lanes *= 2;
  return lanes;
}

constexpr int kHeadDim = OMNI_HEAD_DIM;
constexpr int kValueDim = OMNI_VALUE_DIM;
constexpr int kLanes = lanes_of((kHeadDim > kValueDim ? kHeadDim : kValueDim) / 8);
constexpr int kGroups = kThreads / kLanes;
constexpr int kTogether = kLanes < 4 ? kLanes : 4;  // at most a row for each lane
constexpr int kRows = kGroups * kTogether;          // of a thread block

// Columns of v, out and dO.
__device__ __forceinline__ int value_columns(ForwardParams const& p) {
  return kValueDim == kHeadDim ? p.head_dim : p.value_dim;
}

// A row of 16-bit elements, `column` elements apart.
struct Row {
  unsigned char const* data;
  i64 column;

  __device__ __forceinline__ bool is_wide() const { return column == 1 && reinterpret_cast<u64>(data) % 16 == 0; }

  // Columns d to d + 7 of a row that is wide.
  __device__ __forceinline__ uint4 eight_at_once(int d) const { return *reinterpret_cast<uint4 const*>(data + 2 * d); }

  // Columns d to d + 7.
  __device__ __forceinline__ uint4 eight(int d) const {
    if (is_wide()) return eight_at_once(d);
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

// Which head, and the first one of the rows that the lane's group has: block `index` of those that have `rows` rows a
// head.
struct Place {
  int batch, head, row;
};

__device__ __forceinline__ Place place_of(int index, int heads, int rows) {
  int const blocks = (rows + kRows - 1) / kRows;
  int const head = index / blocks;
  int const row = (index - head * blocks) * kRows + threadIdx.x / kLanes;
  return Place{head / heads, head % heads, row};
}

__device__ __forceinline__ bool is_dead_row(BackwardParams const& params, Place const& at) {
  int const mask = params.p.mask_batch == 1 ? 0 : at.batch;
  return has_bit(params.dead_rows, static_cast<i64>(mask) * (params.q_padded / 32), at.row);
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

// What the lane's columns add to rowsum(dO * O) of each row. Rows are read whether they take part or not: no load waits
// for what another one brings.
__device__ __forceinline__ void add_products(
    Row const (&dout)[kTogether], Row const (&out)[kTogether], int columns, float (&sums)[kTogether]) {
  for (int d = 8 * (threadIdx.x % kLanes); d < columns; d += 8 * kLanes) {
    uint4 left[kTogether], right[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      left[i] = dout[i].eight_at_once(d);
      right[i] = out[i].eight_at_once(d);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) sums[i] += dot(left[i], right[i]);
  }
}

// The same of one row that is not wide.
__device__ __forceinline__ float products(Row const& dout, Row const& out, int columns) {
  float sum = 0.f;
#pragma unroll 1
  for (int d = 8 * (threadIdx.x % kLanes); d < columns; d += 8 * kLanes) sum += dot(dout.eight(d), out.eight(d));
  return sum;
}

// Stores lse2 and delta of a row. lse: -inf of rows that do not exist.  sum: rowsum(dO * O), of those that see a key.
// Returns what the row adds to -dsink_logits.
__device__ __forceinline__ float store_statistics(BackwardParams const& params, Place const& at, float lse, float sum) {
  ForwardParams const& p = params.p;
  i64 const index = (static_cast<i64>(at.batch) * p.q_heads + at.head) * p.q_len + at.row;
  bool const sees = lse != neg_inf() && !is_dead_row(params, at);  // NaN goes on
  float of_sink = 0.f, of_lse = sees && params.dlse != nullptr ? params.dlse[index] : 0.f;
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
  i64 const target = params.statistics(at.batch, at.head) + at.row;
  params.lse2[target] = sees ? lse2_of(lse2, whole, !kBf16 && p.tanh_scale == 0.f) : -neg_inf();
  params.delta[target] = sees ? sum - of_lse : 0.f;
  return of_sink;
}

__device__ __forceinline__ void prepare_queries(BackwardParams const& params, Place const& first, float* s_sums) {
  ForwardParams const& p = params.p;
  int const lane = threadIdx.x % kLanes;
  // The lane that stores what its group finds of a row.
  Place const own{first.batch, first.head, first.row + lane * kGroups};
  bool const has_row = lane < kTogether && own.row < params.q_padded;
  i64 const head_rows = (static_cast<i64>(first.batch) * p.q_heads + first.head) * p.q_len;
  float const lse = has_row && own.row < p.q_len ? p.lse[head_rows + own.row] : neg_inf();

  Row dout[kTogether], out[kTogether];
  bool wide = true;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    int const row = min(first.row + i * kGroups, p.q_len - 1);
    dout[i] = Row{params.gradient_of_out().row(first.batch, first.head, row), params.dout_column};
    out[i] = Row{Tensor{p.out, p.out_strides}.row(first.batch, first.head, row), 1};
    wide = wide && dout[i].is_wide() && out[i].is_wide();
  }
  float sums[kTogether] = {};
  if (wide) {
    add_products(dout, out, value_columns(p), sums);
  } else {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) sums[i] = products(dout[i], out[i], value_columns(p));
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], step);
    if (lane == i) sum = sums[i];
  }
  float of_sink = has_row ? store_statistics(params, own, lse, sum) : 0.f;
  if (params.sink_sums != nullptr) {
    of_sink = block_sum(of_sink, s_sums);
    if (threadIdx.x == 0) params.sink_sums[blockIdx.x] = of_sink;
  }
  if (params.q_copy == nullptr && params.dout_copy == nullptr && !params.zeroes_dead_rows) return;
#pragma unroll 1
  for (int i = 0; i < kTogether; ++i) {
    Place const at{first.batch, first.head, first.row + i * kGroups};
    if (at.row >= p.q_len) return;
    bool const dead = is_dead_row(params, at);
    i64 const index = head_rows + at.row;
    Row const of_out{params.gradient_of_out().row(at.batch, at.head, at.row), params.dout_column};
    copy_row(params.q_copy, index, Row{p.query().row(at.batch, at.head, at.row), 1}, dead, p.head_dim);
    copy_row(params.dout_copy, index, of_out, dead, value_columns(p));
    if (dead && params.zeroes_dead_rows) zero_gradient(params, at.batch, at.head, at.row);
  }
}

__device__ __forceinline__ void prepare_keys(BackwardParams const& params, Place const& first) {
  ForwardParams const& p = params.p;
  int const mask = p.mask_batch == 1 ? 0 : first.batch;
#pragma unroll 1
  for (int row = first.row; row < min(first.row + kRows, p.k_len); row += kGroups) {
    i64 const index = (static_cast<i64>(first.batch) * params.kv_heads + first.head) * p.k_len + row;
    bool const dead = has_bit(p.lists.dead, static_cast<i64>(mask) * (p.k_padded / 32), row);
    copy_row(params.k_copy, index, Row{p.key().row(first.batch, first.head, row), 1}, dead, p.head_dim);
    copy_row(params.v_copy, index, Row{p.value().row(first.batch, first.head, row), 1}, dead, value_columns(p));
  }
}

__device__ __forceinline__ void prepare(BackwardParams const& params, float* s_sums) {
  int const index = blockIdx.x;
  int const of_queries = params.p.batch * params.p.q_heads * ((params.q_padded + kRows - 1) / kRows);
  if (index < of_queries) {
    prepare_queries(params, place_of(index, params.p.q_heads, params.q_padded), s_sums);
  } else {
    prepare_keys(params, place_of(index - of_queries, params.kv_heads, params.p.k_len));
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

extern "C" __global__ void __launch_bounds__(omni::kThreads, 3)
    attention_bwd_delta(const __grid_constant__ omni::BackwardParams params) {
  extern __shared__ float s_memory[];
  if constexpr (omni::kAddsSinks) {
    omni::add_sinks(params, s_memory);
  } else {
    omni::prepare(params, s_memory);
  }
}
