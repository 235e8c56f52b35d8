// Rows of a register tile to global memory: scaled and rounded to 16 bits; of the output, with the rows' lse.
#pragma once

#include "omni/softmax.cuh"

namespace omni {

// One row of the warp's tile, times `factor` and rounded: groups of four 8-column blocks leave as 16 bytes a lane;
// blocks left over as 4 bytes a lane. g_row: the row at the tile's first column; columns: how many of them to write
// (a multiple of 8), 0 for rows that are not. Every lane of the warp calls it.
template <bool kBf16, class Out>
__device__ __forceinline__ void store_row(
    Out const& out, int m, int h, float factor, unsigned char* g_row, int columns) {
  int const c = lane_id() % 4;
#pragma unroll
  for (int j = 0; j + 4 <= Out::kBlocks; j += 4) {
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float const* x = &out.x[m][4 * (j + i) + 2 * h];
      word[i] = pack_pair<kBf16>(x[0] * factor, x[1] * factor);
    }
    quad_transpose(word);
    if (8 * (j + c) < columns) {
      *reinterpret_cast<uint4*>(g_row + 16 * (j + c)) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
#pragma unroll
  for (int j = Out::kBlocks / 4 * 4; j < Out::kBlocks; ++j) {
    float const* x = &out.x[m][4 * j + 2 * h];
    if (8 * j < columns) {
      *reinterpret_cast<u32*>(g_row + 16 * j + 4 * c) = pack_pair<kBf16>(x[0] * factor, x[1] * factor);
    }
  }
}

// Where a warp's rows go. row0: token of the first one; column0: first column of O that the thread block owns; stop:
// the row behind the last one that is written, where that is not q_len.
struct OutputPlace {
  int batch, head;
  int row0, column0;
  int stop;
};

// The normalised output and its lse. softmax: finished.
template <class Cfg, class Out>
__device__ __forceinline__ void store_output(
    ForwardParams const& p, OutputPlace const& at, Out const& out,
    OnlineSoftmax<Out::kTilesM, Cfg::kBf16> const& softmax) {
  unsigned char* const g_out = static_cast<unsigned char*>(p.out) +
                               2 * (at.batch * p.out_strides.batch + at.head * p.out_strides.head + at.column0);
  i64 const lse0 = (static_cast<i64>(at.batch) * p.q_heads + at.head) * p.q_len;
#pragma unroll
  for (int m = 0; m < Out::kTilesM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const q = at.row0 + Out::row(m, h);
      bool write;
      if constexpr (Cfg::kRagged) {
        write = q < at.stop;
      } else {
        write = q < p.q_len;
      }
      int const columns = write ? value_columns<Cfg>(p) - at.column0 : 0;
      float const inverse = p.sink_logits == nullptr ? softmax.inverse(m, h)
                                                     : softmax.inverse_with(sink_log2(p, at.head), m, h, p.scale_log2);
      store_row<Cfg::kBf16>(out, m, h, inverse, g_out + 2 * q * p.out_strides.token, columns);
      if (write && p.lse != nullptr && at.column0 == 0 && lane_id() % 4 == 0) {
        p.lse[lse0 + q] = softmax.lse(m, h, p.scale, p.scale_log2);
      }
    }
  }
}

}  // namespace omni
