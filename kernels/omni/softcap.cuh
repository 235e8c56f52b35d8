// Soft caps: scores become softcap * tanh(scale / softcap * score) before they are masked. Kernels turn scores into the
// tanh alone, and have softcap for their scale from there on.
#pragma once

#include "omni/numbers.cuh"
#include "omni/tile.cuh"

namespace omni {

// tanh(scale * score): score * P(score^2) up to kFarTanh, by exponentials above. Products and sums are cheap beside
// exponentials, of which a softmax has enough. P is a polynomial of degree 2 up to kNearTanh; above, another one of the
// excess of the square over kNearTanh^2 is added. Up to kNearTanh the excess is exactly 0, so a warp whose scores are
// all so small leaves that out, and no bit is another one. Fitted to the error of tanh, 1e-7 at most before rounding.
struct Tanh {
  static constexpr float kNearTanh = 0.25f, kFarTanh = 0.7f;
  static constexpr float kNear[2] = {-0.333229154f, 0.128460422f};
  static constexpr float kExcess[4] = {-0.000102579885f, -0.00497991359f, -0.0469233058f, 0.0132220993f};

  float scale;            // also P(0)
  float linear, squared;  // of P, and of what is added, in terms of score^2
  float of_square;        // scale^2
  float excess[4];

  __device__ __forceinline__ explicit Tanh(float of_score) : scale(of_score), of_square(of_score * of_score) {
    linear = kNear[0] * scale * of_square;
    squared = kNear[1] * scale * of_square * of_square;
#pragma unroll
    for (int i = 0; i < 4; ++i) excess[i] = kExcess[i] * scale;
  }

  // How far (scale * score)^2 lies above kNearTanh^2; it grows with |score|.
  __device__ __forceinline__ float above(float square) const { return fmaf(square, of_square, -kNearTanh * kNearTanh); }

  __device__ __forceinline__ static bool is_near(float above) { return above <= 0.f; }
  __device__ __forceinline__ static bool is_far(float above) {
    return above > kFarTanh * kFarTanh - kNearTanh * kNearTanh;
  }

  __device__ __forceinline__ float near_factor(float square) const {
    return fmaf(fmaf(squared, square, linear), square, scale);
  }

  __device__ __forceinline__ float near(float score) const { return score * near_factor(score * score); }

  __device__ __forceinline__ float middle(float score) const {
    float const square = score * score, more = __saturatef(above(square));
    float sum = fmaf(excess[3], more, excess[2]);
    sum = fmaf(sum, more, excess[1]);
    sum = fmaf(sum, more, excess[0]);
    return score * fmaf(sum, more, near_factor(square));
  }

  // 1 - 2 / (1 + exp(2 |x|)), which loses little above kFarTanh.
  __device__ __forceinline__ float far(float score) const {
    constexpr float kTwoLog2E = 2.88539008177792681f;
    float const sum = 1.f + exp2_approx(kTwoLog2E * fabsf(scale * score));
    float share;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(sum));
    return copysignf(fmaf(-2.f, share, 1.f), score);
  }

  __device__ __forceinline__ float any(float score) const {
    return is_far(above(score * score)) ? far(score) : middle(score);
  }
};

// Where powers of a scale are numbers. Scores are multiplied by other ones first.
__device__ __forceinline__ bool has_powers(float scale) { return scale >= 0x1p-24f && scale <= 0x1p24f; }

// The factor of a score's gradient: the derivative of tanh by its argument, where that is tanh. 0 for a hidden score.
__device__ __forceinline__ float tanh_slope(float tanh) {
  float const visible = fmaxf(tanh, -1.f);
  return fmaf(-visible, visible, 1.f);
}

// A tile's scores to tanh(score * tanh_scale), in place. What a score becomes depends on nothing but it. Every lane of
// the warp calls it.
template <class Scores>
__device__ __forceinline__ void cap_scores(Scores& scores, float tanh_scale) {
  auto const each = [&](auto const& change) {
#pragma unroll
    for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < Scores::kCols / 2; ++i) scores.x[m][i] = change(scores.x[m][i]);
    }
  };
  bool const direct = has_powers(tanh_scale);
  if (!direct) each([&](float score) { return score * tanh_scale; });
  Tanh const tanh(direct ? tanh_scale : 1.f);
  constexpr int kChains = 4;  // which need not wait for each other
  float top[kChains] = {};
#pragma unroll
  for (int m = 0; m < Scores::kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < Scores::kCols / 2; ++i) top[i % kChains] = fmaxf(top[i % kChains], fabsf(scores.x[m][i]));
  }
  float const highest = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3])), above = tanh.above(highest * highest);
  if (__all_sync(0xffffffffu, tanh.is_near(above))) {
    each([&](float score) { return tanh.near(score); });
  } else if (__any_sync(0xffffffffu, tanh.is_far(above))) {
    each([&](float score) { return tanh.any(score); });
  } else {
    each([&](float score) { return tanh.middle(score); });
  }
}

}  // namespace omni
