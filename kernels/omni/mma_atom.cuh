// The shape of one tensor-core instruction with 16-bit inputs, M x N x K. Products of tiles are made of as many as they
// take. Other shapes than these are for the study of shapes alone (omnicupy/tools/bench/atoms.py), which defines them.
#pragma once

#ifndef OMNI_MMA_ATOM_K
#define OMNI_MMA_ATOM_K 16
#endif
#ifndef OMNI_SCORES_ATOM_N
#define OMNI_SCORES_ATOM_N 256
#endif
#ifndef OMNI_SUMS_ATOM_N
#define OMNI_SUMS_ATOM_N 256
#endif

namespace omni {

// mma.sync has m16n8k16 and m16n8k8.
constexpr int kMmaAtomM = 16;
constexpr int kMmaAtomN = 8;
constexpr int kMmaAtomK = OMNI_MMA_ATOM_K;
static_assert(kMmaAtomK == 16 || kMmaAtomK == 8, "mma.sync: m16n8k16 or m16n8k8");

// wgmma has m64nNk16, with any multiple of 8 up to 256 as N: that of the tile, but these at most. Scores and gradients
// of weights have both operands with the inner dimension contiguous; sums (O, dQ, dK, dV) do not.
constexpr int kWgmmaAtomM = 64;
constexpr int kWgmmaAtomK = 16;
constexpr int kScoresAtomN = OMNI_SCORES_ATOM_N;
constexpr int kSumsAtomN = OMNI_SUMS_ATOM_N;

}  // namespace omni
